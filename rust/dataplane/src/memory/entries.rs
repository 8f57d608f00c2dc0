// SPDX-License-Identifier: Apache-2.0
//! Words and entries of rings: what is read and written many times for each packet.

use super::access::Memory;
use super::fault::Subject;
use super::raw::HostBytes;
use super::Range;
use crate::error::{Error, Result};

impl Memory<'_> {
    /// Read a little-endian 16-bit word, atomically; acquire. Its address must be even.
    #[inline]
    pub fn load_u16(&self, iova: u64) -> Result<u16> {
        Ok(u16::from_le(self.word(iova, false)?.load_u16()))
    }

    /// Write a little-endian 16-bit word of a ring, atomically; release; then mark. Its address must be even. The marks
    /// of all stores before it are made before it.
    #[inline]
    pub fn store_u16(&self, iova: u64, value: u16) -> Result<()> {
        self.make_deferred_mark();
        self.word(iova, true)?.store_u16(value.to_le());
        self.mark_as(Subject::Ring, Range { iova, len: 2 });
        Ok(())
    }

    /// Copy `N` bytes of guest memory.
    #[inline(always)]
    pub fn read_array<const N: usize>(&self, iova: u64) -> Result<[u8; N]> {
        let mut array = [0; N];
        match self.piece(Range::new(iova, N as u64), false) {
            Some(bytes) if bytes.len() == N => bytes.copy_to(&mut array),
            _ => self.read_into(iova, &mut array)?,
        }
        Ok(array)
    }

    /// Write an entry of a ring, all of it or nothing; then mark.
    #[inline]
    pub fn write_entry(&self, iova: u64, entry: &[u8]) -> Result<()> {
        self.write_as(Subject::Ring, iova, entry)
    }

    /// Have the cache line at `iova` brought to this processor, as it will be written to. Without an effect where that
    /// is not mapped.
    #[inline]
    pub fn prefetch_for_write(&self, iova: u64) {
        if let Some(bytes) = self.piece(Range { iova, len: 1 }, true) {
            bytes.prefetch_for_write();
        }
    }

    /// Write an entry of a ring that is two little-endian 32-bit words, all of it or nothing. It is for the reader of the
    /// next word that is stored: before that, or when the batch ends, it is marked.
    #[inline(always)]
    pub fn write_pair(&self, iova: u64, pair: [u32; 2]) -> Result<()> {
        let range = Range { iova, len: 8 };
        match self.piece(range, true) {
            Some(bytes) if bytes.len() == 8 && iova % 4 == 0 => {
                bytes.store_pair(pair.map(u32::to_le));
                self.mark_later(range);
                Ok(())
            }
            _ => self.write_pair_in_pieces(iova, pair),
        }
    }

    #[cold]
    fn write_pair_in_pieces(&self, iova: u64, [first, second]: [u32; 2]) -> Result<()> {
        let entry = u64::from(second) << 32 | u64::from(first);
        self.write_entry(iova, &entry.to_le_bytes())
    }

    #[inline]
    fn word(&self, iova: u64, write: bool) -> Result<HostBytes<'_>> {
        if iova % 2 != 0 {
            return Err(Error::Misaligned { iova, align: 2 });
        }
        let range = Range { iova, len: 2 };
        // Maps begin and end on pages, so an aligned word lies in one.
        self.piece(range, write)
            .ok_or_else(|| self.unmapped(range, iova, write))
    }
}
