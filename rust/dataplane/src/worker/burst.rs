// SPDX-License-Identifier: Apache-2.0
//! Transmitting the packets of several chains at a time, for ports that take them so.

use super::pair::{Pair, BATCH};
use super::transmit::Transmitted;
use crate::backend::{Sent, TapPort};
use crate::counters::{BatchCounters, Drop};
use crate::memory::{Burst, Memory, Range};
use crate::net::{self, HEADER_BYTES};
use crate::ring::{Chain, Line, Ring, RingFault, RingResult, Taken, LINE_CHAINS};

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
        let limit = usize::from(budget.min(BATCH));
        let mut line = Line::default();
        while self.len < limit {
            let is_line = limit - self.len >= LINE_CHAINS && ring.pop_line(memory, &mut line);
            let taken = if is_line {
                self.take_line(burst, ring, &line)
            } else {
                self.take(burst, memory, ring, chain)
            };
            match taken {
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
        let added = self.add(burst, chain.taken, &chain.readable, chain.readable_len);
        if added != Ok(true) {
            ring.unpop(chain.taken);
        }
        added
    }

    /// The same for chains that were popped together.
    #[inline]
    fn take_line<R: Ring + ?Sized>(
        &mut self,
        burst: &mut Burst<'_, '_>,
        ring: &mut R,
        line: &Line,
    ) -> RingResult<bool> {
        for (index, single) in line.iter().enumerate() {
            let readable = single.readable();
            let len = readable.iter().map(|range| range.len).sum();
            let added = self.add(burst, single.taken(), readable, len);
            if added != Ok(true) {
                let rest = line[index..].iter().rev();
                rest.for_each(|single| ring.unpop(single.taken()));
                return added;
            }
        }
        Ok(true)
    }

    /// Queue the chain that was taken, with the packet in it. False: there is no room for that.
    #[inline(always)]
    fn add(
        &mut self,
        burst: &mut Burst<'_, '_>,
        taken: Taken,
        readable: &[Range],
        len: u64,
    ) -> RingResult<bool> {
        let packet = net::check_length(len).map(|()| len);
        if packet.is_ok() && !burst.add(readable)? {
            return Ok(false);
        }
        self.chains[self.len] = Queued { taken, packet };
        self.len += 1;
        Ok(true)
    }
}

/// Use chains that are sent, or dropped, the oldest ones.
fn give_back<R: Ring + ?Sized>(
    memory: &Memory<'_>,
    ring: &mut R,
    chains: &[Queued],
) -> RingResult<()> {
    let mut lines = chains.chunks_exact(LINE_CHAINS);
    for line in lines.by_ref() {
        let taken = std::array::from_fn(|index| line[index].taken);
        ring.push_line(memory, &taken, [0; LINE_CHAINS])?;
    }
    let mut rest = lines.remainder().iter();
    rest.try_for_each(|queued| ring.push_used(memory, queued.taken, 0))
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
        ring.disable_kicks(memory)?;
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
            counters.chain();
            done.chains += 1;
        }
        let (sent, unsent) = chains[..len].split_at(done.chains.into());
        let unsent = unsent.iter().rev();
        unsent.for_each(|queued| ring.unpop(queued.taken));
        give_back(memory, ring, sent)?;
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
