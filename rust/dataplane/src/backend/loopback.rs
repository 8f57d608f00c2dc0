// SPDX-License-Identifier: Apache-2.0
//! Ports whose transmitted packets are their received ones. A flow is therefore received on the pair that sent it; what
//! a pair sends that is not active is received on one that is.

use std::collections::VecDeque;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

use parking_lot::Mutex;
use vmm_sys_util::eventfd::EventFd;

use super::steering::Steering;
use super::{copy, place, Received, Sent};
use crate::counters::Drop;
use crate::error::Result;
use crate::memory::{Memory, Range};
use crate::net;
use crate::os::new_eventfd;

/// Buffers that are kept for the next packets, so that none is allocated while packets flow.
const MAX_SPARE: usize = 64;
const MAX_SPARE_BYTES: usize = 4096;

/// What all ports share.
#[derive(Debug)]
pub(crate) struct Loopback {
    pub(super) steering: Steering,
    offloads: AtomicU64,
    depth: usize,
    lanes: Vec<Lane>,
}

/// What waits for one pair.
#[derive(Debug)]
struct Lane {
    packets: Mutex<Packets>,
    /// Signalled while there are packets.
    filled: EventFd,
}

#[derive(Debug, Default)]
struct Packets {
    waiting: VecDeque<Vec<u8>>,
    spare: Vec<Vec<u8>>,
}

impl Loopback {
    pub(super) fn new(pairs: u16, depth: usize) -> Result<Self> {
        let lane = |_| {
            Ok(Lane {
                packets: Mutex::default(),
                filled: new_eventfd()?,
            })
        };
        Ok(Self {
            steering: Steering::new(pairs),
            offloads: AtomicU64::new(u64::MAX),
            depth,
            lanes: (0..pairs).map(lane).collect::<Result<_>>()?,
        })
    }

    pub(super) fn set_offloads(&self, features: u64) {
        self.offloads.store(features, Ordering::Relaxed);
    }

    fn push(&self, pair: u16, mut packet: Vec<u8>) -> Sent {
        let offloads = self.offloads.load(Ordering::Relaxed);
        if let Err(reason) = net::loop_back(&mut packet, offloads) {
            self.lanes[usize::from(pair)].keep(packet);
            return Sent::Refused {
                reason,
                errno: libc::EOPNOTSUPP,
            };
        }
        let target = pair % self.steering.active_pairs();
        self.lanes[usize::from(target)].push(packet, self.depth)
    }
}

impl Lane {
    fn spare(&self) -> Vec<u8> {
        self.packets.lock().spare.pop().unwrap_or_default()
    }

    fn keep(&self, packet: Vec<u8>) {
        self.packets.lock().keep(packet);
    }

    fn push(&self, packet: Vec<u8>, depth: usize) -> Sent {
        let mut packets = self.packets.lock();
        if packets.waiting.len() >= depth {
            packets.keep(packet);
            return Sent::Refused {
                reason: Drop::Backend,
                errno: libc::ENOBUFS,
            };
        }
        packets.waiting.push_back(packet);
        if packets.waiting.len() == 1 {
            // Only a counter at its maximum makes this fail, and then it is signalled already.
            let _ = self.filled.write(1);
        }
        Sent::Done
    }

    /// Take a packet, unless `take` fails to.
    fn pop(&self, take: impl FnOnce(&[u8]) -> Result<Received>) -> Result<Received> {
        let mut packets = self.packets.lock();
        let Some(packet) = packets.waiting.front() else {
            return Ok(Received::Empty);
        };
        let received = take(packet)?;
        if let Some(packet) = packets.waiting.pop_front() {
            packets.keep(packet);
        }
        if packets.waiting.is_empty() {
            let _ = self.filled.read();
        }
        Ok(received)
    }
}

impl Packets {
    fn keep(&mut self, mut packet: Vec<u8>) {
        if self.spare.len() < MAX_SPARE && packet.capacity() <= MAX_SPARE_BYTES {
            packet.clear();
            self.spare.push(packet);
        }
    }
}

/// The port of one pair.
#[derive(Clone, Debug)]
pub(crate) struct LoopbackPort {
    pair: u16,
    shared: Arc<Loopback>,
}

impl LoopbackPort {
    pub(super) fn new(pair: u16, shared: Arc<Loopback>) -> Self {
        Self { pair, shared }
    }

    fn lane(&self) -> &Lane {
        &self.shared.lanes[usize::from(self.pair)]
    }

    pub(super) fn poll_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the eventfd lives as long as `self`, which the result borrows.
        unsafe { BorrowedFd::borrow_raw(self.lane().filled.as_raw_fd()) }
    }

    pub(super) fn send(&self, memory: &Memory<'_>, ranges: &[Range]) -> Result<Sent> {
        let mut packet = self.lane().spare();
        memory.gather(ranges, &mut packet)?;
        Ok(self.shared.push(self.pair, packet))
    }

    pub(super) fn send_bytes(&self, packet: &[u8]) -> Sent {
        self.shared.push(self.pair, packet.to_vec())
    }

    pub(super) fn receive(&self, buffer: &mut [u8]) -> Received {
        let received = self.lane().pop(|packet| Ok(copy(packet, buffer)));
        received.unwrap_or(Received::Empty)
    }

    pub(super) fn receive_into(
        &self,
        memory: &Memory<'_>,
        ranges: &[Range],
        spill: &mut [u8],
    ) -> Result<Received> {
        self.lane()
            .pop(|packet| place(packet, memory, ranges, spill))
    }
}
