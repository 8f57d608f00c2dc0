// SPDX-License-Identifier: Apache-2.0
//! Taking and giving back four descriptors at a time, a cache line: with the driver on another processor each line
//! crosses twice, and what is done for one descriptor alone (finding its place in memory, a fence, a look whether it is
//! there) is done once for four.
//!
//! *Taking*: only what is four chains of one buffer each, all of them available. The flags of all four are loaded, then
//! one acquire fence, then the rest: the driver stores the flags of each behind its other fields (2.8.1, 2.8.21.1), so
//! whatever else is read belongs to the flags that were seen. The driver may make them available one by one; a line of
//! which that is true for a part only is left to [`super::PackedQueue::pop`], as is everything else: lists, indirect
//! tables, the end of a ring whose size is no multiple of four, a ring that does not begin on a line.
//!
//! *Giving back*: the driver looks at descriptors in ring order and may look at any time, so each store of flags shows
//! one (2.8.1). Of a batch the first descriptor's flags are stored last (`HeldBack`), with release order and behind the
//! marks of all the other stores: until then the driver does not get past that one, and the order among the others is
//! no matter. A line is therefore one of three things: the beginning of a batch, whose first flags are kept back; the
//! rest of a batch, which is written whole; or, if it does not lie where used descriptors are due, not a line at all.

use super::super::chain::{Line, Taken, DESCRIPTOR_BYTES, INDIRECT, LINE_CHAINS, NEXT, WRITE};
use super::super::{push_each, RingResult};
use super::position::Position;
use super::{is_available, used_flags, HeldBack, PackedQueue, FLAGS};
use crate::memory::{Memory, LINE_BYTES};

const LINE_SLOTS: u16 = LINE_CHAINS as u16;

impl PackedQueue {
    /// Where the line that begins at `position` lies; None: none does. No line has the end of the ring inside.
    #[inline(always)]
    fn line_at(&self, position: Position) -> Option<u64> {
        let index = position.index();
        let begins = index % LINE_SLOTS == 0 && self.desc % LINE_BYTES == 0;
        let is_whole = self.size - index >= LINE_SLOTS;
        (begins && is_whole).then(|| self.desc + DESCRIPTOR_BYTES * u64::from(index))
    }

    /// By reference: a line that is returned would be copied in other pieces than it was made of, and a processor waits then.
    #[inline(always)]
    pub(super) fn take_line(&mut self, memory: &Memory<'_>, line: &mut Line) -> bool {
        let start = self.avail;
        let Some(place) = self.line_at(start) else {
            return false;
        };
        let is_single = |flags| is_available(flags, start) && flags & (NEXT | INDIRECT) == 0;
        let is_there = self.size - self.in_flight >= LINE_SLOTS
            && memory.read_line(place, is_single, |index, flags, [addr, rest]| {
                let single = &mut line[index];
                single.buffer.iova = addr;
                single.buffer.len = rest & u64::from(u32::MAX);
                single.head = (rest >> 32) as u16;
                // The flags that made it available, not those that came with the rest.
                single.is_writable = flags & WRITE != 0;
            });
        if !is_there {
            return false;
        }
        self.prefetch(memory);
        self.avail = start.forward(LINE_SLOTS, self.size);
        self.known = self.known.saturating_sub(LINE_SLOTS);
        self.in_flight += LINE_SLOTS;
        true
    }

    #[inline(always)]
    pub(super) fn give_line_back(
        &mut self,
        memory: &Memory<'_>,
        line: &[Taken; LINE_CHAINS],
        lens: [u32; LINE_CHAINS],
    ) -> RingResult<()> {
        debug_assert!(LINE_SLOTS <= self.in_flight);
        let begins_batch = self.held_back.is_none();
        let half = |index: usize| {
            let flags = used_flags(self.used, lens[index]);
            [
                lens[index],
                u32::from(flags) << 16 | u32::from(line[index].head),
            ]
        };
        let are_single = line.iter().all(|taken| taken.slots == 1);
        let place = self.line_at(self.used).filter(|_| are_single);
        let Some(place) = place.filter(|place| memory.write_line(*place, half, begins_batch))
        else {
            return push_each(self, memory, line, lens);
        };
        if begins_batch {
            self.held_back = Some(HeldBack {
                iova: place + FLAGS,
                flags: used_flags(self.used, lens[0]),
            });
        }
        self.used = self.used.forward(LINE_SLOTS, self.size);
        self.unpublished += u32::from(LINE_SLOTS);
        self.in_flight -= LINE_SLOTS;
        Ok(())
    }
}
