// SPDX-License-Identifier: Apache-2.0
//! As much of a vfio-user client as the bench needs: one request at a time, each waits for its reply.

use std::io::{Read, Write};
use std::os::fd::RawFd;
use std::os::unix::net::UnixStream;

use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use crate::error::{Error, Result};

/// Bytes of a header.
pub const HEADER_BYTES: usize = 16;
/// Flags of a reply without an error.
pub const REPLY: u32 = 1;

const COMMAND_VERSION: u16 = 1;
const MESSAGE_BYTES_MAX: usize = 4096;
const CAPABILITIES: &[u8] = b"{\"capabilities\":{\"max_msg_fds\":8}}\0";

/// Connect to a device and agree on the version.
pub fn connect(socket: &str) -> Result<UnixStream> {
    let mut stream = UnixStream::connect(socket).map_err(Error::system(socket.to_owned()))?;
    let version = [&[0u8; 4][..], CAPABILITIES].concat();
    request(&mut stream, 0, COMMAND_VERSION, &version, None)?;
    Ok(stream)
}

/// Send a command, with a descriptor if there is one, and read its reply.
pub fn request(
    stream: &mut UnixStream,
    id: u16,
    command: u16,
    payload: &[u8],
    fd: Option<RawFd>,
) -> Result<()> {
    let mut message = Vec::with_capacity(HEADER_BYTES + payload.len());
    message.extend_from_slice(&id.to_le_bytes());
    message.extend_from_slice(&command.to_le_bytes());
    message.extend_from_slice(&((HEADER_BYTES + payload.len()) as u32).to_le_bytes());
    message.extend_from_slice(&[0u8; 8]);
    message.extend_from_slice(payload);
    send(stream, &message, fd)?;
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
    let mut rest = [0u8; MESSAGE_BYTES_MAX];
    stream
        .read_exact(&mut rest[..size - HEADER_BYTES])
        .map_err(Error::system(lost))
}

fn send(stream: &mut UnixStream, message: &[u8], fd: Option<RawFd>) -> Result<()> {
    let what = "sending to the device";
    let Some(fd) = fd else {
        return stream.write_all(message).map_err(Error::system(what));
    };
    let sent = stream
        .send_with_fd(message, fd)
        .map_err(|error| Error::system(what)(std::io::Error::from_raw_os_error(error.errno())))?;
    stream
        .write_all(&message[sent..])
        .map_err(Error::system(what))
}
