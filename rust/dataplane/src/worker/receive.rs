// SPDX-License-Identifier: Apache-2.0
//! The receive side of a pair: packets to chains.
//!
//! One packet is read ahead of the ring into a buffer of the pair, because only then is its size known. It stays
//! there until the driver offers enough buffers, over a stop too; only a flush of the back end drops it. While packets
//! are long they go straight into the driver's buffers ([`super::direct`]).

use std::sync::Arc;

use super::direct::Direct;
use super::pair::{Pair, Side};
use crate::backend::{Received, Receiver};
use crate::counters::{BatchCounters, Drop};
use crate::filter::ReceiveFilter;
use crate::memory::{Memory, Range};
use crate::net::{self, HEADER_BYTES, MAX_PACKET_BYTES};
use crate::ring::{
    with_ring, Chain, Line, Ring, RingResult, Taken, F_GUEST_CSUM, F_MRG_RXBUF, LINE_CHAINS,
};

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

/// The packet that was read ahead, and the working lists of a delivery.
#[derive(Debug)]
pub(crate) struct Inbox {
    pub(super) buffer: Vec<u8>,
    pub(super) pending: Option<usize>,
    /// The chains that were taken, and their lengths.
    pub(super) used: Vec<(Taken, u64)>,
    pub(super) ranges: Vec<Range>,
    /// Chains that were taken at once.
    pub(super) line: Line,
    /// Bytes of all chains that were taken.
    pub(super) room: u64,
    pub(super) filter: Arc<ReceiveFilter>,
    /// Whether the driver wants checksums that are there.
    pub(super) completes_checksums: bool,
    /// Whether packets may go straight to the driver.
    pub(super) is_direct: bool,
    /// Bytes of the last packet.
    pub(super) expected: u64,
    /// Whether a packet hook has seen the packet.
    pub(super) is_hooked: bool,
    /// Changes when the packet goes away.
    epoch: u64,
}

impl Inbox {
    pub(super) fn new() -> Self {
        Self {
            // One byte more than a packet can have: a longer one shows.
            buffer: vec![0; MAX_PACKET_BYTES + 1],
            pending: None,
            used: Vec::new(),
            ranges: Vec::new(),
            line: Line::default(),
            room: 0,
            filter: Arc::default(),
            completes_checksums: false,
            is_direct: true,
            expected: 0,
            is_hooked: false,
            epoch: 0,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.pending.is_none()
    }

    /// For a driver that negotiated `features`.
    pub(super) fn set_features(&mut self, features: u64) {
        self.completes_checksums = features & F_GUEST_CSUM == 0;
        self.is_direct = true;
    }

    /// No chain is taken.
    pub(super) fn begin(&mut self) {
        self.used.clear();
        self.ranges.clear();
        self.room = 0;
    }

    /// This chain was taken.
    pub(super) fn add(&mut self, chain: &Chain) {
        self.ranges.extend_from_slice(&chain.writable);
        self.used.push((chain.taken, chain.writable_len));
        self.room += chain.writable_len;
    }

    /// From the next packet on. One that was read ahead came while the old filter held.
    pub(super) fn set_filter(&mut self, filter: Arc<ReceiveFilter>) {
        self.filter = filter;
    }

    /// Drop the packet that was read ahead; how many that were.
    pub(super) fn clear(&mut self) -> u64 {
        self.epoch += 1;
        self.is_hooked = false;
        u64::from(self.pending.take().is_some())
    }

    /// The packet, for a hook, and what [`Self::replace`] wants to know again.
    pub(super) fn copy(&self) -> (u64, Vec<u8>) {
        let len = self.pending.unwrap_or(0);
        (self.epoch, self.buffer[..len].to_vec())
    }

    /// Put what a hook has made of the packet in its place; None: it dropped it.
    pub(super) fn replace(&mut self, epoch: u64, packet: Option<&[u8]>) -> Replaced {
        if epoch != self.epoch {
            return Replaced::Gone;
        }
        let Some(packet) = packet else {
            self.clear();
            return Replaced::Dropped;
        };
        self.buffer[..packet.len()].copy_from_slice(packet);
        self.pending = Some(packet.len());
        self.is_hooked = true;
        Replaced::Kept
    }
}

/// What became of a packet that a hook has looked at.
pub(super) enum Replaced {
    /// It waits for buffers.
    Kept,
    Dropped,
    /// It was flushed, and counted, while the hook looked at it.
    Gone,
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
                Batch { pair: self, memory, ring, chain, inbox, is_mergeable, port, counters }.run(budget)
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
            match self.fetch()? {
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
            self.inbox.clear();
            packets += 1;
        };
        Ok(ReceivedBatch { packets, ended })
    }

    /// Receive the next packet, or up to `room`, past the inbox, if they may go that way.
    #[inline]
    fn receive_at_once(&mut self, room: usize) -> RingResult<Direct> {
        if !self.inbox.is_empty() {
            return Ok(Direct::NotThisWay);
        }
        if room >= LINE_CHAINS {
            if let Some(line) = self.receive_line()? {
                return Ok(Direct::Line(line));
            }
        }
        match self.receive_offered()? {
            Direct::NotThisWay if self.inbox.goes_direct() && self.port.is_direct() => {
                self.receive_direct()
            }
            other => Ok(other),
        }
    }

    /// Make sure that there is a packet in the inbox; otherwise say why not. None is taken from the back end as long
    /// as the driver offers nothing at all.
    pub(super) fn fetch(&mut self) -> RingResult<Fetched> {
        if self.inbox.pending.is_some() {
            return Ok(Fetched::Ready);
        }
        if !self.ring.has_available(self.memory)? {
            return Ok(Fetched::Nothing(Ended::NoBuffers));
        }
        let len = match self.port.receive(&mut self.inbox.buffer) {
            Received::Empty => return Ok(Fetched::Nothing(Ended::NoPackets)),
            Received::Failed(errno) => return Ok(Fetched::Nothing(Ended::BackendGone { errno })),
            Received::Packet(len) => len,
        };
        let packet = &mut self.inbox.buffer[..len];
        let mut wanted =
            net::check_length(len as u64).and_then(|()| self.inbox.filter.check(packet));
        if self.inbox.completes_checksums && wanted.is_ok() {
            wanted = net::complete(packet);
        }
        if let Err(reason) = wanted {
            self.pair.rx.counters.dropped(reason, 1);
            return Ok(Fetched::Dropped);
        }
        self.inbox.pending = Some(len);
        Ok(Fetched::Ready)
    }

    /// Put the packet of the inbox into as many chains as it needs.
    fn deliver(&mut self) -> RingResult<Delivery> {
        let len = self.inbox.pending.unwrap_or(0);
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
            self.inbox.add(self.chain);
        }
        Ok(Delivery::Done)
    }

    /// Whether a packet may lie in one chain more than were taken.
    pub(super) fn may_take_another(&self) -> bool {
        let popped = self.inbox.used.len();
        popped < usize::from(self.ring.size()) && (popped == 0 || self.is_mergeable)
    }

    /// Write the packet, all of it or nothing.
    fn write(&mut self, len: usize) -> RingResult<()> {
        let packet = &mut self.inbox.buffer[..len];
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
