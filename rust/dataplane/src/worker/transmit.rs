// SPDX-License-Identifier: Apache-2.0
//! The transmit side of a pair: chains to packets.

use super::pair::{Pair, Side};
use super::queue::Queue;
use crate::backend::Sent;
use crate::counters::{BatchCounters, Drop};
use crate::memory::Memory;
use crate::net::{self, HEADER_BYTES};
use crate::ring::{with_ring, Chain, Ring, RingResult};

/// What a batch did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Transmitted {
    /// Chains used.
    pub(crate) chains: u16,
    /// The back end is full; the chain at which it was stays in the ring.
    pub(crate) is_blocked: bool,
}

impl Transmitted {
    pub(super) const NOTHING: Self = Self {
        chains: 0,
        is_blocked: false,
    };
}

impl Pair {
    /// Send up to `budget` chains under one memory guard. None: the queue is not running (any more).
    pub(super) fn transmit(&self, side: &mut Side, budget: u16) -> Option<Transmitted> {
        if side.slot.waits(&self.space) {
            return Some(Transmitted::NOTHING);
        }
        let generation = self.space.map_generation();
        let memory = self.space.lock();
        let checked = side.slot.check_areas(&self.space, &memory);
        let ring = side.slot.ring.as_mut()?;
        let chain = &mut side.chain;
        let result = checked.and_then(
            |()| with_ring!(ring, ring => self.transmit_batch(&memory, ring, chain, budget)),
        );
        match result {
            Ok((transmitted, interrupt)) => {
                self.tx.counters.dirtied(&memory);
                drop(memory);
                if interrupt {
                    self.tx.interrupt();
                }
                Some(transmitted)
            }
            Err(fault) => {
                let waits = side
                    .slot
                    .fail(&self.tx, &self.space, fault, memory, generation);
                waits.then(|| {
                    self.ask_ahead(side);
                    Transmitted::NOTHING
                })
            }
        }
    }

    fn transmit_batch(
        &self,
        memory: &Memory<'_>,
        ring: &mut (impl Ring + ?Sized),
        chain: &mut Chain,
        budget: u16,
    ) -> RingResult<(Transmitted, bool)> {
        let mut counters = BatchCounters::default();
        let sent = match self.port.bursts() {
            Some(port) => self.send_burst(port, memory, ring, chain, budget, &mut counters),
            None => self.send_chains(memory, ring, chain, budget, &mut counters),
        };
        self.tx.counters.add(&counters);
        Ok((sent?, ring.publish(memory)?))
    }

    pub(super) fn send_chains(
        &self,
        memory: &Memory<'_>,
        ring: &mut (impl Ring + ?Sized),
        chain: &mut Chain,
        budget: u16,
        counters: &mut BatchCounters,
    ) -> RingResult<Transmitted> {
        let mut done = Transmitted::NOTHING;
        while done.chains < budget && ring.pop(memory, chain)? {
            if done.chains == 0 {
                ring.disable_kicks(memory)?;
            }
            match self.send(memory, chain, counters) {
                Ok(true) => {}
                Ok(false) => {
                    ring.unpop(chain.taken);
                    done.is_blocked = true;
                    break;
                }
                Err(fault) => {
                    ring.unpop(chain.taken);
                    return Err(fault);
                }
            }
            ring.push_used(memory, chain.taken, 0)?;
            counters.chain();
            done.chains += 1;
        }
        Ok(done)
    }

    /// False: the back end is full. A packet that can't be sent at all is counted, and its chain is done.
    fn send(
        &self,
        memory: &Memory<'_>,
        chain: &Chain,
        counters: &mut BatchCounters,
    ) -> RingResult<bool> {
        if let Err(reason) = net::check_length(chain.readable_len) {
            self.tx.counters.dropped(reason, 1);
            return Ok(true);
        }
        match self.port.send(memory, &chain.readable)? {
            Sent::Done => counters.packet(chain.readable_len - HEADER_BYTES as u64),
            Sent::Blocked => return Ok(false),
            Sent::Refused { reason, .. } => self.tx.counters.dropped(reason, 1),
        }
        Ok(true)
    }
}

/// Count what a queue's own packets (announcements) came to.
pub(super) fn count_own(queue: &Queue, sent: Sent, frame_bytes: usize) {
    match sent {
        Sent::Done => queue.counters.packet(frame_bytes as u64),
        Sent::Blocked => queue.counters.dropped(Drop::Backend, 1),
        Sent::Refused { reason, .. } => queue.counters.dropped(reason, 1),
    }
}
