// SPDX-License-Identifier: Apache-2.0
//! Doorbells over vfio-user as a VMM in C would ring them, and the least that such a round trip can cost: the same
//! bytes and system calls between two threads that do nothing else.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use serde_json::{json, Value};

use crate::arguments::Arguments;
use crate::error::{Error, Result};
use crate::vfio_user::{connect, request, HEADER_BYTES, REPLY};

const ACCESS_BYTES: usize = 16;
const COMMAND_REGION_WRITE: u16 = 10;

/// Ring `--count` times; the median in microseconds, without `--socket` that of the echo.
pub fn run(arguments: &mut Arguments) -> Result<Value> {
    let count: usize = arguments.number("count")?;
    let socket = arguments.text_or("socket", "");
    let region = arguments.number_or("region", 0u32)?;
    let offset = arguments.number_or("offset", 0u64)?;
    // Every sample of the bench brings it; here the count is what counts.
    let _: f64 = arguments.number_or("seconds", 0.0)?;
    arguments.end()?;
    let stream = if socket.is_empty() {
        echo()?
    } else {
        connect(&socket)?
    };
    let mut spent = ring(stream, count, region, offset)?;
    spent.sort_unstable();
    let median_us = spent[spent.len() / 2] as f64 / 1000.0;
    Ok(json!({ "median_us": median_us, "min_us": spent[0] as f64 / 1000.0 }))
}

/// The other end of the stream answers each doorbell, and does nothing else.
fn echo() -> Result<UnixStream> {
    let (near, mut far) = UnixStream::pair().map_err(Error::system("socketpair"))?;
    std::thread::spawn(move || {
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

fn ring(mut stream: UnixStream, count: usize, region: u32, offset: u64) -> Result<Vec<u64>> {
    let payload = [
        &offset.to_le_bytes()[..],
        &region.to_le_bytes(),
        &2u32.to_le_bytes(),
        &0u16.to_le_bytes(),
    ]
    .concat();
    let mut spent = Vec::with_capacity(count);
    for id in 1..=count.max(1) {
        let started = Instant::now();
        request(&mut stream, id as u16, COMMAND_REGION_WRITE, &payload, None)?;
        spent.push(started.elapsed().as_nanos() as u64);
    }
    Ok(spent)
}
