// SPDX-License-Identifier: Apache-2.0
//! The packed virtqueue, device side (virtio 1.3 2.8).
//!
//! One ring holds what the driver makes available and what the device has used; the flags of a descriptor and a
//! wrap counter on either side tell which. Orders that matter:
//!
//! *Taking*: the flags of a chain's first descriptor are loaded with acquire order before anything else of the chain.
//! The driver stores them last, so that everything else is there.
//!
//! *Giving back*: a batch becomes visible at once, although it has no index of its own. Its used descriptors are
//! written whole, except for the flags of the first one: a driver looks at descriptors in ring order and does not get
//! past that one. Each of these stores is marked in the dirty log. Then those flags are stored with release order,
//! and their page is marked again: the mark that went with the other fields could have been harvested before.
//! (2.8.9 asks the same of the buffers of one packet.)
//!
//! *Kicks and interrupts*: each side stores its flags or its event suppression structure, then a full fence, then
//! loads the other side's (2.8.21.3, 2.8.22): one of the two sees the other, so that no notification is lost.

mod events;
mod line;
pub mod position;
mod walk;

use std::sync::atomic::{fence, Ordering};

use super::area::Area;
use super::chain::{Chain, Line, Taken, DESCRIPTOR_BYTES, LINE_CHAINS, NEXT, WRITE};
use super::{
    Ring, RingConfig, RingFault, RingResult, RingState, F_EVENT_IDX, F_INDIRECT_DESC,
    MAX_QUEUE_SIZE,
};
use crate::error::{Error, Result};
use crate::memory::Memory;
use events::{Wish, EVENT_BYTES};
use position::Position;
use walk::Walk;

const AVAIL: u16 = 1 << 7;
const USED: u16 = 1 << 15;
const DESCRIPTORS_PER_LINE: u16 = 4;
/// How far ahead of the one that is taken.
const PREFETCH_DESCRIPTORS: u16 = 16;
/// Where len, id and flags, the fields of a used descriptor, begin.
const USED_FIELDS: u64 = 8;
const FLAGS: u64 = 14;

/// Flags of a used descriptor that wait for the rest of its batch.
#[derive(Clone, Copy, Debug)]
struct HeldBack {
    iova: u64,
    flags: u16,
}

/// A packed virtqueue that is in use.
#[derive(Debug)]
pub struct PackedQueue {
    size: u16,
    desc: u64,
    driver: u64,
    device: u64,
    event_idx: bool,
    indirect: bool,
    /// The next descriptor to take.
    avail: Position,
    /// Descriptors from `avail` on that were seen to be available: those that were handed back.
    known: u16,
    /// Descriptors that were taken and not given back yet.
    in_flight: u16,
    /// The next used descriptor to write; not yet visible to the driver.
    used: Position,
    /// Where the driver will look for the next used descriptor.
    published: Position,
    held_back: Option<HeldBack>,
    /// Descriptors between `published` and `used`.
    unpublished: u32,
    /// Whether an interrupt was decided about since the start. Nobody knows then what was announced before, so the
    /// first decision is for an interrupt.
    has_decided: bool,
    wish: Option<Wish>,
}

impl PackedQueue {
    /// Check an untrusted configuration and take it over.
    ///
    /// Errors: size not in 1..=32768, areas misaligned (2.8.10.1) or not mapped, a state beyond the ring.
    pub fn new(config: &RingConfig, memory: &Memory<'_>) -> Result<Self> {
        let size = check_size(config.size)?;
        check_areas(config, memory)?;
        let used = position("used_idx", config.state.used_idx, size)?;
        Ok(Self {
            size,
            desc: config.desc,
            driver: config.driver,
            device: config.device,
            event_idx: config.features & F_EVENT_IDX != 0,
            indirect: config.features & F_INDIRECT_DESC != 0,
            avail: position("last_avail_idx", config.state.last_avail_idx, size)?,
            known: 0,
            in_flight: 0,
            used,
            published: used,
            held_back: None,
            unpublished: 0,
            has_decided: false,
            wish: None,
        })
    }

    #[inline]
    fn descriptor(&self, position: Position) -> u64 {
        self.desc + DESCRIPTOR_BYTES * u64::from(position.index())
    }

    /// Acquire: what the driver stored before these flags is visible afterwards.
    #[inline]
    fn load_flags(&self, memory: &Memory<'_>, position: Position) -> RingResult<u16> {
        Ok(memory.load_u16(self.descriptor(position) + FLAGS)?)
    }

