// SPDX-License-Identifier: Apache-2.0
//! The transmit side of a pair: chains to packets.

use super::pair::{Pair, Side};
use super::queue::Queue;
use crate::backend::{Sender, Sent};
use crate::counters::{BatchCounters, Drop};
use crate::memory::{Memory, Range};
use crate::net::{self, HEADER_BYTES};
use crate::ring::{taken_of, with_ring, Chain, Line, Ring, RingResult, LINE_CHAINS};

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
        let mut line = Line::default();
        let mut sending = Sending {
            queue: &self.tx,
            memory,
            sender: self.port.sender(),
            counters,
        };
        while done.chains < budget && !done.is_blocked {
            let has_room = usize::from(budget - done.chains) >= LINE_CHAINS;
            let is_line = has_room && ring.pop_line(memory, &mut line);
            if !is_line && !ring.pop(memory, chain)? {
                break;
            }
            if done.chains == 0 {
                ring.disable_kicks(memory)?;
            }
            if is_line {
                sending.send_line(ring, &line, &mut done)?;
            } else {
                sending.send_chain(ring, chain, &mut done)?;
            }
        }
        Ok(done)
    }
}

/// A batch that is sent packet by packet.
struct Sending<'a, 'm> {
    queue: &'a Queue,
    memory: &'a Memory<'m>,
    sender: Sender<'a>,
    counters: &'a mut BatchCounters,
}

impl Sending<'_, '_> {
    fn send_chain(
        &mut self,
        ring: &mut (impl Ring + ?Sized),
        chain: &Chain,
        done: &mut Transmitted,
    ) -> RingResult<()> {
        let sent = self.send(&chain.readable, chain.readable_len);
        if sent != Ok(true) {
            ring.unpop(chain.taken);
            done.is_blocked = true;
            return sent.map(|_| ());
        }
        ring.push_used(self.memory, chain.taken, 0)?;
        self.counters.chain();
        done.chains += 1;
        Ok(())
    }

    fn send_line(
        &mut self,
        ring: &mut (impl Ring + ?Sized),
        line: &Line,
        done: &mut Transmitted,
    ) -> RingResult<()> {
        let mut stopped = Ok(());
        let mut count = 0;
        for single in line {
            let readable = single.readable();
            match self.send(readable, readable.iter().map(|range| range.len).sum()) {
                Ok(true) => {
                    self.counters.chain();
                    count += 1;
                }
                Ok(false) => break,
                Err(fault) => {
                    stopped = Err(fault);
                    break;
                }
            }
        }
        done.chains += count as u16;
        if count == LINE_CHAINS {
            return ring.push_line(self.memory, &taken_of(line), [0; LINE_CHAINS]);
        }
        let (sent, rest) = line.split_at(count);
        rest.iter()
            .rev()
            .for_each(|single| ring.unpop(single.taken()));
        for single in sent {
            ring.push_used(self.memory, single.taken(), 0)?;
        }
        done.is_blocked = true;
        stopped
    }

    /// False: the back end is full. A packet that can't be sent at all is counted, and its chain is done.
    #[inline(always)]
    fn send(&mut self, readable: &[Range], len: u64) -> RingResult<bool> {
        if let Err(reason) = net::check_length(len) {
            self.queue.counters.dropped(reason, 1);
            return Ok(true);
        }
        match self.sender.send(self.memory, readable)? {
            Sent::Done => self.counters.packet(len - HEADER_BYTES as u64),
            Sent::Blocked => return Ok(false),
            Sent::Refused { reason, .. } => self.queue.counters.dropped(reason, 1),
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
