// SPDX-License-Identifier: Apache-2.0
//! Receiving packets that lie in memory of ours already, those of a source, those that come back, and those that were read
//! ahead: what is known of one before a chain is taken makes it go to the driver with one copy, and several of them to
//! chains that are taken together.

use super::direct::Direct;
use super::inbox::Inbox;
use super::receive::{check_writable, Batch, Ended};
use crate::counters::Drop;
use crate::memory::{Memory, Range};
use crate::net::{self, HEADER_BYTES};
use crate::ring::{taken_of, Ring, RingResult, LINE_CHAINS};

/// What became of the packets of a line.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Lined {
    /// Delivered, in a chain each.
    pub(super) delivered: usize,
    /// Dropped.
    pub(super) dropped: usize,
}

impl Inbox {
    /// Whether the checksum of this packet has to be completed for the driver, which is done in the inbox.
    #[inline]
    fn has_to_complete(&self, packet: &[u8]) -> bool {
        self.completes_checksums && packet[net::FLAGS] != 0
    }

    #[inline]
    fn wants(&self, packet: &[u8]) -> Result<(), Drop> {
        net::check_length(packet.len() as u64)?;
        if self.filter.passes_all_of(packet.len()) {
            return Ok(());
        }
        self.filter.check(packet)
    }
}

impl<R: Ring + ?Sized> Batch<'_, '_, R> {
    /// Receive the next packets into chains that the ring gives out together, one each. None: none went that way; a
    /// packet that does not fit into its chain is left to the other ways. None waits in the inbox.
    #[inline]
    pub(super) fn receive_line(&mut self) -> RingResult<Option<Lined>> {
        if !self.ring.pop_line(self.memory, &mut self.inbox.line) {
            return Ok(None);
        }
        let mut done = Lined::default();
        let mut lens = [0u32; LINE_CHAINS];
        let mut result = Ok(());
        while done.delivered < LINE_CHAINS && done.dropped < LINE_CHAINS {
            let Some(offer) = self.port.offer(&self.inbox.ahead) else {
                break;
            };
            let (ticket, len) = (offer.ticket(), offer.packet.len());
            if self.inbox.has_to_complete(offer.packet) {
                break;
            }
            if let Err(reason) = self.inbox.wants(offer.packet) {
                self.port.taken(&mut self.inbox.ahead, ticket);
                self.pair.rx.counters.dropped(reason, 1);
                done.dropped += 1;
                continue;
            }
            if done.delivered == 0 {
                result = self.ring.disable_kicks(self.memory);
            }
            let single = &self.inbox.line[done.delivered];
            let place = Range::new(single.buffer.iova, len as u64);
            if result.is_err()
                || !single.is_writable
                || single.buffer.len < place.len
                || (self.waits_for_maps && !is_mapped(self.memory, single.buffer))
                || !self.memory.compose(place, |canvas| offer.write(canvas))
            {
                break;
            }
            self.port.taken(&mut self.inbox.ahead, ticket);
            self.counters.chain();
            self.counters.packet((len - HEADER_BYTES) as u64);
            lens[done.delivered] = len as u32;
            done.delivered += 1;
            self.inbox.expected = len as u64;
        }
        self.inbox.forget();
        self.give_line_back(done.delivered, lens)?;
        result.map(|()| (done.delivered + done.dropped > 0).then_some(done))
    }

    /// Use the first `count` chains of the line that was taken, and hand the others back. Where used descriptors are due
    /// in that line, and in a split ring, it can't fail, as they were found to be writable: no packet is lost.
    #[inline(always)]
    fn give_line_back(&mut self, count: usize, lens: [u32; LINE_CHAINS]) -> RingResult<()> {
        let line = &self.inbox.line;
        if count == LINE_CHAINS {
            return self.ring.push_line(self.memory, &taken_of(line), lens);
        }
        let (used, rest) = line.split_at(count);
        rest.iter()
            .rev()
            .for_each(|single| self.ring.unpop(single.taken()));
        let mut used = used.iter().zip(lens);
        used.try_for_each(|(single, len)| self.ring.push_used(self.memory, single.taken(), len))
    }

    /// Receive the next packet, if it fits into the first buffer of the next chain. None waits in the inbox.
    #[inline]
    pub(super) fn receive_offered(&mut self) -> RingResult<Direct> {
        if !self.port.lends() {
            return Ok(Direct::NotThisWay);
        }
        if !self.ring.has_available(self.memory)? {
            return Ok(Direct::Nothing(Ended::NoBuffers));
        }
        let Some(offer) = self.port.offer(&self.inbox.ahead) else {
            return Ok(Direct::Nothing(Ended::NoPackets));
        };
        let (ticket, len) = (offer.ticket(), offer.packet.len());
        if self.inbox.has_to_complete(offer.packet) {
            return Ok(Direct::NotThisWay);
        }
        if let Err(reason) = self.inbox.wants(offer.packet) {
            self.port.taken(&mut self.inbox.ahead, ticket);
            self.pair.rx.counters.dropped(reason, 1);
            return Ok(Direct::Dropped);
        }
        if !self.ring.pop(self.memory, self.chain)? {
            return Ok(Direct::Nothing(Ended::NoBuffers));
        }
        if self.waits_for_maps {
            check_writable(self.memory, self.ring, self.chain)?;
        }
        let taken = self.chain.taken;
        if let Err(fault) = self.ring.disable_kicks(self.memory) {
            self.ring.unpop(taken);
            return Err(fault);
        }
        let place = match self.chain.writable.first() {
            Some(first) if first.len >= len as u64 => Range::new(first.iova, len as u64),
            _ => Range::new(0, 0u64),
        };
        let written = place.len > 0 && self.memory.compose(place, |canvas| offer.write(canvas));
        if !written {
            // The usual way finds out why, or takes more buffers.
            self.ring.unpop(taken);
            return Ok(Direct::NotThisWay);
        }
        self.ring.push_used(self.memory, taken, len as u32)?;
        self.port.taken(&mut self.inbox.ahead, ticket);
        self.counters.chain();
        self.counters.packet((len - HEADER_BYTES) as u64);
        Ok(Direct::Delivered { chains: 1 })
    }
}

/// Whether all of a buffer can be written to, as `check_writable` finds out. The usual way asks for what is missing.
fn is_mapped(memory: &Memory<'_>, buffer: Range) -> bool {
    let is_mapped = memory.check(buffer, true).is_ok();
    if !is_mapped {
        memory.forget_miss();
    }
    is_mapped
}
