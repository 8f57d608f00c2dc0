// SPDX-License-Identifier: Apache-2.0
//! Four entries of a packed ring at a time: a cache line, which comes from the other processor as a whole.

use std::sync::atomic::{fence, Ordering};

use super::access::Memory;
use super::Range;

/// Entries of a line.
pub const LINE_ENTRIES: usize = 4;
/// Size of a line, in bytes.
pub const LINE_BYTES: u64 = 64;
const ENTRY_BYTES: usize = LINE_BYTES as usize / LINE_ENTRIES;
/// Where the last word of an entry begins, and its second half.
const LAST_WORD: usize = 14;
const SECOND_HALF: usize = 8;

/// What lies in a line.
#[derive(Clone, Copy, Debug)]
pub struct RingLine {
    /// The last word of each entry, loaded before everything else.
    pub last_words: [u16; LINE_ENTRIES],
    /// Each entry.
    pub entries: [u128; LINE_ENTRIES],
}

impl Memory<'_> {
    /// Read the line at `iova`: first the last word of each entry, atomically, and, if `accepts` takes these, the entries;
    /// acquire: what was stored before a word is visible in them. None: it does not, or this is no line that can be read
    /// and written.
    #[inline(always)]
    pub fn read_line(
        &self,
        iova: u64,
        accepts: impl FnOnce(&[u16; LINE_ENTRIES]) -> bool,
    ) -> Option<RingLine> {
        let range = Range {
            iova,
            len: LINE_BYTES,
        };
        let line = self.piece(range, true)?;
        if iova % LINE_BYTES != 0 || !self.may_read(iova) {
            return None;
        }
        // Maps begin and end on pages, so the line lies in one.
        let entry = |index: usize| line.part(index * ENTRY_BYTES, ENTRY_BYTES);
        let last_words = std::array::from_fn(|index| {
            u16::from_le(entry(index).part(LAST_WORD, 2).load_relaxed_u16())
        });
        if !accepts(&last_words) {
            return None;
        }
        // One fence for all: each word was loaded before it, and none of the entries before that.
        fence(Ordering::Acquire);
        let entries = std::array::from_fn(|index| {
            let mut bytes = [0; ENTRY_BYTES];
            entry(index).copy_to(&mut bytes);
            u128::from_le_bytes(bytes)
        });
        Some(RingLine {
            last_words,
            entries,
        })
    }

    /// Write the second half of each entry of the line at `iova`, as two little-endian 32-bit words; of the first one
    /// without the last word, if that is kept back. It is for the reader of the next word that is stored: before that,
    /// or when the batch ends, it is marked. False, and nothing was written: this is no line that can be written.
    #[inline(always)]
    pub fn write_line(
        &self,
        iova: u64,
        halves: [[u32; 2]; LINE_ENTRIES],
        keeps_first_back: bool,
    ) -> bool {
        let range = Range {
            iova,
            len: LINE_BYTES,
        };
        let Some(line) = self.piece(range, true).filter(|_| iova % LINE_BYTES == 0) else {
            return false;
        };
        for (index, half) in halves.into_iter().enumerate() {
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
