// SPDX-License-Identifier: Apache-2.0
//! How fast one thread can read frames from a tap whose queue is full: the limit of every device that receives
//! through one. With `--both` it writes a frame for each one that it reads, in batches.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use io_uring::{opcode, types, IoUring};
use serde_json::{json, Value};

use crate::affinity;
use crate::arguments::Arguments;
use crate::clock::Waiting;
use crate::error::{Error, Result};
use crate::flood::{Flood, Frames};
use crate::packet::{self, HEADER_BYTES};
use crate::tap::{self, Mode};
use crate::tap_write::{Writer, BATCH};

const PACKET_BYTES: usize = 65_562;

enum Method {
    Read,
    Readv,
    IoUring(Box<IoUring>),
}

/// Reads batches.
struct Reader {
    tap: File,
    buffers: Vec<Vec<u8>>,
    next: usize,
    method: Method,
}

impl Reader {
    /// `buffers` take turns, as those of a ring do; io_uring has as many as it has reads in a batch.
    fn new(tap: File, method: &str, buffers: usize) -> Result<Self> {
        let method = match method {
            "read" => Method::Read,
            "readv" => Method::Readv,
            "io_uring" => Method::IoUring(Box::new(IoUring::new(BATCH).map_err(Error::system(
                "io_uring (is sysctl kernel.io_uring_disabled 0?)",
            ))?)),
            other => {
                return Err(Error::Usage(format!(
                    "--method {other}: expected read, readv or io_uring"
                )))
            }
        };
        let buffers = match &method {
            Method::IoUring(_) => BATCH as usize,
            _ => buffers,
        };
        Ok(Self {
            tap,
            buffers: vec![vec![0; PACKET_BYTES]; buffers],
            next: 0,
            method,
        })
    }

    /// Read up to BATCH frames; how many there were.
    fn batch(&mut self) -> Result<u64> {
        let fd = self.tap.as_raw_fd();
        let count = self.buffers.len();
        let mut in_turn = || {
            self.next = (self.next + 1) % count;
            self.next
        };
        match &mut self.method {
            Method::Read => each(|| {
                let buffer = &mut self.buffers[in_turn()];
                // SAFETY: the pointer and the length are those of a live, exclusively borrowed slice.
                unsafe { libc::read(fd, buffer.as_mut_ptr().cast(), buffer.len()) }
            }),
            Method::Readv => each(|| {
                let buffer = &mut self.buffers[in_turn()];
                let (header, frame) = buffer.split_at_mut(HEADER_BYTES);
                let parts = [header, frame].map(|part| libc::iovec {
                    iov_base: part.as_mut_ptr().cast(),
                    iov_len: part.len(),
                });
                // SAFETY: both parts are live, exclusively borrowed slices.
                unsafe { libc::readv(fd, parts.as_ptr(), parts.len() as i32) }
            }),
            Method::IoUring(ring) => submit(ring, &self.tap, &mut self.buffers),
        }
    }

    fn drain(&mut self) -> Result<u64> {
        let mut frames = 0;
        loop {
            match self.batch()? {
                0 => return Ok(frames),
                count => frames += count,
            }
        }
    }
}

/// `tap-read`: fill the queue and empty it, until that took `seconds` of reading.
pub fn run(arguments: &mut Arguments) -> Result<Value> {
    let name = arguments.text("tap")?;
    let tap = tap::open(&name, Mode::default())?;
    let bytes = arguments.number("bytes")?;
    let is_gso = arguments.switch("gso");
    let what = Frames {
        bytes,
        is_gso,
        flows: 0,
    };
    let flood = Flood::new(&name, what)?;
    let frames = arguments.number("frames")?;
    let seconds = arguments.number("seconds")?;
    let method = arguments.text_or("method", "read");
    // One for all, as a loop has it that does nothing else.
    let buffers: usize = arguments.number_or("buffers", 1)?;
    let is_both = arguments.switch("both");
    // The frames come from another processor, as those that a device receives do.
    let (filler, reader_cpu) = (arguments.number("fill-cpu")?, arguments.number("read-cpu")?);
    arguments.end()?;
    tap::set_nonblocking(&tap)?;
    let other = tap.try_clone().map_err(Error::system("tap"))?;
    let mut writer = Writer::new(other, packet::make(bytes, is_gso), 1, "write")?;
    let mut reader = Reader::new(tap, &method, buffers.max(1))?;
    reader.drain()?;
    let wanted = Duration::from_secs_f64(seconds);
    let (mut moved, mut moving, mut waited_ns) = (0, Duration::ZERO, 0);
    while moving < wanted {
        affinity::pin(filler)?;
        flood.fill(frames);
        affinity::pin(reader_cpu)?;
        let waiting = Waiting::start();
        let started = Instant::now();
        let count = if is_both {
            exchange(&mut reader, &mut writer)?
        } else {
            reader.drain()?
        };
        moving += started.elapsed();
        waited_ns += waiting.ns();
        moved += count;
        if count == 0 {
            return Err(Error::Peer(format!(
                "no frame comes through {name}: is it up?"
            )));
        }
    }
    let seconds = moving.as_secs_f64();
    Ok(json!({
        "frames": moved,
        "seconds": seconds,
        "frames_per_s": moved as f64 / seconds,
        "waited_ns": waited_ns,
    }))
}

/// A batch is written for each that is read; frames both ways.
fn exchange(reader: &mut Reader, writer: &mut Writer) -> Result<u64> {
    let mut frames = 0;
    loop {
        match reader.batch()? {
            0 => return Ok(frames),
            count => frames += count,
        }
        writer.batch()?;
        frames += u64::from(BATCH);
    }
}

fn each(mut read: impl FnMut() -> isize) -> Result<u64> {
    for frames in 0..u64::from(BATCH) {
        if read() > 0 {
            continue;
        }
        let error = std::io::Error::last_os_error();
        if error.kind() == std::io::ErrorKind::WouldBlock {
            return Ok(frames);
        }
        return Err(Error::system("read from the tap")(error));
    }
    Ok(u64::from(BATCH))
}

fn submit(ring: &mut IoUring, tap: &File, buffers: &mut [Vec<u8>]) -> Result<u64> {
    let fd = types::Fd(tap.as_raw_fd());
    for buffer in &mut *buffers {
        let entry = opcode::Read::new(fd, buffer.as_mut_ptr(), buffer.len() as u32)
            // An empty queue is an answer; without this the kernel waits, O_NONBLOCK or not.
            .rw_flags(libc::RWF_NOWAIT)
            .build();
        // SAFETY: the buffer is borrowed until every completion was seen, below, and by one entry alone.
        unsafe { ring.submission().push(&entry) }
            .map_err(|error| Error::Peer(format!("io_uring: {error}")))?;
    }
    ring.submit_and_wait(buffers.len())
        .map_err(Error::system("io_uring_enter"))?;
    let mut frames = 0;
    for entry in ring.completion() {
        match entry.result() {
            1.. => frames += 1,
            result if -result == libc::EAGAIN => {}
            result => {
                return Err(Error::System {
                    what: "read from the tap by io_uring".into(),
                    source: std::io::Error::from_raw_os_error(-result),
                })
            }
        }
    }
    Ok(frames)
}
