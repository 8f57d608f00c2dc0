// SPDX-License-Identifier: Apache-2.0
//! Receiving long packets straight into the buffers of the driver, for ports that can.
//!
//! Chains are taken before the length of the packet is known: as many as the packet before needed. What does not fit
//! into them goes to the inbox, from where it is copied into further chains, or where the whole packet waits until the
//! driver offers enough. Chains that turn out not to be needed are handed back. Where something was written to them by
//! then, because nobody wants the packet, that is marked as every store is.

use super::inbox::Inbox;
use super::offered::Lined;
use super::receive::{check_writable, Batch, Delivery, Ended};
use crate::backend::{Received, LONG_BYTES};
use crate::counters::Drop;
use crate::filter::FILTERED_BYTES;
use crate::net;
use crate::ring::{Ring, RingResult};

/// What came of an attempt.
pub(super) enum Direct {
    /// A packet is the driver's, in so many chains.
    Delivered { chains: usize },
    /// There was a packet that nobody gets.
    Dropped,
    /// Several packets are done with.
    Line(Lined),
    /// The way through the inbox has to be taken, now or from now on.
    NotThisWay,
    /// There is nothing to do.
    Nothing(Ended),
}

impl Inbox {
    /// Whether the next packet should go straight to the driver: a list of two places to read to costs the kernel more than
    /// we pay for a copy of a shorter one.
    pub(super) fn goes_direct(&self) -> bool {
        self.expected >= LONG_BYTES as u64 && self.is_direct && self.is_empty()
    }
}

impl<R: Ring + ?Sized> Batch<'_, '_, R> {
    /// Receive the next packet. None waits in the inbox.
    pub(super) fn receive_direct(&mut self) -> RingResult<Direct> {
        self.inbox.begin();
        let result = self.try_direct();
        if !matches!(result, Ok(Direct::Delivered { .. })) {
            self.hand_back(0);
        }
        result
    }

    fn try_direct(&mut self) -> RingResult<Direct> {
        if !self.take_chains()? {
            return Ok(Direct::Nothing(Ended::NoBuffers));
        }
        if !self.inbox.is_direct {
            return Ok(Direct::NotThisWay);
        }
        let inbox = &mut *self.inbox;
        let (ranges, spill) = (&inbox.ranges, inbox.ahead.first());
        match self.port.receive_into(self.memory, ranges, spill)? {
            Received::Empty => Ok(Direct::Nothing(Ended::NoPackets)),
            Received::Packet(len) => self.place(len),
            Received::Failed(libc::EFAULT) => {
                // A file that has shrunk, which was recorded. The other way has memory of our own there.
                self.inbox.is_direct = false;
                Ok(self.drop_packet(Drop::Backend))
            }
            Received::Failed(errno) => Ok(Direct::Nothing(Ended::BackendGone { errno })),
        }
    }

    /// A packet of `len` bytes lies in the chains, its end in the inbox.
    fn place(&mut self, len: usize) -> RingResult<Direct> {
        if let Err(reason) = self.check(len)? {
            return Ok(self.drop_packet(reason));
        }
        self.inbox.expected = len as u64;
        let room = self.inbox.room;
        if self.inbox.completes_checksums && self.has_flags()? {
            return self.complete_checksum(len);
        }
        if len as u64 > room {
            match self.take_spilt(len) {
                Ok(Delivery::Done) => {}
                Ok(Delivery::TooLong) => return Ok(self.drop_packet(Drop::TooLong)),
                Ok(Delivery::NoBuffers) => {
                    self.keep(len, room)?;
                    return Ok(Direct::NotThisWay);
                }
                Err(fault) => {
                    self.keep(len, room)?;
                    return Err(fault);
                }
            }
        }
        self.finish(len)?;
        let chains = self.inbox.used.len();
        Ok(Direct::Delivered { chains })
    }

    fn drop_packet(&self, reason: Drop) -> Direct {
        self.pair.rx.counters.dropped(reason, 1);
        Direct::Dropped
    }

    /// Take a chain, and further ones as long as a packet like the last one would not fit. False: there is none.
    fn take_chains(&mut self) -> RingResult<bool> {
        while self.inbox.room < self.inbox.expected.max(1) && self.may_take_another() {
            match self.take_one() {
                Ok(true) => {}
                Ok(false) => break,
                // What is wrong with a chain is told when its turn comes.
                Err(_) if !self.inbox.used.is_empty() => {
                    self.memory.forget_miss();
                    break;
                }
                Err(fault) => return Err(fault),
            }
        }
        Ok(!self.inbox.used.is_empty())
    }

