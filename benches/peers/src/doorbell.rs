// SPDX-License-Identifier: Apache-2.0
//! Doorbells over vfio-user as a VMM in C would ring them, and the least that such a round trip can cost: the same
//! bytes and system calls between two threads that do nothing else.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use serde_json::{json, Value};

use crate::affinity;
use crate::arguments::Arguments;
use crate::error::{Error, Result};
use crate::vfio_user::{connect, Region, HEADER_BYTES, REPLY};
use crate::virtio;

const ACCESS_BYTES: usize = 16;
const NOWHERE: u64 = u64::MAX;
const ANYWHERE: usize = usize::MAX;

/// Ring `--count` times the doorbell of `--queue`, which runs if `--common-offset` says where the device is set up; the
/// median in microseconds. Without `--socket` that of the echo, by a thread on the processor `--echo-cpu`.
pub fn run(arguments: &mut Arguments) -> Result<Value> {
    let count: usize = arguments.number("count")?;
    let socket = arguments.text_or("socket", "");
    let doorbell = region(arguments, "")?;
    let common = region(arguments, "common-")?;
    let queue = arguments.number_or("queue", 0u16)?;
    let echo_cpu: usize = arguments.number_or("echo-cpu", ANYWHERE)?;
    // Every sample of the bench brings it; here the count is what counts.
    let _: f64 = arguments.number_or("seconds", 0.0)?;
    arguments.end()?;
    let mut stream = if socket.is_empty() {
        echo(echo_cpu)?
    } else {
        connect(&socket)?
    };
    if common.offset != NOWHERE {
        virtio::start_queue(&mut stream, common, queue)?;
    }
    let mut spent = ring(stream, count, doorbell, queue)?;
    spent.sort_unstable();
    let median_us = spent[spent.len() / 2] as f64 / 1000.0;
    Ok(json!({ "median_us": median_us, "min_us": spent[0] as f64 / 1000.0 }))
}

fn region(arguments: &mut Arguments, prefix: &str) -> Result<Region> {
    Ok(Region {
        number: arguments.number_or(&format!("{prefix}region"), 0)?,
        offset: arguments.number_or(&format!("{prefix}offset"), NOWHERE)?,
    })
}

/// The other end of the stream answers each doorbell, and does nothing else.
fn echo(cpu: usize) -> Result<UnixStream> {
    let (near, mut far) = UnixStream::pair().map_err(Error::system("socketpair"))?;
    std::thread::spawn(move || {
        if cpu != ANYWHERE && affinity::pin(cpu).is_err() {
            return;
        }
        let mut message = [0u8; HEADER_BYTES + ACCESS_BYTES + 2];
        loop {
            let (header, payload) = message.split_at_mut(HEADER_BYTES);
            if far.read_exact(header).is_err() || far.read_exact(payload).is_err() {
                return;
            }
            header[4..8].copy_from_slice(&((HEADER_BYTES + ACCESS_BYTES) as u32).to_le_bytes());
            header[8..12].copy_from_slice(&REPLY.to_le_bytes());
            if far
                .write_all(&message[..HEADER_BYTES + ACCESS_BYTES])
                .is_err()
            {
                return;
            }
        }
    });
    Ok(near)
}

fn ring(mut stream: UnixStream, count: usize, doorbell: Region, queue: u16) -> Result<Vec<u64>> {
    let value = queue.to_le_bytes();
    let mut spent = Vec::with_capacity(count);
    for _ in 0..count.max(1) {
        let started = Instant::now();
        doorbell.write(&mut stream, 0, &value)?;
        spent.push(started.elapsed().as_nanos() as u64);
    }
    Ok(spent)
}
