// SPDX-License-Identifier: Apache-2.0
//! A port on one queue of a Linux tap device. The tap carries the virtio-net header itself (vnet_hdr_sz 12), so
//! that packets pass without a copy from guest memory. Sockets that keep packet boundaries work the same way.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use parking_lot::{Mutex, MutexGuard};

use super::slots::{self, received, Slots};
use super::{Received, Sent};
use crate::counters::Drop;
use crate::error::{Error, Result};
use crate::memory::{Burst, BurstWriter, Memory, Range};
use crate::net::HEADER_BYTES;
use crate::os::set_nonblocking;

// _IOR('T', 215, int); the same on x86-64 and arm64. libc has it for neither.
const TUNGETVNETHDRSZ: libc::c_ulong = 0x8004_54d7;
// _IOR('T', 211, int).
const TUNGETSNDBUF: libc::c_ulong = 0x8004_54d3;

#[derive(Debug)]
pub(crate) struct TapPort {
    fd: OwnedFd,
    writer: Mutex<BurstWriter>,
}

impl TapPort {
    pub(super) fn new(fd: OwnedFd) -> Result<Self> {
        set_nonblocking(fd.as_fd()).map_err(|error| Error::Backend {
            errno: error.raw_os_error().unwrap_or(0),
            message: format!("tap fd can't be made non-blocking: {error}"),
        })?;
        match header_bytes(fd.as_fd()) {
            Some(bytes) if bytes != HEADER_BYTES as i32 => Err(Error::Backend {
                errno: libc::EINVAL,
                message: format!(
                    "tap with a virtio-net header of {bytes} bytes: expected {HEADER_BYTES} (TUNSETVNETHDRSZ)"
                ),
            }),
            _ => Ok(Self {
                writer: Mutex::new(writer_for(fd.as_fd())),
                fd,
            }),
        }
    }

    pub(super) fn poll_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    pub(super) fn send(&self, memory: &Memory<'_>, ranges: &[Range]) -> Result<Sent> {
        loop {
            match memory.writev_to(self.fd.as_fd(), ranges)? {
                Ok(_) => return Ok(Sent::Done),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Ok(refused(&error)),
            }
        }
    }

    /// What [`Memory::burst`] needs for packets to this port.
    pub(crate) fn writer(&self) -> MutexGuard<'_, BurstWriter> {
        self.writer.lock()
    }

    /// Send the packets of a burst; the results of those that were not blocked.
    pub(crate) fn send_burst<'b>(
        &self,
        burst: &'b mut Burst<'_, '_>,
    ) -> impl Iterator<Item = Sent> + 'b {
        let results = burst.write(self.fd.as_fd()).iter();
        results.map(|result| match result {
            0.. => Sent::Done,
            errno => refused(&io::Error::from_raw_os_error(errno.unsigned_abs() as i32)),
        })
    }

    pub(super) fn send_bytes(&self, packet: &[u8]) -> Sent {
        loop {
            // SAFETY: the pointer and the length are those of a live slice; write only reads it.
            let written =
                unsafe { libc::write(self.fd.as_raw_fd(), packet.as_ptr().cast(), packet.len()) };
            if written >= 0 {
                return Sent::Done;
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return refused(&error);
            }
        }
    }

    pub(super) fn receive_into(
        &self,
        memory: &Memory<'_>,
        ranges: &[Range],
        spill: &mut [u8],
    ) -> Result<Received> {
        loop {
            match received(memory.readv_spilling(self.fd.as_fd(), ranges, spill)?) {
                Some(received) => return Ok(received),
                None => continue,
            }
        }
    }

    pub(super) fn receive(&self, buffer: &mut [u8]) -> Received {
        slots::read(self.fd.as_fd(), buffer)
    }

    /// Read up to `limit` packets ahead. What ended it before that, if something did.
    pub(super) fn read_ahead(&self, slots: &mut Slots, limit: usize) -> Option<Received> {
        slots.read(self.fd.as_fd(), limit)
    }
}

/// EINVAL is how a tap refuses a header whose offsets or GSO fields make no sense for the packet.
fn refused(error: &io::Error) -> Sent {
    let errno = error.raw_os_error().unwrap_or(libc::EIO);
    match errno {
        libc::EAGAIN => Sent::Blocked,
        libc::EINVAL => Sent::Refused {
            reason: Drop::BadHeader,
            errno,
        },
        _ => Sent::Refused {
            reason: Drop::Backend,
            errno,
        },
    }
}

/// The size of the virtio-net header, or None where the fd is not a tap.
fn header_bytes(fd: BorrowedFd<'_>) -> Option<i32> {
    ask(fd, TUNGETVNETHDRSZ)
}

/// A tap takes every packet as long as nobody has limited what may be under way. Other descriptors may refuse one and
/// take the next, which would change their order.
fn writer_for(fd: BorrowedFd<'_>) -> BurstWriter {
    match ask(fd, TUNGETSNDBUF) {
        Some(libc::c_int::MAX) => BurstWriter::default(),
        _ => BurstWriter::without_ring(),
    }
}

/// What a tap says; None: the fd is none.
fn ask(fd: BorrowedFd<'_>, request: libc::c_ulong) -> Option<libc::c_int> {
    let mut answer: libc::c_int = 0;
    // SAFETY: both requests store one int through the pointer, which is that of a live int; on other kinds of files the
    // call fails.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), request as _, &mut answer) };
    (result == 0).then_some(answer)
}