    /// Take one chain that can be written to, and read: a packet may have to be taken back out of it. Behind an IOMMU
    /// receive buffers are often for writing alone.
    fn take_one(&mut self) -> RingResult<bool> {
        if !self.ring.pop(self.memory, self.chain)? {
            return Ok(false);
        }
        // First: a chain of which something was asked for does not go the other way before that has come.
        check_writable(self.memory, self.ring, self.chain)?;
        let mut ranges = self.chain.writable.iter();
        if ranges.any(|range| self.memory.check(*range, false).is_err()) {
            self.memory.forget_miss();
            self.inbox.is_direct = false;
        }
        self.inbox.add(self.chain);
        Ok(true)
    }

    /// Whether somebody wants the packet.
    fn check(&mut self, len: usize) -> RingResult<Result<(), Drop>> {
        if let Err(reason) = net::check_length(len as u64) {
            return Ok(Err(reason));
        }
        let inbox = &mut *self.inbox;
        if inbox.filter.passes_all() {
            return Ok(Ok(()));
        }
        let mut head = [0; FILTERED_BYTES];
        let head = &mut head[..len.min(FILTERED_BYTES)];
        let placed = self.memory.read_ranges(&inbox.ranges, head)?;
        let spilt = head.len() - placed;
        head[placed..].copy_from_slice(&inbox.ahead.first()[..spilt]);
        Ok(inbox.filter.check_head(head, len))
    }

    /// Whether the header of the packet says something of its checksum.
    fn has_flags(&self) -> RingResult<bool> {
        let mut head = [0; net::FLAGS + 1];
        self.memory.read_ranges(&self.inbox.ranges, &mut head)?;
        Ok(head[net::FLAGS] != 0)
    }

    /// A packet with flags, for a driver that knows none: it is taken back, completed, and goes the other way.
    fn complete_checksum(&mut self, len: usize) -> RingResult<Direct> {
        self.keep(len, self.inbox.room.min(len as u64))?;
        if let Err(reason) = net::complete(&mut self.inbox.ahead.first()[..len]) {
            self.inbox.remove();
            return Ok(self.drop_packet(reason));
        }
        Ok(Direct::NotThisWay)
    }

    /// Put what did not fit into further chains.
    fn take_spilt(&mut self, len: usize) -> RingResult<Delivery> {
        let (room, ranges) = (self.inbox.room as usize, self.inbox.ranges.len());
        let collected = self.collect(len as u64)?;
        if matches!(collected, Delivery::Done) {
            let spilt = &self.inbox.ahead.first()[..len - room];
            self.memory.scatter(&self.inbox.ranges[ranges..], spilt)?;
        }
        Ok(collected)
    }

    /// Take the packet back, the first `placed` bytes of which are in the chains: it waits in the inbox.
    fn keep(&mut self, len: usize, placed: u64) -> RingResult<()> {
        let inbox = &mut *self.inbox;
        let placed = placed as usize;
        let slot = inbox.ahead.first();
        slot.copy_within(..len - placed, placed);
        self.memory
            .read_ranges(&inbox.ranges, &mut slot[..placed])?;
        inbox.keep(len);
        Ok(())
    }

    /// Hand back what the packet does not need, complete its header, and use the chains that hold it.
    fn finish(&mut self, len: usize) -> RingResult<()> {
        let mut left = len as u64;
        let holds_some = |(_, room): &&(_, u64)| {
            let holds = left > 0;
            left = left.saturating_sub(*room);
            holds
        };
        let needed = self.inbox.used.iter().take_while(holds_some).count();
        self.hand_back(needed);
        let result = self.complete(needed as u16);
        if let Err(fault) = result {
            self.keep(len, len as u64)?;
            return Err(fault);
        }
        let result = self.give_back(len);
        if result.is_err() {
            // Some of them are used already.
            self.inbox.used.clear();
        }
        result
    }

    /// The port leaves num_buffers to us (virtio 1.3 5.1.6.4.1).
    fn complete(&mut self, num_buffers: u16) -> RingResult<()> {
        let place = net::NUM_BUFFERS as u64;
        self.memory
            .scatter_at(&self.inbox.ranges, place, &num_buffers.to_le_bytes())?;
        self.ring.disable_kicks(self.memory)
    }

    /// Hand back all chains but the first `keep`, the last one first.
    fn hand_back(&mut self, keep: usize) {
        for (taken, _) in self.inbox.used.drain(keep..).rev() {
            self.ring.unpop(taken);
        }
    }
}
