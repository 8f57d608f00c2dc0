// SPDX-License-Identifier: Apache-2.0
//! The split virtqueue, device side (virtio 1.3 2.7).
//!
//! Orders that matter. *Taking*: avail->idx is loaded with acquire order before the entries that it covers.
//! *Giving back*: used elements are stored and marked in the dirty log, then used->idx is stored with release
//! order and its page is marked again; the mark that went with the elements could have been harvested before the
//! index was stored. *Kicks and interrupts*: each side stores its own index or event, then a full fence, then
//! loads the other side's (2.7.7.2, 2.7.10): one of the two sees the other, so that no notification is lost.

mod line;
mod table;

use std::sync::atomic::{fence, Ordering};

use super::area::Area;
use super::chain::{Chain, Line, Taken, DESCRIPTOR_BYTES, LINE_CHAINS};
use super::{
    Ring, RingConfig, RingFault, RingResult, RingState, F_EVENT_IDX, F_INDIRECT_DESC,
    MAX_QUEUE_SIZE,
};
use crate::error::{Error, Result};
use crate::memory::Memory;
use table::Table;

const AVAIL_IDX: u64 = 2;
const AVAIL_RING: u64 = 4;
const USED_IDX: u64 = 2;
const USED_RING: u64 = 4;
const USED_ELEMENT_BYTES: u64 = 8;
const AVAIL_F_NO_INTERRUPT: u16 = 1;
const USED_F_NO_NOTIFY: u16 = 1;

/// A split virtqueue that is in use.
#[derive(Debug)]
pub struct SplitQueue {
    size: u16,
    desc: u64,
    driver: u64,
    device: u64,
    event_idx: bool,
    indirect: bool,
    /// The next entry of the available ring to pop.
    last_avail_idx: u16,
    /// Chains that were taken and not given back yet.
    in_flight: u16,
    /// avail->idx as loaded last.
    avail_idx: u16,
    /// The next entry of the used ring to write; not yet visible to the driver.
    next_used_idx: u16,
    /// used->idx as the driver sees it.
    used_idx: u16,
    /// used->idx when an interrupt was decided about last. None after a start: nobody knows then what was announced
    /// before, and the first decision has to be for an interrupt.
    signalled_used: Option<u16>,
    kicks_disabled: Option<bool>,
}

impl SplitQueue {
    /// Check an untrusted configuration and take it over.
    ///
    /// Errors: size not a power of two in 1..=32768, areas misaligned (2.7) or not mapped.
    pub fn new(config: &RingConfig, memory: &Memory<'_>) -> Result<Self> {
        let size = config.size;
        if !size.is_power_of_two() || size > MAX_QUEUE_SIZE {
            return Err(Error::BadRing {
                what: "queue_size",
                value: u64::from(size),
                expected: "a power of two from 1 to 32768 (virtio 1.3 2.7)",
            });
        }
        check_areas(config, memory)?;
        Ok(Self {
            size: size as u16,
            desc: config.desc,
            driver: config.driver,
            device: config.device,
            event_idx: config.features & F_EVENT_IDX != 0,
            indirect: config.features & F_INDIRECT_DESC != 0,
            last_avail_idx: config.state.last_avail_idx,
            avail_idx: config.state.last_avail_idx,
            in_flight: 0,
            next_used_idx: config.state.used_idx,
            used_idx: config.state.used_idx,
            signalled_used: None,
            kicks_disabled: None,
        })
    }

    #[inline]
    fn slot(&self, index: u16) -> u64 {
        u64::from(index & (self.size - 1))
    }

    /// Load avail->idx and check it. Acquire: what the driver stored before it is visible afterwards.
    fn load_avail_idx(&mut self, memory: &Memory<'_>) -> RingResult<u16> {
        let idx = memory.load_u16(self.driver + AVAIL_IDX)?;
        fence(Ordering::Acquire);
        let offered = idx.wrapping_sub(self.last_avail_idx);
        if offered > self.size {
            return Err(RingFault {
                kind: "avail_idx",
                value: u64::from(idx),
                clause: "virtio 1.3 2.7.6: at most queue size buffers can be available",
                detail: format!(
                    "avail->idx is {idx}, {offered} ahead of last_avail_idx {}: expected at most {}",
                    self.last_avail_idx, self.size
                ),
            });
        }
        self.avail_idx = idx;
        Ok(offered)
    }

    #[cold]
    fn no_such_head(&self, head: u16) -> RingFault {
        RingFault {
            kind: "avail_head",
            value: u64::from(head),
            clause: "virtio 1.3 2.7.6: each entry refers to the head of a descriptor chain",
            detail: format!(
                "entry {} of the available ring names descriptor {head} of {}",
                self.last_avail_idx, self.size
            ),
        }
    }

    /// avail_event where EVENT_IDX was negotiated, the flag otherwise.
    #[inline]
    fn store_kick_wish(&mut self, memory: &Memory<'_>, wanted: bool) -> RingResult<()> {
        if self.event_idx {
            if wanted {
                let avail_event =
                    self.device + USED_RING + USED_ELEMENT_BYTES * u64::from(self.size);
                memory.store_u16(avail_event, self.avail_idx)?;
            }
        } else if self.kicks_disabled != Some(!wanted) {
            let flags = if wanted { 0 } else { USED_F_NO_NOTIFY };
            memory.store_u16(self.device, flags)?;
        }
        self.kicks_disabled = Some(!wanted);
        Ok(())
    }

