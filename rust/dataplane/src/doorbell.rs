// SPDX-License-Identifier: Apache-2.0
//! Doorbells and maps that arrive as messages on a socket: carried out and answered here, the rest is left to the
//! caller.
//!
//! What such a message looks like is the caller's business, down to the byte. Known here is the header of a
//! vfio-user message (id, command, size, flags, error), because ids differ and sizes frame the stream.

use std::collections::HashMap;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

use parking_lot::RwLock;

use crate::error::{Error, Result};
use crate::map_messages::MapMessages;
use crate::worker::Signal;

/// Bytes of a header.
pub const HEADER_BYTES: usize = 16;
/// The longest payload of a message that is dealt with here.
pub const PAYLOAD_BYTES_MAX: usize = 64;
/// Linux sends no more descriptors than this with one message (SCM_MAX_FD).
const FDS_MAX: usize = 253;
const CONTROL_WORDS: usize = (FDS_MAX * mem::size_of::<i32>()).div_ceil(8) + 4;

const FLAGS_COMMAND: u32 = 0;
const FLAGS_REPLY: u32 = 1;
const FLAGS_POSTED: u32 = 0x10;

/// What came that is left to the caller: the header, as much of the payload as was read, the descriptors that came along.
/// Less than a header: the stream has ended, or reading failed, which the next read finds again.
#[derive(Debug, Default)]
pub struct Received {
    /// Bytes of the message's beginning.
    pub bytes: Vec<u8>,
    /// Its descriptors so far.
    pub fds: Vec<OwnedFd>,
    /// The kernel had more descriptors than this process may open.
    pub lacks_fds: bool,
}

/// A connected stream socket of which one thread reads.
#[derive(Debug)]
pub struct DoorbellSocket {
    socket: OwnedFd,
    command: u16,
    repeated_bytes: usize,
    by_payload: RwLock<HashMap<Box<[u8]>, Arc<Signal>>>,
    maps: RwLock<Option<MapMessages>>,
    is_watched: AtomicBool,
}

impl DoorbellSocket {
    /// Doorbells come as messages of this command, and are answered with the first `repeated_bytes` of their payload.
    /// No payload is a doorbell's yet.
    pub fn new(socket: OwnedFd, command: u16, repeated_bytes: usize) -> Self {
        Self {
            socket,
            command,
            repeated_bytes,
            by_payload: RwLock::default(),
            maps: RwLock::default(),
            is_watched: AtomicBool::new(false),
        }
    }

    /// From now on a message with exactly one of these payloads signals the eventfd.
    ///
    /// Errors: a payload that is too long or shorter than what is repeated; an fd that takes no flags.
    pub fn add<P: AsRef<[u8]>>(&self, payloads: &[P], fd: OwnedFd) -> Result<()> {
        let signal = Arc::new(Signal::new(fd)?);
        let mut by_payload = self.by_payload.write();
        for payload in payloads {
            let payload = payload.as_ref();
            if !(self.repeated_bytes..=PAYLOAD_BYTES_MAX).contains(&payload.len()) {
                return Err(Error::State(format!(
                    "a doorbell's payload of {} bytes: expected {} to {PAYLOAD_BYTES_MAX}",
                    payload.len(),
                    self.repeated_bytes
                )));
            }
            by_payload.insert(payload.into(), Arc::clone(&signal));
        }
        Ok(())
    }

    /// From now on messages of these forms change their space.
    pub fn serve_maps(&self, maps: MapMessages) {
        *self.maps.write() = Some(maps);
    }

    /// While somebody watches, every message is the caller's.
    pub fn set_watched(&self, is_watched: bool) {
        self.is_watched.store(is_watched, Ordering::SeqCst);
    }

    /// Serve doorbells and maps until another message begins; wait for it.
    ///
    /// Errors: a reply can't be sent, which ends the connection.
    pub fn receive(&self) -> io::Result<Received> {
        loop {
            let mut received = Received::default();
            self.read(&mut received, HEADER_BYTES);
            let Some(header) = Header::of(&received) else {
                return Ok(received);
            };
            if self.is_watched.load(Ordering::SeqCst) || !self.is_candidate(&header, &received) {
                return Ok(received);
            }
            self.read(&mut received, header.size as usize);
            if received.bytes.len() != header.size as usize || received.lacks_fds {
                return Ok(received);
            }
            if !self.ring(&header, &received)? && !self.change_maps(&header, &received)? {
                return Ok(received);
            }
        }
    }

    fn is_candidate(&self, header: &Header, received: &Received) -> bool {
        let longest = (HEADER_BYTES + PAYLOAD_BYTES_MAX) as u32;
        if !matches!(header.flags, FLAGS_COMMAND | FLAGS_POSTED)
            || !(HEADER_BYTES as u32..=longest).contains(&header.size)
        {
            return false;
        }
        if header.command == self.command {
            return received.fds.is_empty();
        }
        let payload_bytes = header.size as usize - HEADER_BYTES;
        let maps = self.maps.read();
        maps.as_ref()
            .is_some_and(|maps| maps.may_be(header.command, payload_bytes))
    }

    /// Whether it was a doorbell.
    fn ring(&self, header: &Header, received: &Received) -> io::Result<bool> {
        if header.command != self.command || !received.fds.is_empty() {
            return Ok(false);
        }
        let payload = &received.bytes[HEADER_BYTES..];
        match self.by_payload.read().get(payload) {
            Some(signal) => signal.raise(),
            None => return Ok(false),
        }
        self.answer(header, &payload[..self.repeated_bytes])
            .map(|()| true)
    }

