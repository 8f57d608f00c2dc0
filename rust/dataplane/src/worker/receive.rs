// SPDX-License-Identifier: Apache-2.0
//! The receive side of a pair: packets to chains.
//!
//! Packets are read ahead of the ring into memory of the pair ([`crate::backend::Slots`]), because only then is their size
//! known: not more than the driver offers chains. They stay there until it offers enough buffers, over a stop too; only a
//! flush of the back end drops them. While packets are long they go straight into the driver's buffers
//! ([`super::direct`]).

use super::direct::Direct;
use super::inbox::Inbox;
use super::pair::{Pair, Side};
use crate::backend::{Received, Receiver, SLOTS};
use crate::counters::{BatchCounters, Drop};
use crate::memory::Memory;
use crate::net::{self, HEADER_BYTES};
use crate::ring::{with_ring, Chain, Ring, RingResult, F_MRG_RXBUF, LINE_CHAINS};

/// Why a batch ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// The budget was used up: there may be more to do.
    Budget,
    /// The driver has to offer buffers first.
    NoBuffers,
    /// The back end has nothing.
    NoPackets,
    /// A map has to come first.
    NoMap,
    /// The back end will never have anything again.
    BackendGone {
        /// How it said so.
        errno: i32,
    },
}

/// What a batch did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ReceivedBatch {
    /// Packets that left the back end for good: delivered or dropped.
    pub(crate) packets: u16,
    /// Why it ended.
    pub(crate) ended: Ended,
}

pub(super) enum Fetched {
    Ready,
    Dropped,
    Nothing(Ended),
}

pub(super) enum Delivery {
    Done,
    TooLong,
    NoBuffers,
}

impl Pair {
    /// Deliver up to `budget` chains' worth of packets under one memory guard. None: not running (any more).
    pub(super) fn receive(
        &self,
        side: &mut Side,
        inbox: &mut Inbox,
        budget: u16,
    ) -> Option<ReceivedBatch> {
        const WAITING: ReceivedBatch = ReceivedBatch {
            packets: 0,
            ended: Ended::NoMap,
        };
        if side.slot.waits(&self.space) {
            return Some(WAITING);
        }
        let is_mergeable = side.slot.features & F_MRG_RXBUF != 0;
        let generation = self.space.map_generation();
        let memory = self.space.lock();
        let checked = side.slot.check_areas(&self.space, &memory);
        let ring = side.slot.ring.as_mut()?;
        let chain = &mut side.chain;
        let result = checked.and_then(|()| {
            with_ring!(ring, ring => {
                let memory = &memory;
                let (port, counters) = (self.port.receiver(), BatchCounters::default());
                let batch = Batch {
                    pair: self, memory, ring, chain, inbox, is_mergeable, port, counters, port_ended: None,
                    waits_for_maps: self.space.waits_for_maps(),
                };
                batch.run(budget)
            })
        });
        match result {
            Ok((received, interrupt)) => {
                self.rx.counters.dirtied(&memory);
                drop(memory);
                if interrupt {
                    self.rx.interrupt();
                }
                Some(received)
            }
            Err(fault) => {
                let waits = side
                    .slot
                    .fail(&self.rx, &self.space, fault, memory, generation);
                waits.then(|| {
                    self.ask_ahead(side);
                    WAITING
                })
            }
        }
    }
}

pub(super) struct Batch<'a, 'm, R: Ring + ?Sized> {
    pub(super) pair: &'a Pair,
    pub(super) memory: &'a Memory<'m>,
    pub(super) ring: &'a mut R,
    pub(super) chain: &'a mut Chain,
    pub(super) inbox: &'a mut Inbox,
    pub(super) is_mergeable: bool,
    pub(super) port: Receiver<'a>,
    pub(super) counters: BatchCounters,
    /// Why the back end has given no more, in this batch.
    pub(super) port_ended: Option<Ended>,
    /// Whether maps come when they are asked for.
    pub(super) waits_for_maps: bool,
}

impl<R: Ring + ?Sized> Batch<'_, '_, R> {
    fn run(mut self, budget: u16) -> RingResult<(ReceivedBatch, bool)> {
        let received = self.receive(budget);
        self.pair.rx.counters.add(&self.counters);
        Ok((received?, self.ring.publish(self.memory)?))
    }

    fn receive(&mut self, budget: u16) -> RingResult<ReceivedBatch> {
        let mut packets = 0;
        let mut chains = 0;
        let ended = loop {
            if chains >= usize::from(budget) || packets >= budget {
                break Ended::Budget;
            }
            let room = usize::from(budget - packets).min(usize::from(budget) - chains);
            match self.receive_at_once(room)? {
                Direct::NotThisWay => {}
                Direct::Nothing(ended) => break ended,
                Direct::Delivered { chains: used } => {
                    chains += used;
                    packets += 1;
                    continue;
                }
                Direct::Dropped => {
                    packets += 1;
                    continue;
                }
                Direct::Line(line) => {
                    chains += line.delivered;
                    packets += (line.delivered + line.dropped) as u16;
                    continue;
                }
            }
            match self.fetch(budget - packets)? {
                Fetched::Ready => {}
                Fetched::Dropped => {
                    packets += 1;
                    continue;
                }
                Fetched::Nothing(ended) => break ended,
            }
            match self.deliver()? {
                Delivery::Done => chains += self.inbox.used.len(),
                Delivery::TooLong => self.pair.rx.counters.dropped(Drop::TooLong, 1),
                Delivery::NoBuffers => break Ended::NoBuffers,
            }
            self.inbox.remove();
            packets += 1;
        };
        Ok(ReceivedBatch { packets, ended })
    }

