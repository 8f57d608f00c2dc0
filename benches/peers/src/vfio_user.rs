// SPDX-License-Identifier: Apache-2.0
//! As much of a vfio-user client as the bench needs: one request at a time, each waits for its reply.

use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use crate::error::{Error, Result};

/// Bytes of a header.
pub const HEADER_BYTES: usize = 16;
/// Flags of a reply without an error.
pub const REPLY: u32 = 1;

const COMMAND_VERSION: u16 = 1;
const COMMAND_DMA_MAP: u16 = 2;
const COMMAND_REGION_WRITE: u16 = 10;
const MAP_BYTES: u32 = 32;
const READ_WRITE: u32 = 3;
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

/// Map `bytes` of a file, from `offset` on, for the device.
pub fn dma_map(
    stream: &mut UnixStream,
    memory: &OwnedFd,
    offset: u64,
    iova: u64,
    bytes: u64,
) -> Result<()> {
    let mut payload = [0u8; MAP_BYTES as usize];
    payload[..4].copy_from_slice(&MAP_BYTES.to_le_bytes());
    payload[4..8].copy_from_slice(&READ_WRITE.to_le_bytes());
    payload[8..16].copy_from_slice(&offset.to_le_bytes());
    payload[16..24].copy_from_slice(&iova.to_le_bytes());
    payload[24..].copy_from_slice(&bytes.to_le_bytes());
    let fd = Some(memory.as_raw_fd());
    request(stream, 0, COMMAND_DMA_MAP, &payload, fd)
}

/// A file of so many bytes that is only in memory.
pub fn memory_file(bytes: u64) -> Result<OwnedFd> {
    // SAFETY: the name is a literal that ends with a zero, and the flags are known ones.
    let fd = unsafe { libc::memfd_create(c"memory".as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(Error::last("memfd_create"));
    }
    // SAFETY: the descriptor is new, and nobody else has it.
    let file = std::fs::File::from(unsafe { OwnedFd::from_raw_fd(fd) });
    file.set_len(bytes)
        .map_err(Error::system("the size of the memory"))?;
    Ok(file.into())
}

/// Something at `offset` of a region.
#[derive(Clone, Copy)]
pub struct Region {
    /// Number of the region.
    pub number: u32,
    /// Where in it.
    pub offset: u64,
}

impl Region {
    /// Write there, `place` bytes further on.
    pub fn write(self, stream: &mut UnixStream, place: u64, value: &[u8]) -> Result<()> {
        let payload = self.write_payload(place, value);
        request(stream, 0, COMMAND_REGION_WRITE, &payload, None)
    }

    fn write_payload(self, place: u64, value: &[u8]) -> Vec<u8> {
        let offset = self.offset + place;
        [
            &offset.to_le_bytes()[..],
            &self.number.to_le_bytes(),
            &(value.len() as u32).to_le_bytes(),
            value,
        ]
        .concat()
    }
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
