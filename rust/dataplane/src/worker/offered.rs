// SPDX-License-Identifier: Apache-2.0
//! Receiving packets that lie in memory of ours already, those of a source: what is known of one before a chain is
//! taken makes it go to the driver with one copy.

use super::direct::Direct;
use super::receive::{Batch, Ended};
use crate::backend::Receiver;
use crate::memory::Range;
use crate::net::HEADER_BYTES;
use crate::ring::{Ring, RingResult};

impl<R: Ring + ?Sized> Batch<'_, '_, R> {
    /// Receive the next packet, if it fits into the first buffer of the next chain. None waits in the inbox.
    #[inline]
    pub(super) fn receive_offered(&mut self) -> RingResult<Direct> {
        let Receiver::Source(source) = &mut self.port else {
            return Ok(Direct::NotThisWay);
        };
        if !self.ring.has_available(self.memory)? {
            return Ok(Direct::Nothing(Ended::NoBuffers));
        }
        let Some(offer) = source.offer() else {
            return Ok(Direct::Nothing(Ended::NoPackets));
        };
        let (flow, len) = (offer.flow, offer.packet.len());
        if let Err(reason) = self.inbox.filter.check(offer.packet) {
            source.taken(flow);
            self.pair.rx.counters.dropped(reason, 1);
            return Ok(Direct::Dropped);
        }
        if !self.ring.pop(self.memory, self.chain)? {
            return Ok(Direct::Nothing(Ended::NoBuffers));
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
        source.taken(flow);
        self.counters.chain();
        self.counters.packet((len - HEADER_BYTES) as u64);
        Ok(Direct::Delivered { chains: 1 })
    }
}
