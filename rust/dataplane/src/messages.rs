// SPDX-License-Identifier: Apache-2.0
//! The messages of a stream socket, read with as few system calls as one at a time allows.
//!
//! Known here is the header of a vfio-user message (id, command, size, flags, error), because sizes frame the stream.
//! The kernel gives out descriptors with the bytes they came with, and ends a read behind them; they belong to the
//! message that the last byte of the read is of.

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;

/// Bytes of a header.
pub(crate) const HEADER_BYTES: usize = 16;
/// Linux sends no more descriptors than this with one message (SCM_MAX_FD).
const FDS_MAX: usize = 253;
const CONTROL_WORDS: usize = (FDS_MAX * mem::size_of::<i32>()).div_ceil(8) + 4;
const FLAGS_REPLY: u32 = 1;

/// As much of a message as was read.
#[derive(Debug, Default)]
pub struct Received {
    /// Bytes of the message's beginning. Less than a header: the stream has ended, or reading failed, which the next
    /// read finds again.
    pub bytes: Vec<u8>,
    /// Its descriptors so far.
    pub fds: Vec<OwnedFd>,
    /// The kernel had more descriptors than this process may open.
    pub lacks_fds: bool,
}

impl Received {
    /// The payload so far.
    pub(crate) fn payload(&self) -> &[u8] {
        self.bytes.get(HEADER_BYTES..).unwrap_or_default()
    }

    /// What was read behind this message of `size` bytes, the descriptors from `own_fds` on with it.
    fn split_off(&mut self, size: usize, own_fds: usize) -> Self {
        let end = size.max(HEADER_BYTES);
        if self.bytes.len() <= end {
            return Self::default();
        }
        Self {
            bytes: self.bytes.split_off(end),
            fds: self.fds.split_off(own_fds),
            lacks_fds: false,
        }
    }
}

/// What was read of messages behind the one that is being read.
#[derive(Debug, Default)]
pub(crate) struct Ahead(Received);

impl Ahead {
    /// Whether nothing was.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.bytes.is_empty()
    }

    /// Read a header, and with it what has come of the first `at_least` bytes, some of which may be those of messages
    /// behind it. None: it has not come that far.
    pub(crate) fn begin(
        &mut self,
        socket: BorrowedFd<'_>,
        at_least: usize,
    ) -> (Received, Option<Header>) {
        let mut message = mem::take(&mut self.0);
        // Those that came with earlier bytes than the last ones.
        let mut own_fds = 0;
        loop {
            if let Some(header) = Header::of(&message) {
                self.0 = message.split_off(header.size as usize, own_fds);
                return (message, Some(header));
            }
            own_fds = message.fds.len();
            if message.lacks_fds || !read_some(socket, &mut message, at_least.max(HEADER_BYTES)) {
                return (message, None);
            }
        }
    }
}

/// Read until the message has `size` bytes; false where the stream ends before, or reading fails.
pub(crate) fn complete(socket: BorrowedFd<'_>, message: &mut Received, size: usize) -> bool {
    while message.bytes.len() < size {
        if message.lacks_fds || !read_some(socket, message, size) {
            return false;
        }
    }
    !message.lacks_fds
}

/// Read something, up to `size` bytes in all; false where nothing comes any more.
fn read_some(socket: BorrowedFd<'_>, message: &mut Received, size: usize) -> bool {
    loop {
        match receive(socket, message, size) {
            Ok(got) => return got > 0,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return false,
        }
    }
}

fn receive(socket: BorrowedFd<'_>, received: &mut Received, size: usize) -> io::Result<usize> {
    let begun = received.bytes.len();
    received.bytes.resize(size, 0);
    let space = &mut received.bytes[begun..];
    let mut part = libc::iovec {
        iov_base: space.as_mut_ptr().cast(),
        iov_len: space.len(),
    };
    let mut control = [0u64; CONTROL_WORDS];
    // SAFETY: a msghdr of zeros is a valid one: no name, no parts, no control.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_iov = &mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = mem::size_of_val(&control) as _;
    // SAFETY: the message points to the live, exclusively borrowed bytes above, with their lengths.
    let got = unsafe { libc::recvmsg(socket.as_raw_fd(), &mut message, libc::MSG_CMSG_CLOEXEC) };
    received.bytes.truncate(begun + got.max(0) as usize);
    if got < 0 {
        return Err(io::Error::last_os_error());
    }
    take_fds(&message, &mut received.fds);
    received.lacks_fds = message.msg_flags & libc::MSG_CTRUNC != 0;
    Ok(got as usize)
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

/// What all messages begin with.
#[derive(Debug)]
pub(crate) struct Header {
    id: u16,
    pub(crate) command: u16,
    /// Of the whole message.
    pub(crate) size: u32,
    pub(crate) flags: u32,
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

    /// Its reply, without an error.
    pub(crate) fn reply(&self, payload: &[u8]) -> Vec<u8> {
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
