// SPDX-License-Identifier: Apache-2.0
//! Carrying marks from one log to another whose pages have other numbers.
//!
//! A device behind a guest's IOMMU marks the pages of its own addresses. Who migrates the guest wants the pages of guest
//! memory, and knows the translation only as long as it is not invalidated.

use super::access::Memory;
use super::{Range, PAGE_BYTES, PAGE_SHIFT};
use crate::error::Result;

/// Addresses of a device, and the guest memory behind them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// First address of the device, a multiple of the page size.
    pub iova: u64,
    /// Bytes, a multiple of the page size.
    pub size: u64,
    /// First address of guest memory, a multiple of the page size.
    pub address: u64,
}

impl Memory<'_> {
    /// Take the marks of these addresses out of the log at [source, source_end) and mark what they translate to in the
    /// log that runs. How many pages that were; without a log that runs their marks are gone.
    ///
    /// A mark that is made meanwhile is carried over now or the next time. Errors: a part of the source that is needed
    /// is not mapped writable; then the marks before it have been carried over.
    pub fn transcribe(
        &self,
        source: u64,
        source_end: u64,
        translations: &[Translation],
    ) -> Result<u64> {
        let pages = source_end.saturating_sub(source).saturating_mul(8);
        let mut moved = 0;
        for translation in translations {
            let first = translation.iova >> PAGE_SHIFT;
            let end = pages.min(first.saturating_add(translation.size >> PAGE_SHIFT));
            let mut page = first;
            while page < end {
                let last = (page | 7).min(end - 1);
                let bits = self.take_marks(source + page / 8, page % 8, last % 8)?;
                moved += u64::from(bits.count_ones());
                for bit in (0..8).filter(|bit| bits >> bit & 1 == 1) {
                    let behind = (page / 8 * 8 + bit - first) << PAGE_SHIFT;
                    self.mark(Range::new(translation.address + behind, PAGE_BYTES));
                }
                page = last + 1;
            }
        }
        Ok(moved)
    }

    /// Whether a bit is set in these bytes. Errors: they are not mapped readable.
    pub fn has_marks(&self, range: Range) -> Result<bool> {
        const PIECE_BYTES: u64 = 4096;
        let mut piece = [0; PIECE_BYTES as usize];
        let mut done = 0;
        while done < range.len {
            let bytes = PIECE_BYTES.min(range.len - done);
            let piece = &mut piece[..bytes as usize];
            self.read_into(range.iova + done, piece)?;
            if piece.iter().any(|byte| *byte != 0) {
                return Ok(true);
            }
            done += bytes;
        }
        Ok(false)
    }

    /// Clear the bits `first` to `last` of one byte of a log; those that were set.
    fn take_marks(&self, iova: u64, first: u64, last: u64) -> Result<u8> {
        let mask = super::mark::bit_mask(first, last);
        let mut before = 0;
        self.for_each_piece(Range::new(iova, 1u64), true, |byte| {
            before = byte.take_bits_u8(mask);
        })?;
        Ok(before & mask)
    }
}