    #[inline]
    fn is_available_at(&self, memory: &Memory<'_>, position: Position) -> RingResult<bool> {
        Ok(is_available(self.load_flags(memory, position)?, position))
    }

    /// Descriptors are read in the order of the ring, and written to later.
    #[inline]
    fn prefetch(&self, memory: &Memory<'_>) {
        let ahead = self.avail.index() + PREFETCH_DESCRIPTORS;
        if ahead % DESCRIPTORS_PER_LINE == 0 && PREFETCH_DESCRIPTORS <= self.size {
            let index = if ahead < self.size {
                ahead
            } else {
                ahead - self.size
            };
            memory.prefetch_for_write(self.desc + DESCRIPTOR_BYTES * u64::from(index));
        }
    }

    #[inline]
    fn set_wish(&mut self, memory: &Memory<'_>, wish: Wish) -> RingResult<()> {
        if self.wish.replace(wish) != Some(wish) {
            wish.write(memory, self.device)?;
        }
        Ok(())
    }
}

/// Whether these flags make the descriptor at `position` available (2.8.1).
fn is_available(flags: u16, position: Position) -> bool {
    (flags & AVAIL != 0) == position.wrap() && (flags & USED != 0) != position.wrap()
}

fn used_flags(position: Position, len: u32) -> u16 {
    let state = if position.wrap() { AVAIL | USED } else { 0 };
    // In a used descriptor WRITE says that len means something (2.8.3, 2.8.4).
    state | if len > 0 { WRITE } else { 0 }
}

fn check_size(size: u32) -> Result<u16> {
    if !(1..=MAX_QUEUE_SIZE).contains(&size) {
        return Err(Error::BadRing {
            what: "queue_size",
            value: u64::from(size),
            expected: "1 to 32768 (virtio 1.3 2.8)",
        });
    }
    Ok(size as u16)
}

pub(super) fn check_areas(config: &RingConfig, memory: &Memory<'_>) -> Result<()> {
    let ring = Area {
        what: "queue_desc",
        iova: config.desc,
        align: 16,
        expected: "a multiple of 16 (virtio 1.3 2.8.10.1)",
    };
    let ring_bytes = DESCRIPTOR_BYTES * u64::from(config.size);
    ring.check(memory, ring_bytes, false)?;
    ring.check(memory, ring_bytes, true)?;
    let event = |what, iova| Area {
        what,
        iova,
        align: EVENT_BYTES,
        expected: "a multiple of 4 (virtio 1.3 2.8.10.1)",
    };
    event("queue_driver", config.driver).check(memory, EVENT_BYTES, false)?;
    event("queue_device", config.device).check(memory, EVENT_BYTES, true)
}

fn position(what: &'static str, bits: u16, size: u16) -> Result<Position> {
    Position::from_bits(bits, size).ok_or(Error::BadRing {
        what,
        value: u64::from(bits),
        expected: "an offset below queue_size in bits 14:0 (LM_RING_STATE)",
    })
}

impl Ring for PackedQueue {
    #[inline]
    fn has_available(&mut self, memory: &Memory<'_>) -> RingResult<bool> {
        Ok(self.known > 0 || self.is_available_at(memory, self.avail)?)
    }

    fn available(&mut self, memory: &Memory<'_>, limit: u16) -> RingResult<u16> {
        let mut chains = 0;
        let mut begins = true;
        let mut position = self.avail;
        for _ in 0..self.size - self.in_flight {
            let flags = self.load_flags(memory, position)?;
            if chains == limit || !is_available(flags, position) {
                break;
            }
            chains += u16::from(begins);
            begins = flags & NEXT == 0;
            position = position.forward(1, self.size);
        }
        Ok(chains)
    }

    #[inline]
    fn pop(&mut self, memory: &Memory<'_>, chain: &mut Chain) -> RingResult<bool> {
        if !self.is_available_at(memory, self.avail)? {
            self.known = 0;
            return Ok(false);
        }
        let walk = Walk {
            memory,
            desc: self.desc,
            size: self.size,
            indirect: self.indirect,
            room: self.size - self.in_flight,
        };
        self.prefetch(memory);
        walk.collect(self.avail, chain)?;
        let slots = chain.taken.slots;
        self.avail = self.avail.forward(slots, self.size);
        self.known = self.known.saturating_sub(slots);
        self.in_flight += slots;
        Ok(true)
    }

