// SPDX-License-Identifier: Apache-2.0
//! Entries of rings, four at a time: of a packed ring a cache line, which comes from the other processor as a whole; of
//! a split ring what lies side by side, and the descriptors that it names.

use std::sync::atomic::{fence, Ordering};

use super::access::Memory;
use super::raw::HostBytes;
use super::Range;

/// Entries of a line.
pub const LINE_ENTRIES: usize = 4;
/// Size of a line, in bytes.
pub const LINE_BYTES: u64 = 64;
const ENTRY_BYTES: usize = LINE_BYTES as usize / LINE_ENTRIES;
/// Where the last word of an entry begins, and its second half.
const LAST_WORD: usize = 14;
const SECOND_HALF: usize = 8;
const PAIR_BYTES: usize = 8;

impl Memory<'_> {
    /// The line at `iova`; None: this is no line that can be written.
    #[inline(always)]
    fn line(&self, iova: u64) -> Option<HostBytes<'_>> {
        let range = Range {
            iova,
            len: LINE_BYTES,
        };
        // Maps begin and end on pages, so a line lies in one.
        self.piece(range, true).filter(|_| iova % LINE_BYTES == 0)
    }

    /// Read the line at `iova`: first the last word of each entry, atomically, and, if `accepts` takes them all, each entry,
    /// with its number, its last word and its two halves; acquire: what was stored before any of the words is visible in
    /// them. False: it does not, or this is no line that can be read and written.
    #[inline(always)]
    pub fn read_line(
        &self,
        iova: u64,
        accepts: impl Fn(u16) -> bool,
        mut visit: impl FnMut(usize, u16, [u64; 2]),
    ) -> bool {
        let Some(line) = self.line(iova) else {
            return false;
        };
        if !self.may_read(iova) {
            return false;
        }
        let mut last_words = [0; LINE_ENTRIES];
        for (index, word) in last_words.iter_mut().enumerate() {
            let place = line.part(index * ENTRY_BYTES + LAST_WORD, 2);
            *word = u16::from_le(place.load_relaxed_u16());
        }
        if !last_words.iter().all(|word| accepts(*word)) {
            return false;
        }
        // One fence for all: each word was loaded before it, and none of the entries before that.
        fence(Ordering::Acquire);
        for (index, word) in last_words.into_iter().enumerate() {
            let half = |number: usize| {
                let at = index * ENTRY_BYTES + number * SECOND_HALF;
                u64::from_le(line.part(at, 8).load_u64())
            };
            visit(index, word, [half(0), half(1)]);
        }
        true
    }

    /// Write the second half of each entry of the line at `iova`, as two little-endian 32-bit words; of the first one
    /// without the last word, if that is kept back. It is for the reader of the next word that is stored: before that,
    /// or when the batch ends, it is marked. False, and nothing was written: this is no line that can be written.
    #[inline(always)]
    pub fn write_line(
        &self,
        iova: u64,
        halves: impl Fn(usize) -> [u32; 2],
        keeps_first_back: bool,
    ) -> bool {
        let Some(line) = self.line(iova) else {
            return false;
        };
        for index in 0..LINE_ENTRIES {
            let half = halves(index);
            let at = index * ENTRY_BYTES + SECOND_HALF;
            let is_short = index == 0 && keeps_first_back;
            let len = if is_short { 6 } else { 8 };
            let place = line.part(at, len);
            if is_short {
                let [a, b, c, d] = half[0].to_le_bytes();
                let [e, f, ..] = half[1].to_le_bytes();
                place.copy_from(&[a, b, c, d, e, f]);
            } else {
                place.store_pair(half.map(u32::to_le));
            }
            self.mark_later(Range::new(iova + at as u64, len as u64));
        }
        true
    }

    /// Read the little-endian 16-bit words from `iova` on, which is even. No order. None: they do not lie in one map, or
    /// can't be read.
    #[inline(always)]
    pub fn read_words(&self, iova: u64) -> Option<[u16; LINE_ENTRIES]> {
        let range = Range::new(iova, 2 * LINE_ENTRIES as u64);
        let words = self.whole(range, false).filter(|_| iova % 2 == 0)?;
        let word = |index| u16::from_le(words.part(2 * index, 2).load_relaxed_u16());
        Some(std::array::from_fn(word))
    }

    /// Read the entries with these numbers of a table of `size` at `iova`: its number in the list and the two halves of each.
    /// No order. False: one lies beyond the table, or that does not lie in one map, or can't be read.
    #[inline(always)]
    pub fn read_table(
        &self,
        iova: u64,
        size: u16,
        numbers: [u16; LINE_ENTRIES],
        mut visit: impl FnMut(usize, [u64; 2]),
    ) -> bool {
        let range = Range::new(iova, u64::from(size) * ENTRY_BYTES as u64);
        let table = self.whole(range, false).filter(|_| iova % 8 == 0);
        let Some(table) = table.filter(|_| numbers.iter().all(|number| *number < size)) else {
            return false;
        };
        for (index, number) in numbers.into_iter().enumerate() {
            let entry = table.part(usize::from(number) * ENTRY_BYTES, ENTRY_BYTES);
            let half = |number: usize| {
                let at = number * SECOND_HALF;
                u64::from_le(entry.part(at, SECOND_HALF).load_u64())
            };
            visit(index, [half(0), half(1)]);
        }
        true
    }

    /// Whether all of `range` lies in one map and may be written.
    #[inline(always)]
    pub fn is_writable(&self, range: Range) -> bool {
        self.whole(range, true).is_some()
    }

    /// Write entries that are two little-endian 32-bit words side by side from `iova` on, which is a multiple of 4. They are
    /// for the reader of the next word that is stored: before that, or when the batch ends, they are marked. False, and
    /// nothing was written: they do not lie in one map, or can't be written.
    #[inline(always)]
    pub fn write_pairs(&self, iova: u64, pairs: impl Fn(usize) -> [u32; 2]) -> bool {
        let range = Range::new(iova, (PAIR_BYTES * LINE_ENTRIES) as u64);
        let Some(entries) = self.whole(range, true).filter(|_| iova % 4 == 0) else {
            return false;
        };
        for index in 0..LINE_ENTRIES {
            let entry = entries.part(index * PAIR_BYTES, PAIR_BYTES);
            entry.store_pair(pairs(index).map(u32::to_le));
        }
        self.mark_later(range);
        true
    }

    /// `range`, if all of it lies in one map.
    #[inline(always)]
    fn whole(&self, range: Range, write: bool) -> Option<HostBytes<'_>> {
        let piece = self.piece(range, write);
        piece.filter(|bytes| bytes.len() as u64 == range.len)
    }
}
