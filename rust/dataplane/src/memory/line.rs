// SPDX-License-Identifier: Apache-2.0
//! Four entries of a packed ring at a time: a cache line, which comes from the other processor as a whole.

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
}