    #[inline]
    fn pop_line(&mut self, memory: &Memory<'_>, line: &mut Line) -> bool {
        self.take_line(memory, line)
    }

    #[inline]
    fn push_line(
        &mut self,
        memory: &Memory<'_>,
        line: &[Taken; LINE_CHAINS],
        lens: [u32; LINE_CHAINS],
    ) -> RingResult<()> {
        self.give_line_back(memory, line, lens)
    }

    #[inline]
    fn unpop(&mut self, taken: Taken) {
        debug_assert!(taken.slots <= self.in_flight);
        self.avail = self.avail.back(taken.slots, self.size);
        self.known += taken.slots;
        self.in_flight -= taken.slots;
    }

    #[inline]
    fn write_used(&mut self, memory: &Memory<'_>, taken: Taken, len: u32) -> RingResult<()> {
        let fields = self.descriptor(self.used) + USED_FIELDS;
        let flags = used_flags(self.used, len);
        if self.held_back.is_some() {
            let id_and_flags = u32::from(flags) << 16 | u32::from(taken.head);
            memory.write_pair(fields, [len, id_and_flags])?;
        } else {
            let [l0, l1, l2, l3] = len.to_le_bytes();
            let [i0, i1] = taken.head.to_le_bytes();
            memory.write_entry(fields, &[l0, l1, l2, l3, i0, i1])?;
            let iova = fields + FLAGS - USED_FIELDS;
            self.held_back = Some(HeldBack { iova, flags });
        }
        self.used = self.used.forward(taken.slots, self.size);
        self.unpublished += u32::from(taken.slots);
        Ok(())
    }

    #[inline]
    fn push_used(&mut self, memory: &Memory<'_>, taken: Taken, len: u32) -> RingResult<()> {
        debug_assert!(taken.slots <= self.in_flight);
        self.write_used(memory, taken, len)?;
        self.in_flight -= taken.slots;
        Ok(())
    }

    fn publish(&mut self, memory: &Memory<'_>) -> RingResult<bool> {
        let Some(first) = self.held_back.take() else {
            return Ok(false);
        };
        // A release store followed by a mark of its own: the page is marked after the flags were stored.
        memory.store_u16(first.iova, first.flags)?;
        self.published = self.used;
        let slots = std::mem::take(&mut self.unpublished);
        fence(Ordering::SeqCst);
        let wish = Wish::read(memory, self.driver, self.event_idx)?;
        let is_first = !std::mem::replace(&mut self.has_decided, true);
        Ok(match wish {
            Wish::Descriptor(_) if is_first => true,
            wish => wish.covers(self.used, slots, self.size),
        })
    }

    fn enable_kicks(&mut self, memory: &Memory<'_>) -> RingResult<bool> {
        // Behind what is known to be there: the driver has passed that already and would not kick for it again.
        let next = self.avail.forward(self.known, self.size);
        let wish = if self.event_idx {
            Wish::Descriptor(next.bits())
        } else {
            Wish::All
        };
        self.set_wish(memory, wish)?;
        fence(Ordering::SeqCst);
        self.is_available_at(memory, next)
    }

    #[inline]
    fn disable_kicks(&mut self, memory: &Memory<'_>) -> RingResult<()> {
        // A descriptor event lies behind the driver once it has passed.
        if !self.event_idx {
            self.set_wish(memory, Wish::Nothing)?;
        }
        Ok(())
    }

    fn check_restored(&self, memory: &Memory<'_>) -> RingResult<()> {
        let flags = self.load_flags(memory, self.used)?;
        let wrap = self.used.wrap();
        if (flags & AVAIL != 0) == wrap && (flags & USED != 0) == wrap {
            return Err(RingFault {
                kind: "used_idx",
                value: u64::from(self.used.bits()),
                clause: "virtio 1.3 2.8.1: both flags equal the wrap counter in a used descriptor",
                detail: format!(
                    "restored used_idx is descriptor {} with wrap counter {}, but its flags {flags:#x} in memory \
                     say that it is used already",
                    self.used.index(),
                    u8::from(wrap)
                ),
            });
        }
        Ok(())
    }

    fn state(&self) -> RingState {
        RingState {
            last_avail_idx: self.avail.back(self.in_flight, self.size).bits(),
            used_idx: self.published.bits(),
        }
    }

    fn size(&self) -> u16 {
        self.size
    }
}
