// SPDX-License-Identifier: Apache-2.0
//! Ports whose transmitted packets are their received ones. A flow is therefore received on the pair that sent it; what
//! a pair sends that is not active is received on one that is.

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use vmm_sys_util::eventfd::EventFd;

use super::steering::Steering;
use super::{copy, place, Received, Sent};
use crate::counters::Drop;
use crate::error::Result;
use crate::memory::{Memory, Range};
use crate::net;
use crate::os::new_eventfd;

/// Buffers that are kept for the next packets, so that none is allocated while packets flow.
const MAX_SPARE: usize = 256;
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
    /// Signalled while there are packets, at least.
    filled: EventFd,
}

#[derive(Debug, Default)]
struct Packets {
    /// Packets and what is left of them; the lists below are of places in here, so that none is moved.
    all: Vec<Packet>,
    waiting: VecDeque<usize>,
    /// Without a packet; the one that was used last, and is therefore in the cache, at the end.
    spare: Vec<usize>,
    /// Without a packet and without memory.
    empty: Vec<usize>,
    /// Whether `filled` is signalled. It is while packets wait; and until somebody who looks for one finds none, so that
    /// packets that are taken as soon as they come cost no system call.
    is_signalled: bool,
}

/// A packet in memory that was that of others before, which nobody clears.
#[derive(Debug, Default)]
struct Packet {
    storage: Vec<u8>,
    len: usize,
}

impl Packet {
    fn set(&mut self, bytes: &[u8]) {
        self.len = bytes.len();
        if self.storage.len() < self.len {
            self.storage.resize(self.len, 0);
        }
        self.bytes_mut().copy_from_slice(bytes);
    }

    fn bytes(&self) -> &[u8] {
        &self.storage[..self.len]
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.storage[..self.len]
    }
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

    /// The pair that receives what `pair` sends.
    fn target_of(&self, pair: u16) -> u16 {
        pair % self.steering.active_pairs()
    }

    /// Lock what waits for a pair.
    fn turn(&self, pair: u16) -> LaneTurn<'_> {
        let lane = &self.lanes[usize::from(pair)];
        LaneTurn {
            shared: self,
            pair,
            packets: lane.packets.lock(),
            filled: &lane.filled,
        }
    }
}

/// What waits for one pair, locked: for a batch, because to lock it for each packet would make each wait until all that
/// was stored before, for a guest that runs on another processor, has got there.
pub(crate) struct LaneTurn<'a> {
    shared: &'a Loopback,
    pair: u16,
    packets: MutexGuard<'a, Packets>,
    filled: &'a EventFd,
}

impl LaneTurn<'_> {
    /// Send the packet at this place.
    #[inline(always)]
    fn push(&mut self, place: usize) -> Sent {
        let offloads = self.shared.offloads.load(Ordering::Relaxed);
        let refused = match net::loop_back(self.packets.all[place].bytes_mut(), offloads) {
            Err(reason) => Some((reason, libc::EOPNOTSUPP)),
            Ok(()) if self.packets.waiting.len() >= self.shared.depth => {
                Some((Drop::Backend, libc::ENOBUFS))
            }
            Ok(()) => None,
        };
        if let Some((reason, errno)) = refused {
            self.packets.keep(place);
            return Sent::Refused { reason, errno };
        }
        self.packets.waiting.push_back(place);
        if !std::mem::replace(&mut self.packets.is_signalled, true) {
            // Only a counter at its maximum makes this fail, and then it is signalled already.
            let _ = self.filled.write(1);
        }
        Sent::Done
    }

    /// The next packet, which is taken with [`Self::taken`].
    #[inline(always)]
    pub(crate) fn offer(&mut self) -> Option<&[u8]> {
        if self.packets.waiting.is_empty() && self.packets.is_signalled {
            self.packets.is_signalled = false;
            let _ = self.filled.read();
        }
        let place = *self.packets.waiting.front()?;
        Some(self.packets.all[place].bytes())
    }

    /// The packet that was offered is the driver's, or dropped.
    #[inline(always)]
    pub(crate) fn taken(&mut self) {
        if let Some(place) = self.packets.waiting.pop_front() {
            self.packets.keep(place);
        }
    }

    /// Take a packet, unless `take` fails to.
    fn pop(&mut self, take: impl FnOnce(&[u8]) -> Result<Received>) -> Result<Received> {
        let Some(packet) = self.offer() else {
            return Ok(Received::Empty);
        };
        let received = take(packet)?;
        self.taken();
        Ok(received)
    }

    pub(super) fn receive(&mut self, buffer: &mut [u8]) -> Received {
        let received = self.pop(|packet| Ok(copy(packet, buffer)));
        // A copy does not fail.
        received.unwrap_or(Received::Empty)
    }

    pub(super) fn receive_into(
        &mut self,
        memory: &Memory<'_>,
        ranges: &[Range],
        spill: &mut [u8],
    ) -> Result<Received> {
        self.pop(|packet| place(packet, memory, ranges, spill))
    }
}

