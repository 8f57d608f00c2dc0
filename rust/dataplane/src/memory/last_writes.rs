// SPDX-License-Identifier: Apache-2.0
//! Where in each page the device wrote last, while marks are recorded: for the report of a page that differs. It
//! judges nothing.

use std::collections::HashMap;

use parking_lot::Mutex;

use super::fault::Subject;
use super::space::DmaSpace;
use super::{Range, PAGE_BYTES, PAGE_SHIFT};

/// A write within one page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LastWrite {
    /// Where it began in the page, in bytes.
    pub offset: u16,
    /// Its bytes in this page.
    pub length: u16,
    /// Whether it was an entry, an index or flags of a ring; else it was the contents of a buffer.
    pub is_ring: bool,
}

/// The last write of each page that has one.
#[derive(Debug, Default)]
pub(super) struct LastWrites(Mutex<HashMap<u64, LastWrite>>);

impl LastWrites {
    /// Begin anew.
    pub(super) fn clear(&mut self) {
        self.0.get_mut().clear();
    }

    /// This range was written.
    pub(super) fn note(&self, subject: Subject, range: Range) {
        let end = range.iova.saturating_add(range.len);
        let mut pages = self.0.lock();
        let mut at = range.iova;
        while at < end {
            let offset = at % PAGE_BYTES;
            let length = (end - at).min(PAGE_BYTES - offset);
            let write = LastWrite {
                offset: offset as u16,
                length: length as u16,
                is_ring: subject == Subject::Ring,
            };
            pages.insert(at >> PAGE_SHIFT, write);
            at += length;
        }
    }

    /// The last write of a page, if it had one.
    pub(super) fn of(&self, page: u64) -> Option<LastWrite> {
        self.0.lock().get(&page).copied()
    }
}

impl DmaSpace {
    /// Where the device wrote last in this page (IOVA >> 12, or that of a place) while marks were recorded, if it did.
    pub fn last_write(&self, page: u64) -> Option<LastWrite> {
        self.lock().log_state().last_writes.of(page)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_page_of_a_range_keeps_its_own_part() {
        let mut writes = LastWrites::default();
        writes.note(Subject::Data, Range::new(PAGE_BYTES + 100, 5000u64));
        let part = |offset, length, is_ring| {
            Some(LastWrite {
                offset,
                length,
                is_ring,
            })
        };
        assert_eq!(writes.of(0), None);
        assert_eq!(writes.of(1), part(100, 3996, false));
        assert_eq!(writes.of(2), part(0, 1004, false));
        writes.note(Subject::Ring, Range::new(2 * PAGE_BYTES + 8, 2u64));
        assert_eq!(writes.of(2), part(8, 2, true));
        writes.clear();
        assert_eq!(writes.of(2), None);
    }

    #[test]
    fn last_page_of_all_ends_the_walk() {
        let writes = LastWrites::default();
        writes.note(Subject::Data, Range::new(u64::MAX - 10, 100u64));
        assert!(writes.of(u64::MAX >> PAGE_SHIFT).is_some());
    }
}
