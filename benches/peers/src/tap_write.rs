// SPDX-License-Identifier: Apache-2.0
//! How fast a thread can write frames to a tap, or several to a queue each: the limit of every device that
//! transmits through one.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::Barrier;

use io_uring::{opcode, types, IoUring};
use serde_json::Value;

use crate::affinity;
use crate::arguments::Arguments;
use crate::clock::Clock;
use crate::error::{Error, Result};
use crate::packet::{self, HEADER_BYTES};
use crate::tap::{self, Mode};

/// Frames between two looks at the clock, and in one submission of io_uring.
pub const BATCH: u32 = 32;
const WARM_UP_FRAMES: u32 = 10_000;

/// How frames are handed to the kernel.
enum Method {
    Write,
    Writev,
    IoUring(Box<IoUring>),
}

impl Method {
    fn parse(name: &str) -> Result<Self> {
        match name {
            "write" => Ok(Self::Write),
            "writev" => Ok(Self::Writev),
            "io_uring" => Ok(Self::IoUring(Box::new(IoUring::new(BATCH).map_err(
                Error::system("io_uring (is sysctl kernel.io_uring_disabled 0?)"),
            )?))),
            other => Err(Error::Usage(format!(
                "--method {other}: expected write, writev or io_uring"
            ))),
        }
    }
}

/// Frames that are written again and again.
pub struct Writer {
    tap: File,
    packets: Vec<Vec<u8>>,
    next: usize,
    method: Method,
}

impl Writer {
    /// `packet` in so many buffers that take turns, as those of a ring do: a single one stays in the cache, however
    /// long it is.
    pub fn new(tap: File, packet: Vec<u8>, buffers: usize, method: &str) -> Result<Self> {
        Ok(Self {
            tap,
            packets: vec![packet; buffers.max(1)],
            next: 0,
            method: Method::parse(method)?,
        })
    }

    /// Write BATCH frames.
    pub fn batch(&mut self) -> Result<()> {
        let packets = self.packets.iter().cycle().skip(self.next);
        let packets = packets.map(Vec::as_slice).take(BATCH as usize);
        match &mut self.method {
            Method::Write => each(packets, |packet| {
                // SAFETY: the pointer and the length are those of a live slice.
                unsafe { libc::write(self.tap.as_raw_fd(), packet.as_ptr().cast(), packet.len()) }
            }),
            Method::Writev => each(packets, |packet| {
                let (header, frame) = packet.split_at(HEADER_BYTES);
                let parts = [header, frame].map(|part| libc::iovec {
                    iov_base: part.as_ptr().cast_mut().cast(),
                    iov_len: part.len(),
                });
                // SAFETY: both parts are live slices, which writev only reads.
                unsafe { libc::writev(self.tap.as_raw_fd(), parts.as_ptr(), parts.len() as i32) }
            }),
            Method::IoUring(ring) => submit(ring, &self.tap, packets),
        }?;
        self.next = (self.next + BATCH as usize) % self.packets.len();
        Ok(())
    }
}

/// `tap-write`.
pub fn run(arguments: &mut Arguments) -> Result<Value> {
    let name = arguments.text("tap")?;
    let bytes = arguments.number("bytes")?;
    let seconds = arguments.number("seconds")?;
    let method = arguments.text_or("method", "write");
    let is_gso = arguments.switch("gso");
    let buffers: usize = arguments.number_or("buffers", 1)?;
    let is_napi = arguments.switch("napi");
    let threads: usize = arguments.number_or("threads", 1)?;
    arguments.end()?;
    let mode = Mode {
        is_napi,
        is_multi_queue: threads > 1,
    };
    let new_writer = || {
        let tap = tap::open(&name, mode)?;
        Writer::new(tap, packet::make(bytes, is_gso), buffers, &method)
    };
    if threads > 1 {
        let writers: Result<_> = (0..threads).map(|_| new_writer()).collect();
        return in_threads(writers?, seconds);
    }
    let mut writer = new_writer()?;
    warm_up(&mut writer)?;
    let clock = Clock::start(seconds);
    let frames = until_over(&mut writer, &clock)?;
    Ok(clock.report(frames))
}

/// Each on a processor of its own; they start together.
fn in_threads(writers: Vec<Writer>, seconds: f64) -> Result<Value> {
    let start = Barrier::new(writers.len() + 1);
    std::thread::scope(|scope| {
        let threads: Vec<_> = writers
            .into_iter()
            .enumerate()
            .map(|(cpu, mut writer)| {
                let start = &start;
                scope.spawn(move || -> Result<(u64, u64)> {
                    let ready = affinity::pin(cpu).and_then(|()| warm_up(&mut writer));
                    start.wait();
                    ready?;
                    let clock = Clock::start(seconds);
                    let frames = until_over(&mut writer, &clock)?;
                    Ok((frames, clock.waited_ns()))
                })
            })
            .collect();
        start.wait();
        let clock = Clock::start(seconds);
        let (mut frames, mut waited_ns) = (0, 0);
        for thread in threads {
            let (written, waited) = thread
                .join()
                .map_err(|_| Error::Peer("a thread that writes has panicked".into()))??;
            frames += written;
            waited_ns += waited;
        }
        Ok(clock.report_waited(frames, waited_ns))
    })
}

fn warm_up(writer: &mut Writer) -> Result<()> {
    (0..WARM_UP_FRAMES / BATCH).try_for_each(|_| writer.batch())
}

fn until_over(writer: &mut Writer, clock: &Clock) -> Result<u64> {
    let mut frames = 0;
    while !clock.is_over() {
        writer.batch()?;
        frames += u64::from(BATCH);
    }
    Ok(frames)
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