/// A pair that sends a batch.
pub(crate) struct SendTurn<'a> {
    shared: &'a Loopback,
    from: u16,
    to: Option<LaneTurn<'a>>,
}

impl<'a> SendTurn<'a> {
    /// What waits for the pair that receives what this one sends now: the driver may have changed the number of its pairs
    /// since the last packet. One lock is given back before the other is taken, so that two pairs whose targets are
    /// exchanged don't wait for each other.
    #[inline(always)]
    fn lane(&mut self) -> &mut LaneTurn<'a> {
        let target = self.shared.target_of(self.from);
        if self.to.as_ref().is_some_and(|to| to.pair != target) {
            self.to = None;
        }
        self.to.get_or_insert_with(|| self.shared.turn(target))
    }

    /// As [`LoopbackPort::send`].
    #[inline(always)]
    pub(super) fn send(&mut self, memory: &Memory<'_>, ranges: &[Range]) -> Result<Sent> {
        let lane = self.lane();
        let place = lane.packets.place();
        let packet = &mut lane.packets.all[place];
        match memory.gather_over(ranges, &mut packet.storage) {
            Ok(len) => {
                packet.len = len;
                Ok(lane.push(place))
            }
            Err(error) => {
                lane.packets.keep(place);
                Err(error)
            }
        }
    }

    fn send_bytes(&mut self, packet: &[u8]) -> Sent {
        let lane = self.lane();
        let place = lane.packets.place();
        lane.packets.all[place].set(packet);
        lane.push(place)
    }
}

impl Packets {
    /// Where the next packet goes.
    #[inline(always)]
    fn place(&mut self) -> usize {
        let place = self.spare.pop().or_else(|| self.empty.pop());
        place.unwrap_or_else(|| {
            self.all.push(Packet::default());
            self.all.len() - 1
        })
    }

    /// The packet at this place is done with.
    #[inline(always)]
    fn keep(&mut self, place: usize) {
        let storage = &mut self.all[place].storage;
        if self.spare.len() >= MAX_SPARE || storage.capacity() > MAX_SPARE_BYTES {
            *storage = Vec::new();
            self.empty.push(place);
        } else {
            self.spare.push(place);
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

    pub(super) fn poll_fd(&self) -> BorrowedFd<'_> {
        let lane = &self.shared.lanes[usize::from(self.pair)];
        // SAFETY: the eventfd lives as long as `self`, which the result borrows.
        unsafe { BorrowedFd::borrow_raw(lane.filled.as_raw_fd()) }
    }

    /// For the packets of a batch that are sent.
    pub(super) fn send_turn(&self) -> SendTurn<'_> {
        SendTurn {
            shared: &self.shared,
            from: self.pair,
            to: None,
        }
    }

    /// For the packets of a batch that are received.
    pub(super) fn receive_turn(&self) -> LaneTurn<'_> {
        self.shared.turn(self.pair)
    }

    pub(super) fn send(&self, memory: &Memory<'_>, ranges: &[Range]) -> Result<Sent> {
        self.send_turn().send(memory, ranges)
    }

    pub(super) fn send_bytes(&self, packet: &[u8]) -> Sent {
        self.send_turn().send_bytes(packet)
    }

    pub(super) fn receive(&self, buffer: &mut [u8]) -> Received {
        self.receive_turn().receive(buffer)
    }
}
