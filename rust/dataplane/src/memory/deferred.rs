// SPDX-License-Identifier: Apache-2.0
//! Used elements: many stores to one page, and one mark behind the last of them.
//!
//! Each store has to be followed by a mark, because whoever harvests the log takes the bit first and copies the page
//! then: a store after the copy needs a bit that is set after it. A mark behind the last of several stores to a page is
//! behind each of them. (The opposite, to skip a mark because the page has been marked in this batch, would lose pages:
//! that bit may have been harvested, and the page copied, before the next store.)
//!
//! It may not come later than what the stores are for. An element means something from the index, or the flags, that
//! show it on: so the mark is made before any of those is stored, which are the words of [`Memory::store_u16`]. And it is
//! made before the guard is given back, so that a stop, a change of the log and an audit find it made.

use super::access::Memory;
use super::fault::Subject;
use super::log::ActiveLog;
use super::{Range, PAGE_SHIFT};

/// None has this number.
pub(super) const NO_PAGE: u64 = u64::MAX;

impl Memory<'_> {
    /// These bytes of a ring were written, in which nobody looks before the next word is stored.
    #[inline]
    pub(super) fn mark_later(&self, range: Range) {
        if let Some(log) = &self.log_state().active {
            self.defer(log, range);
        }
    }

    fn defer(&self, log: &ActiveLog, range: Range) {
        if self.log_state().record.is_running() {
            self.record_write(Subject::Ring, range);
        }
        let last = range.iova.saturating_add(range.len - 1) >> PAGE_SHIFT;
        for page in range.iova >> PAGE_SHIFT..=last {
            if self.deferred.get() != page {
                self.make_mark(log);
                self.deferred.set(page);
            }
        }
    }

    /// Make the mark that is due.
    #[inline]
    pub(super) fn make_deferred_mark(&self) {
        if let Some(log) = &self.log_state().active {
            self.make_mark(log);
        }
    }

    fn make_mark(&self, log: &ActiveLog) {
        let page = self.deferred.replace(NO_PAGE);
        if page != NO_PAGE {
            self.mark_pages(log, Subject::Ring, page, page);
        }
    }
}