    /// Whether it was a map or unmap that could be carried out.
    fn change_maps(&self, header: &Header, received: &Received) -> io::Result<bool> {
        let payload = &received.bytes[HEADER_BYTES..];
        let maps = self.maps.read();
        let repeated = maps
            .as_ref()
            .and_then(|maps| maps.carry_out(header.command, payload, &received.fds));
        match repeated {
            Some(bytes) => self.answer(header, &payload[..bytes]).map(|()| true),
            None => Ok(false),
        }
    }

    fn answer(&self, header: &Header, payload: &[u8]) -> io::Result<()> {
        if header.flags == FLAGS_COMMAND {
            self.send(&header.reply(payload))
        } else {
            Ok(())
        }
    }

    /// Read until the message has `size` bytes, the stream ends or reading fails.
    fn read(&self, received: &mut Received, size: usize) {
        while received.bytes.len() < size && !received.lacks_fds {
            match self.read_some(received, size) {
                Ok(0) => return,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    }

    /// Never more than one message's bytes at once: the kernel gives out descriptors with the bytes they came with.
    fn read_some(&self, received: &mut Received, size: usize) -> io::Result<usize> {
        let mut space = [0u8; HEADER_BYTES + PAYLOAD_BYTES_MAX];
        let wanted = size - received.bytes.len();
        let mut part = libc::iovec {
            iov_base: space.as_mut_ptr().cast(),
            iov_len: wanted.min(space.len()),
        };
        let mut control = [0u64; CONTROL_WORDS];
        // SAFETY: a msghdr of zeros is a valid one: no name, no parts, no control.
        let mut message: libc::msghdr = unsafe { mem::zeroed() };
        message.msg_iov = &mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = mem::size_of_val(&control) as _;
        // SAFETY: the message points to the live arrays above, with their lengths.
        let got = unsafe {
            libc::recvmsg(
                self.socket.as_raw_fd(),
                &mut message,
                libc::MSG_CMSG_CLOEXEC,
            )
        };
        if got < 0 {
            return Err(io::Error::last_os_error());
        }
        take_fds(&message, &mut received.fds);
        received.lacks_fds = message.msg_flags & libc::MSG_CTRUNC != 0;
        received.bytes.extend_from_slice(&space[..got as usize]);
        Ok(got as usize)
    }

    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        let mut rest = bytes;
        while !rest.is_empty() {
            // SAFETY: the pointer and the length are those of a live slice, which is only read.
            let sent = unsafe {
                libc::send(
                    self.socket.as_raw_fd(),
                    rest.as_ptr().cast(),
                    rest.len(),
                    libc::MSG_NOSIGNAL,
                )
            };
            match usize::try_from(sent) {
                Ok(sent) => rest = &rest[sent..],
                Err(_) => {
                    let error = io::Error::last_os_error();
                    if error.kind() != io::ErrorKind::Interrupted {
                        return Err(error);
                    }
                }
            }
        }
        Ok(())
    }
}

/// Every descriptor in the control messages of a message that has just been received.
fn take_fds(message: &libc::msghdr, fds: &mut Vec<OwnedFd>) {
    // SAFETY: recvmsg has filled the control buffer of this message, which is alive and aligned; CMSG_NXTHDR stays
    // inside of it. The kernel has opened the descriptors of SCM_RIGHTS for this process, and nobody else has them.
    unsafe {
        let mut head = libc::CMSG_FIRSTHDR(message);
        while !head.is_null() {
            if (*head).cmsg_level == libc::SOL_SOCKET && (*head).cmsg_type == libc::SCM_RIGHTS {
                let bytes = (*head).cmsg_len as usize - libc::CMSG_LEN(0) as usize;
                let data: *const i32 = libc::CMSG_DATA(head).cast();
                for position in 0..bytes / mem::size_of::<i32>() {
                    let fd = ptr::read_unaligned(data.add(position));
                    fds.push(OwnedFd::from_raw_fd(fd));
                }
            }
            head = libc::CMSG_NXTHDR(message, head);
        }
    }
}

#[derive(Debug)]
struct Header {
    id: u16,
    command: u16,
    size: u32,
    flags: u32,
}

impl Header {
    /// None for a message that has not come that far, or came without all of its descriptors.
    fn of(received: &Received) -> Option<Self> {
        let bytes = received.bytes.get(..HEADER_BYTES)?;
        let word = |at: usize| {
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        (!received.lacks_fds).then(|| Self {
            id: word(0) as u16,
            command: (word(0) >> 16) as u16,
            size: word(4),
            flags: word(8),
        })
    }

    fn reply(&self, payload: &[u8]) -> Vec<u8> {
        let mut reply = Vec::with_capacity(HEADER_BYTES + payload.len());
        reply.extend_from_slice(&self.id.to_le_bytes());
        reply.extend_from_slice(&self.command.to_le_bytes());
        reply.extend_from_slice(&((HEADER_BYTES + payload.len()) as u32).to_le_bytes());
        reply.extend_from_slice(&FLAGS_REPLY.to_le_bytes());
        reply.extend_from_slice(&0u32.to_le_bytes());
        reply.extend_from_slice(payload);
        reply
    }
}