    /// Receive the next packet, or up to `room`, without a chain for each, or past the inbox, if they may go that way.
    #[inline]
    fn receive_at_once(&mut self, room: usize) -> RingResult<Direct> {
        let has_line = if self.port.lends() {
            self.inbox.is_empty()
        } else {
            self.inbox.holds_line()
        };
        if has_line && room >= LINE_CHAINS {
            if let Some(line) = self.receive_line()? {
                return Ok(Direct::Line(line));
            }
        }
        if !self.inbox.is_empty() {
            return Ok(Direct::NotThisWay);
        }
        match self.receive_offered()? {
            Direct::NotThisWay if self.inbox.goes_direct() && self.port.is_direct() => {
                self.receive_direct()
            }
            other => Ok(other),
        }
    }

    /// Make sure that there is a packet in the inbox that is wanted; otherwise say why not. At most `limit` are taken
    /// from the back end, and none as long as the driver offers nothing at all.
    pub(super) fn fetch(&mut self, limit: u16) -> RingResult<Fetched> {
        if self.inbox.pending().is_some() {
            return Ok(Fetched::Ready);
        }
        if self.inbox.is_empty() {
            if let Some(ended) = self.read_ahead(limit)? {
                return Ok(Fetched::Nothing(ended));
            }
        }
        let len = self.inbox.ahead.first_len().unwrap_or(0);
        let packet = &mut self.inbox.ahead.first()[..len];
        let mut wanted =
            net::check_length(len as u64).and_then(|()| self.inbox.filter.check(packet));
        if self.inbox.completes_checksums && wanted.is_ok() {
            wanted = net::complete(packet);
        }
        if let Err(reason) = wanted {
            self.inbox.remove();
            self.pair.rx.counters.dropped(reason, 1);
            return Ok(Fetched::Dropped);
        }
        self.inbox.is_wanted = true;
        Ok(Fetched::Ready)
    }

    /// Fill the inbox, which is empty. None: there is something in it.
    fn read_ahead(&mut self, limit: u16) -> RingResult<Option<Ended>> {
        let offered = self.ring.available(self.memory, limit.min(SLOTS as u16))?;
        if offered == 0 {
            return Ok(Some(Ended::NoBuffers));
        }
        if self.port_ended.is_none() {
            let ended = self.port.read_ahead(&mut self.inbox.ahead, offered.into());
            self.port_ended = ended.map(|received| match received {
                Received::Failed(errno) => Ended::BackendGone { errno },
                _ => Ended::NoPackets,
            });
        }
        Ok(self.port_ended.filter(|_| self.inbox.is_empty()))
    }

    /// Put the packet of the inbox into as many chains as it needs.
    fn deliver(&mut self) -> RingResult<Delivery> {
        let len = self.inbox.pending().unwrap_or(0);
        self.inbox.expected = len as u64;
        self.inbox.begin();
        let result = match self.collect(len as u64) {
            Ok(Delivery::Done) => self.write(len).map(|()| Delivery::Done),
            other => other,
        };
        if matches!(result, Ok(Delivery::Done)) {
            self.give_back(len)?;
        } else {
            for (taken, _) in self.inbox.used.drain(..).rev() {
                self.ring.unpop(taken);
            }
        }
        result
    }

    /// Pop chains, besides those that were popped, until `len` bytes fit.
    pub(super) fn collect(&mut self, len: u64) -> RingResult<Delivery> {
        while self.inbox.room < len {
            if !self.may_take_another() {
                return Ok(Delivery::TooLong);
            }
            if !self.ring.pop(self.memory, self.chain)? {
                return Ok(Delivery::NoBuffers);
            }
            self.check_popped()?;
            self.inbox.add(self.chain);
        }
        Ok(Delivery::Done)
    }

    /// Where maps come when they are asked for, all of a chain has to be mapped before it is used; if not, it goes back.
    fn check_popped(&mut self) -> RingResult<()> {
        if self.waits_for_maps {
            check_writable(self.memory, self.ring, self.chain)?;
        }
        Ok(())
    }

    /// Whether a packet may lie in one chain more than were taken.
    pub(super) fn may_take_another(&self) -> bool {
        let popped = self.inbox.used.len();
        popped < usize::from(self.ring.size()) && (popped == 0 || self.is_mergeable)
    }

    /// Write the packet, all of it or nothing.
    fn write(&mut self, len: usize) -> RingResult<()> {
        let packet = &mut self.inbox.ahead.first()[..len];
        net::set_num_buffers(packet, self.inbox.used.len() as u16);
        self.memory.scatter(&self.inbox.ranges, packet)?;
        self.ring.disable_kicks(self.memory)
    }

    /// Write the used elements. Nothing is handed back any more.
    pub(super) fn give_back(&mut self, len: usize) -> RingResult<()> {
        let mut left = len as u64;
        for &(taken, room) in &self.inbox.used {
            let written = left.min(room);
            self.ring.push_used(self.memory, taken, written as u32)?;
            self.counters.chain();
            left -= written;
        }
        self.counters.packet((len - HEADER_BYTES) as u64);
        Ok(())
    }
}

/// Check that all of a chain that was popped can be written to; if not, it goes back.
///
/// A short packet does not reach every page of its buffer, and all of them may have been asked for, with those of other
/// chains. The answer must not come when the driver has the buffer back: an IOMMU reports that as a fault of the device.
pub(super) fn check_writable(
    memory: &Memory<'_>,
    ring: &mut (impl Ring + ?Sized),
    chain: &Chain,
) -> RingResult<()> {
    let mut ranges = chain.writable.iter();
    let checked = ranges.try_for_each(|range| memory.check(*range, true));
    checked.map_err(|error| {
        ring.unpop(chain.taken);
        error.into()
    })
}
