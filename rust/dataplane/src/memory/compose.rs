// SPDX-License-Identifier: Apache-2.0
//! Stores that make up a buffer piece by piece, and the one mark behind them.

use super::access::Memory;
use super::raw::HostBytes;
use super::Range;

/// A buffer in guest memory while [`Memory::compose`] runs.
pub struct Canvas<'g>(HostBytes<'g>);

impl Canvas<'_> {
    /// Store `data` from byte `offset` on. It must lie in the buffer.
    #[inline]
    pub fn put(&self, offset: usize, data: &[u8]) {
        self.0.part(offset, data.len()).copy_data_from(data);
    }
}

impl Memory<'_> {
    /// Let `compose` store to `range`, then mark all of it. False, and nothing happens: it does not lie in one map, or
    /// that may not be written.
    #[inline]
    pub fn compose(&self, range: Range, compose: impl FnOnce(&Canvas<'_>)) -> bool {
        match self.piece(range, true) {
            Some(bytes) if bytes.len() as u64 == range.len => {
                compose(&Canvas(bytes));
                self.mark(range);
                true
            }
            _ => false,
        }
    }
}
