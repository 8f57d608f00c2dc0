// SPDX-License-Identifier: Apache-2.0
//! A port whose transmitted packets are its received ones.

use std::collections::VecDeque;
use std::os::fd::{AsRawFd, BorrowedFd};

use parking_lot::Mutex;
use vmm_sys_util::eventfd::{EventFd, EFD_NONBLOCK};

use super::{Received, Sent};
use crate::counters::Drop;
use crate::error::{Error, Result};
use crate::memory::{Memory, Range};
use crate::net;

#[derive(Debug)]
pub(crate) struct LoopbackPort {
    packets: Mutex<VecDeque<Vec<u8>>>,
    depth: usize,
    /// Signalled while there are packets.
    filled: EventFd,
}

impl LoopbackPort {
    pub(super) fn new(depth: usize) -> Result<Self> {
        let filled = EventFd::new(EFD_NONBLOCK).map_err(|error| Error::Backend {
            errno: error.raw_os_error().unwrap_or(0),
            message: format!("no eventfd for a loopback port: {error}"),
        })?;
        Ok(Self {
            packets: Mutex::default(),
            depth,
            filled,
        })
    }

    pub(super) fn poll_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the eventfd lives as long as `self`, which the result borrows.
        unsafe { BorrowedFd::borrow_raw(self.filled.as_raw_fd()) }
    }

    pub(super) fn send(&self, memory: &Memory<'_>, ranges: &[Range]) -> Result<Sent> {
        let mut packet = Vec::new();
        memory.gather(ranges, &mut packet)?;
        Ok(self.push(packet))
    }

    pub(super) fn push(&self, mut packet: Vec<u8>) -> Sent {
        net::loop_back(&mut packet);
        let mut packets = self.packets.lock();
        if packets.len() >= self.depth {
            return Sent::Refused {
                reason: Drop::Backend,
                errno: libc::ENOBUFS,
            };
        }
        packets.push_back(packet);
        if packets.len() == 1 {
            // Only a counter at its maximum makes this fail, and then it is signalled already.
            let _ = self.filled.write(1);
        }
        Sent::Done
    }

    pub(super) fn receive(&self, buffer: &mut [u8]) -> Received {
        let mut packets = self.packets.lock();
        let Some(packet) = packets.pop_front() else {
            return Received::Empty;
        };
        if packets.is_empty() {
            let _ = self.filled.read();
        }
        let len = packet.len().min(buffer.len());
        buffer[..len].copy_from_slice(&packet[..len]);
        Received::Packet(len)
    }
}
