// SPDX-License-Identifier: Apache-2.0
//! Doorbells over vfio-user as a VMM in C would ring them, and the least that such a round trip can cost: the same
//! bytes and system calls between two threads that do nothing else.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use serde_json::{json, Value};

use crate::arguments::Arguments;
use crate::error::{Error, Result};

const HEADER_BYTES: usize = 16;
const ACCESS_BYTES: usize = 16;
const COMMAND_VERSION: u16 = 1;
const COMMAND_REGION_WRITE: u16 = 10;
const REPLY: u32 = 1;
const MESSAGE_BYTES_MAX: usize = 4096;
const CAPABILITIES: &[u8] = b"{\"capabilities\":{\"max_msg_fds\":8}}\0";

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

fn connect(socket: &str) -> Result<UnixStream> {
    let mut stream = UnixStream::connect(socket).map_err(Error::system(socket.to_owned()))?;
    let version = [&[0u8; 4][..], CAPABILITIES].concat();
    request(&mut stream, 0, COMMAND_VERSION, &version)?;
    Ok(stream)
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
        request(&mut stream, id as u16, COMMAND_REGION_WRITE, &payload)?;
        spent.push(started.elapsed().as_nanos() as u64);
    }
    Ok(spent)
}

/// Send a command and read its reply.
fn request(stream: &mut UnixStream, id: u16, command: u16, payload: &[u8]) -> Result<()> {
    let mut message = Vec::with_capacity(HEADER_BYTES + payload.len());
    message.extend_from_slice(&id.to_le_bytes());
    message.extend_from_slice(&command.to_le_bytes());
    message.extend_from_slice(&((HEADER_BYTES + payload.len()) as u32).to_le_bytes());
    message.extend_from_slice(&[0u8; 8]);
    message.extend_from_slice(payload);
    stream
        .write_all(&message)
        .map_err(Error::system("sending to the device"))?;
    let mut header = [0u8; HEADER_BYTES];
    let lost = "reading the device's reply";
    stream
        .read_exact(&mut header)
        .map_err(Error::system(lost))?;
    let word = |at: usize| {
        u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
    };
    let size = word(4) as usize;
    if word(0) != u32::from(id) | u32::from(command) << 16
        || word(8) != REPLY
        || !(HEADER_BYTES..=MESSAGE_BYTES_MAX).contains(&size)
    {
        return Err(Error::Peer(format!(
            "command {command} was answered with {header:02x?}"
        )));
    }
    let mut rest = vec![0u8; size - HEADER_BYTES];
    stream.read_exact(&mut rest).map_err(Error::system(lost))
}
