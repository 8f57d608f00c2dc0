// SPDX-License-Identifier: Apache-2.0
//! Transmitting the packets of several chains at a time, for ports that take them so.

use super::pair::{Pair, BATCH};
use super::transmit::Transmitted;
use crate::backend::{Sent, TapPort};
use crate::counters::{BatchCounters, Drop};
use crate::memory::{Burst, Memory};
use crate::net::{self, HEADER_BYTES};
use crate::ring::{Chain, Ring, RingFault, RingResult, Taken};

/// A chain that was taken, and what there is to send in it.
#[derive(Clone, Copy)]
struct Queued {
    taken: Taken,
    /// Bytes of the packet; the reason why it is none.
    packet: Result<u64, Drop>,
}

/// Chains that were taken and not used yet, in their order.
struct Queue {
    chains: [Queued; BATCH as usize],
    len: usize,
    /// What ended it.
    fault: Option<RingFault>,
}

impl Queue {
    fn new() -> Self {
        let none = Queued {
            taken: Taken { head: 0, slots: 0 },
            packet: Ok(0),
        };
        Self {
            chains: [none; BATCH as usize],
            len: 0,
            fault: None,
        }
    }

    /// Take chains, up to one that can't be taken: it is the next batch's, or a fault.
    fn fill<R: Ring + ?Sized>(
        &mut self,
        burst: &mut Burst<'_, '_>,
        memory: &Memory<'_>,
        ring: &mut R,
        chain: &mut Chain,
        budget: u16,
    ) {
        while self.len < usize::from(budget.min(BATCH)) {
            match self.take(burst, memory, ring, chain) {
                Ok(true) => {}
                Ok(false) => return,
                Err(fault) => {
                    self.fault = Some(fault);
                    return;
                }
            }
        }
    }

    /// False: there is no chain, or no room for one.
    #[inline]
    fn take<R: Ring + ?Sized>(
        &mut self,
        burst: &mut Burst<'_, '_>,
        memory: &Memory<'_>,
        ring: &mut R,
        chain: &mut Chain,
    ) -> RingResult<bool> {
        if !ring.pop(memory, chain)? {
            return Ok(false);
        }
        if let Err(fault) = ring.disable_kicks(memory) {
            ring.unpop(chain.taken);
            return Err(fault);
        }
        let packet = net::check_length(chain.readable_len).map(|()| chain.readable_len);
        let added = match packet {
            Ok(_) => burst.add(&chain.readable),
            Err(_) => Ok(true),
        };
        if added != Ok(true) {
            ring.unpop(chain.taken);
            return Ok(added?);
        }
        let taken = chain.taken;
        self.chains[self.len] = Queued { taken, packet };
        self.len += 1;
        Ok(true)
    }
}

impl Pair {
    /// Send up to `budget` chains.
    pub(super) fn send_burst<R: Ring + ?Sized>(
        &self,
        port: &TapPort,
        memory: &Memory<'_>,
        ring: &mut R,
        chain: &mut Chain,
        budget: u16,
        counters: &mut BatchCounters,
    ) -> RingResult<Transmitted> {
        if !ring.has_available(memory)? {
            return Ok(Transmitted::NOTHING);
        }
        let mut writer = port.writer();
        let mut burst = memory.burst(&mut writer);
        let mut queue = Queue::new();
        queue.fill(&mut burst, memory, ring, chain, budget);
        let Queue { chains, len, fault } = queue;
        if len == 0 && fault.is_none() {
            // It is in more pieces than a call takes, and goes its own way.
            return self.send_chains(memory, ring, chain, budget.min(1), counters);
        }
        let mut results = port.send_burst(&mut burst);
        let mut done = Transmitted::NOTHING;
        for queued in &chains[..len] {
            match queued.packet {
                Err(reason) => self.tx.counters.dropped(reason, 1),
                Ok(bytes) => match results.next() {
                    Some(Sent::Done) => counters.packet(bytes - HEADER_BYTES as u64),
                    Some(Sent::Refused { reason, .. }) => self.tx.counters.dropped(reason, 1),
                    Some(Sent::Blocked) => self.tx.counters.dropped(Drop::Backend, 1),
                    None => {
                        done.is_blocked = true;
                        break;
                    }
                },
            }
            ring.push_used(memory, queued.taken, 0)?;
            counters.chain();
            done.chains += 1;
        }
        let unsent = chains[usize::from(done.chains)..len].iter().rev();
        unsent.for_each(|queued| ring.unpop(queued.taken));
        match fault {
            Some(fault) if !done.is_blocked => Err(fault),
            Some(_) => {
                // Its turn comes when those before it are sent.
                memory.forget_miss();
                Ok(done)
            }
            None => Ok(done),
        }
    }
}
