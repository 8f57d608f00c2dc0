// SPDX-License-Identifier: Apache-2.0
//! Messages that carry several others, one behind the other.
//!
//! What they look like is the caller's business.

use std::mem;

use crate::error::{Error, Result};

/// Messages that carry several others of the doorbells' command, one behind the other.
#[derive(Clone, Copy, Debug)]
pub struct Batches {
    /// Command in the header.
    pub command: u16,
    /// What the payload begins with, and all of the reply's: how many there are (64 bits, little-endian).
    pub head_bytes: usize,
    /// Each of them.
    pub item_bytes: usize,
    /// Where in an item is how many bytes behind this number (32 bits, little-endian) are its payload's last ones.
    pub length_at: usize,
    /// So many at most.
    pub items_max: usize,
}

impl Batches {
    /// Errors: a number that lies outside of an item, or a head that is none.
    pub(crate) fn check(&self) -> Result<()> {
        if self.head_bytes == mem::size_of::<u64>()
            && self.length_at.saturating_add(mem::size_of::<u32>()) <= self.item_bytes
        {
            return Ok(());
        }
        Err(Error::State(format!(
            "batches with a head of {} bytes and items of {}: expected a count of 8, and a length within an item",
            self.head_bytes, self.item_bytes
        )))
    }

    /// Of a payload.
    pub(crate) fn bytes_max(&self) -> usize {
        self.head_bytes
            .saturating_add(self.items_max.saturating_mul(self.item_bytes))
    }

    /// Payloads of all messages that this payload carries. None: they are not as many as it says.
    pub(crate) fn payloads<'a>(&self, payload: &'a [u8]) -> Option<Vec<&'a [u8]>> {
        let (head, items) = (payload.get(..self.head_bytes)?, &payload[self.head_bytes..]);
        let count = u64::from_le_bytes(head.try_into().ok()?);
        let is_whole =
            count > 0 && items.len() as u64 == count.checked_mul(self.item_bytes as u64)?;
        let items = is_whole.then(|| items.chunks_exact(self.item_bytes))?;
        items.map(|item| self.payload(item)).collect()
    }

    fn payload<'a>(&self, item: &'a [u8]) -> Option<&'a [u8]> {
        let length_end = self.length_at + mem::size_of::<u32>();
        let length = item.get(self.length_at..length_end)?;
        let length = u32::from_le_bytes(length.try_into().ok()?);
        item.get(..length_end.checked_add(length as usize)?)
    }
}