    /// Whether the driver wants to hear of the move of used->idx to its present value.
    fn interrupt_wanted(&mut self, memory: &Memory<'_>) -> RingResult<bool> {
        if !self.event_idx {
            return Ok(memory.load_u16(self.driver)? & AVAIL_F_NO_INTERRUPT == 0);
        }
        let used_event = memory.load_u16(self.driver + AVAIL_RING + 2 * u64::from(self.size))?;
        let new = self.used_idx;
        Ok(match self.signalled_used.replace(new) {
            None => true,
            Some(old) => event_passed(used_event, new, old),
        })
    }
}

/// Whether an index that moved from `old` to `new` has passed `event` (virtio 1.3 2.7.7.2, 2.7.10.1; modulo 2^16).
pub fn event_passed(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

/// Size of the used ring, in bytes.
fn used_bytes(size: impl Into<u64>) -> u64 {
    USED_RING + USED_ELEMENT_BYTES * size.into() + 2
}

pub(super) fn check_areas(config: &RingConfig, memory: &Memory<'_>) -> Result<()> {
    let entries = u64::from(config.size);
    let areas = [
        (
            "queue_desc",
            config.desc,
            16,
            "a multiple of 16 (virtio 1.3 2.7)",
            DESCRIPTOR_BYTES * entries,
            false,
        ),
        (
            "queue_driver",
            config.driver,
            2,
            "a multiple of 2 (virtio 1.3 2.7)",
            6 + 2 * entries,
            false,
        ),
        (
            "queue_device",
            config.device,
            4,
            "a multiple of 4 (virtio 1.3 2.7)",
            used_bytes(config.size),
            true,
        ),
    ];
    for (what, iova, align, expected, len, writable) in areas {
        let area = Area {
            what,
            iova,
            align,
            expected,
        };
        area.check(memory, len, writable)?;
    }
    Ok(())
}

impl Ring for SplitQueue {
    #[inline]
    fn has_available(&mut self, memory: &Memory<'_>) -> RingResult<bool> {
        Ok(self.last_avail_idx != self.avail_idx || self.load_avail_idx(memory)? > 0)
    }

    fn available(&mut self, memory: &Memory<'_>, limit: u16) -> RingResult<u16> {
        let known = self.avail_idx.wrapping_sub(self.last_avail_idx);
        if known >= limit {
            return Ok(limit);
        }
        Ok(self.load_avail_idx(memory)?.min(limit))
    }

    #[inline]
    fn pop(&mut self, memory: &Memory<'_>, chain: &mut Chain) -> RingResult<bool> {
        if !self.has_available(memory)? {
            return Ok(false);
        }
        let entry = self.driver + AVAIL_RING + 2 * self.slot(self.last_avail_idx);
        let head = memory.load_u16(entry)?;
        if head >= self.size {
            return Err(self.no_such_head(head));
        }
        let table = Table::of_queue(self.desc, self.size);
        table::walk(memory, table, head, self.indirect, chain)?;
        self.last_avail_idx = self.last_avail_idx.wrapping_add(1);
        self.in_flight = self.in_flight.wrapping_add(1);
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
    fn unpop(&mut self, _taken: Taken) {
        self.last_avail_idx = self.last_avail_idx.wrapping_sub(1);
        self.in_flight = self.in_flight.wrapping_sub(1);
    }

    #[inline]
    fn write_used(&mut self, memory: &Memory<'_>, taken: Taken, len: u32) -> RingResult<()> {
        let slot = self.slot(self.next_used_idx);
        let element = self.device + USED_RING + USED_ELEMENT_BYTES * slot;
        memory.write_pair(element, [u32::from(taken.head), len])?;
        self.next_used_idx = self.next_used_idx.wrapping_add(1);
        Ok(())
    }

    #[inline]
    fn push_used(&mut self, memory: &Memory<'_>, taken: Taken, len: u32) -> RingResult<()> {
        self.write_used(memory, taken, len)?;
        self.in_flight = self.in_flight.wrapping_sub(1);
        Ok(())
    }

    fn publish(&mut self, memory: &Memory<'_>) -> RingResult<bool> {
        if self.next_used_idx == self.used_idx {
            return Ok(false);
        }
        // A release store followed by a mark of its own: the index page is marked after the index was stored.
        memory.store_u16(self.device + USED_IDX, self.next_used_idx)?;
        self.used_idx = self.next_used_idx;
        fence(Ordering::SeqCst);
        self.interrupt_wanted(memory)
    }

    fn enable_kicks(&mut self, memory: &Memory<'_>) -> RingResult<bool> {
        let seen = self.avail_idx;
        self.store_kick_wish(memory, true)?;
        fence(Ordering::SeqCst);
        self.load_avail_idx(memory)?;
        Ok(self.avail_idx != seen)
    }

    #[inline]
    fn disable_kicks(&mut self, memory: &Memory<'_>) -> RingResult<()> {
        self.store_kick_wish(memory, false)
    }

    fn check_restored(&self, memory: &Memory<'_>) -> RingResult<()> {
        let found = memory.load_u16(self.device + USED_IDX)?;
        if found != self.used_idx {
            return Err(RingFault {
                kind: "used_idx",
                value: u64::from(self.used_idx),
                clause: "virtio 1.3 2.7.8: used->idx is where the device puts the next element",
                detail: format!(
                    "restored used_idx is {}, but used->idx in memory is {found}",
                    self.used_idx
                ),
            });
        }
        Ok(())
    }

    fn state(&self) -> RingState {
        RingState {
            last_avail_idx: self.last_avail_idx.wrapping_sub(self.in_flight),
            used_idx: self.used_idx,
        }
    }

    fn size(&self) -> u16 {
        self.size
    }
}
