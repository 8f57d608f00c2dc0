// SPDX-License-Identifier: Apache-2.0
//! How fast one thread can write frames to a tap: the limit of every device that transmits through one.

use std::fs::File;
use std::os::fd::AsRawFd;

use io_uring::{opcode, types, IoUring};
use serde_json::Value;

use crate::arguments::Arguments;
use crate::clock::Clock;
use crate::error::{Error, Result};
use crate::packet::{self, HEADER_BYTES};
use crate::tap;

/// Frames between two looks at the clock, and in one submission of io_uring.
const BATCH: u32 = 32;
const WARM_UP_FRAMES: u32 = 10_000;

enum Method {
    Write,
    Writev,
    IoUring(Box<IoUring>),
}

/// `tap-write`.
pub fn run(arguments: &mut Arguments) -> Result<Value> {
    let tap = tap::open(&arguments.text("tap")?)?;
    let bytes = arguments.number("bytes")?;
    let seconds = arguments.number("seconds")?;
    let method = arguments.text_or("method", "write");
    let is_gso = arguments.switch("gso");
    let count: usize = arguments.number_or("buffers", 1)?;
    arguments.end()?;
    let packet = if is_gso {
        packet::gso(bytes)
    } else {
        packet::plain(bytes)
    };
    // Buffers that take turns, as those of a ring do: a single one stays in the cache, however long it is.
    let packets = vec![packet; count.max(1)];
    let mut turns = packets.iter().cycle().map(Vec::as_slice);
    let mut method = match method.as_str() {
        "write" => Method::Write,
        "writev" => Method::Writev,
        "io_uring" => Method::IoUring(Box::new(
            IoUring::new(BATCH).map_err(Error::system("io_uring"))?,
        )),
        other => {
            return Err(Error::Usage(format!(
                "--method {other}: expected write, writev or io_uring"
            )))
        }
    };
    for _ in 0..WARM_UP_FRAMES / BATCH {
        write_batch(&tap, &mut turns, &mut method)?;
    }
    let clock = Clock::start(seconds);
    let mut frames = 0;
    while !clock.is_over() {
        write_batch(&tap, &mut turns, &mut method)?;
        frames += u64::from(BATCH);
    }
    Ok(clock.report(frames))
}

fn write_batch<'a>(
    tap: &File,
    turns: &mut impl Iterator<Item = &'a [u8]>,
    method: &mut Method,
) -> Result<()> {
    let packets = turns.take(BATCH as usize);
    match method {
        Method::Write => each(packets, |packet| {
            // SAFETY: the pointer and the length are those of a live slice.
            unsafe { libc::write(tap.as_raw_fd(), packet.as_ptr().cast(), packet.len()) }
        }),
        Method::Writev => each(packets, |packet| {
            let (header, frame) = packet.split_at(HEADER_BYTES);
            let parts = [header, frame].map(|part| libc::iovec {
                iov_base: part.as_ptr().cast_mut().cast(),
                iov_len: part.len(),
            });
            // SAFETY: both parts are live slices, which writev only reads.
            unsafe { libc::writev(tap.as_raw_fd(), parts.as_ptr(), parts.len() as i32) }
        }),
        Method::IoUring(ring) => submit(ring, tap, packets),
    }
}

fn each<'a>(packets: impl Iterator<Item = &'a [u8]>, write: impl Fn(&[u8]) -> isize) -> Result<()> {
    for packet in packets {
        if write(packet) < 0 {
            return Err(Error::last("write to the tap"));
        }
    }
    Ok(())
}

fn submit<'a>(
    ring: &mut IoUring,
    tap: &File,
    packets: impl Iterator<Item = &'a [u8]>,
) -> Result<()> {
    let fd = types::Fd(tap.as_raw_fd());
    for packet in packets {
        let entry = opcode::Write::new(fd, packet.as_ptr(), packet.len() as u32).build();
        // SAFETY: the packet lives until every completion was seen, below.
        unsafe { ring.submission().push(&entry) }
            .map_err(|error| Error::Peer(format!("io_uring: {error}")))?;
    }
    ring.submit_and_wait(BATCH as usize)
        .map_err(Error::system("io_uring_enter"))?;
    match ring.completion().find(|entry| entry.result() < 0) {
        Some(entry) => Err(Error::System {
            what: "write to the tap by io_uring".into(),
            source: std::io::Error::from_raw_os_error(-entry.result()),
        }),
        None => Ok(()),
    }
}
