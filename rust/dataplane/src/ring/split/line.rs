// SPDX-License-Identifier: Apache-2.0
//! Taking and giving back four chains at a time: what is done for one alone (a look whether it is there, finding the
//! place of its entry, its descriptor and its used element in memory) is done once for four.
//!
//! *Taking*: only entries that avail->idx is known to cover, so they and their descriptors need no further order. They may
//! name any four descriptors; a driver that uses its buffers in turn has them in one cache line. Four that are not
//! all of one buffer are left to [`super::SplitQueue::pop`], with everything that is wrong with an entry. Nothing is taken
//! whose used elements could not be written: to use what was taken this way does not fail.
//!
//! *Giving back*: nobody looks at used elements before used->idx covers them, so their order is no matter.

use super::super::chain::{Line, Taken, INDIRECT, LINE_CHAINS, NEXT, WRITE};
use super::super::{push_each, RingResult};
use super::{used_bytes, SplitQueue, AVAIL_RING, USED_ELEMENT_BYTES, USED_RING};
use crate::memory::{Memory, Range};

const LINE_ENTRIES: u16 = LINE_CHAINS as u16;

impl SplitQueue {
    /// The place of entry `index` in its ring, if that has as many entries behind it before its end as a line takes.
    #[inline(always)]
    fn line_at(&self, index: u16) -> Option<u64> {
        let slot = index & (self.size - 1);
        (self.size - slot >= LINE_ENTRIES).then_some(u64::from(slot))
    }

    /// By reference, as [`super::super::packed::PackedQueue`] does.
    #[inline(always)]
    pub(super) fn take_line(&mut self, memory: &Memory<'_>, line: &mut Line) -> bool {
        if self.avail_idx.wrapping_sub(self.last_avail_idx) < LINE_ENTRIES {
            return false;
        }
        let Some(slot) = self.line_at(self.last_avail_idx) else {
            return false;
        };
        let used = Range::new(self.device, used_bytes(self.size));
        if !memory.is_writable(used) {
            return false;
        }
        let Some(heads) = memory.read_words(self.driver + AVAIL_RING + 2 * slot) else {
            return false;
        };
        let mut are_single = true;
        let is_read = memory.read_table(self.desc, self.size, heads, |index, [addr, rest]| {
            let flags = (rest >> 32) as u16;
            are_single &= flags & (NEXT | INDIRECT) == 0;
            let single = &mut line[index];
            single.buffer.iova = addr;
            single.buffer.len = rest & u64::from(u32::MAX);
            single.head = heads[index];
            single.is_writable = flags & WRITE != 0;
        });
        if !(is_read && are_single) {
            return false;
        }
        self.last_avail_idx = self.last_avail_idx.wrapping_add(LINE_ENTRIES);
        self.in_flight = self.in_flight.wrapping_add(LINE_ENTRIES);
        true
    }

    #[inline(always)]
    pub(super) fn give_line_back(
        &mut self,
        memory: &Memory<'_>,
        line: &[Taken; LINE_CHAINS],
        lens: [u32; LINE_CHAINS],
    ) -> RingResult<()> {
        let element = |index: usize| [u32::from(line[index].head), lens[index]];
        let is_written = self.line_at(self.next_used_idx).is_some_and(|slot| {
            let place = self.device + USED_RING + USED_ELEMENT_BYTES * slot;
            memory.write_pairs(place, element)
        });
        if !is_written {
            return push_each(self, memory, line, lens);
        }
        self.next_used_idx = self.next_used_idx.wrapping_add(LINE_ENTRIES);
        self.in_flight = self.in_flight.wrapping_sub(LINE_ENTRIES);
        Ok(())
    }
}
