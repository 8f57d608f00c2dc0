// SPDX-License-Identifier: Apache-2.0
//! How fast one thread can read frames from a tap whose queue is full: the limit of every device that receives
//! through one.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use serde_json::{json, Value};

use crate::affinity;
use crate::arguments::Arguments;
use crate::error::{Error, Result};
use crate::flood::Flood;
use crate::tap;

const PACKET_BYTES: usize = 65_562;

/// `tap-read`: fill the queue and empty it, until that took `seconds` of reading.
pub fn run(arguments: &mut Arguments) -> Result<Value> {
    let name = arguments.text("tap")?;
    let tap = tap::open(&name)?;
    let flood = Flood::new(&name, arguments.number("bytes")?)?;
    let frames = arguments.number("frames")?;
    let seconds = arguments.number("seconds")?;
    // The frames come from another processor, as those that a device receives do.
    let (filler, reader) = (arguments.number("fill-cpu")?, arguments.number("read-cpu")?);
    arguments.end()?;
    set_nonblocking(&tap)?;
    let mut buffer = vec![0; PACKET_BYTES];
    drain(&tap, &mut buffer)?;
    let wanted = Duration::from_secs_f64(seconds);
    let (mut read, mut reading) = (0, Duration::ZERO);
    while reading < wanted {
        affinity::pin(filler)?;
        flood.fill(frames);
        affinity::pin(reader)?;
        let started = Instant::now();
        let count = drain(&tap, &mut buffer)?;
        reading += started.elapsed();
        read += count;
        if count == 0 {
            return Err(Error::Peer(format!(
                "no frame comes through {name}: is it up?"
            )));
        }
    }
    let seconds = reading.as_secs_f64();
    Ok(json!({
        "frames": read,
        "seconds": seconds,
        "frames_per_s": read as f64 / seconds,
    }))
}

fn set_nonblocking(tap: &File) -> Result<()> {
    // SAFETY: F_SETFL takes no pointer.
    if unsafe { libc::fcntl(tap.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) } != 0 {
        return Err(Error::last("tap"));
    }
    Ok(())
}

fn drain(tap: &File, buffer: &mut [u8]) -> Result<u64> {
    let mut frames = 0;
    loop {
        // SAFETY: the pointer and the length are those of a live, exclusively borrowed slice.
        let read = unsafe { libc::read(tap.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len()) };
        if read > 0 {
            frames += 1;
            continue;
        }
        let error = std::io::Error::last_os_error();
        if error.kind() == std::io::ErrorKind::WouldBlock {
            return Ok(frames);
        }
        return Err(Error::system("read from the tap")(error));
    }
}
