// SPDX-License-Identifier: Apache-2.0
//! Setting bits in the dirty log, after the stores they stand for.

use std::sync::atomic::Ordering;

use super::access::Memory;
use super::fault::Subject;
use super::log::{add, ActiveLog};
use super::{Range, PAGE_SHIFT};
use crate::violation::Violation;

const LOG_CLAUSE: &str = "LM registers, Logging";

impl Memory<'_> {
    /// Mark every page of `range`, if a log runs. The stores of this type mark by themselves; this is for whoever
    /// has to mark once more.
    #[inline]
    pub fn mark(&self, range: Range) {
        self.mark_as(Subject::Data, range);
    }

    /// Mark every page of `range`, if a log runs.
    #[inline]
    pub(super) fn mark_as(&self, subject: Subject, range: Range) {
        if let Some(log) = &self.log_state().active {
            self.mark_in(log, subject, range);
        }
    }

    fn mark_in(&self, log: &ActiveLog, subject: Subject, range: Range) {
        if range.len == 0 {
            return;
        }
        if self.log_state().record.is_running() {
            self.record_write(subject, range);
        }
        let last_page = range.iova.saturating_add(range.len - 1) >> PAGE_SHIFT;
        self.mark_pages(log, subject, range.iova >> PAGE_SHIFT, last_page);
    }

    /// Mark these pages, the last one included.
    pub(super) fn mark_pages(
        &self,
        log: &ActiveLog,
        subject: Subject,
        first_page: u64,
        last_page: u64,
    ) {
        let mut page = first_page;
        while page <= last_page {
            let byte = page / 8;
            if byte >= log.size_bytes() {
                self.report_overflow(log, page, last_page);
                return;
            }
            let last_of_byte = last_page.min(byte * 8 + 7);
            self.mark_byte(log, subject, byte, bit_mask(page % 8, last_of_byte % 8));
            page = last_of_byte + 1;
        }
    }

    /// Always an atomic OR, even if the bits are set already. The reader exchanges the word with zero and then
    /// copies the pages. A plain look at the bit could be answered from before that exchange although our store
    /// lands after the page was copied: x86 lets a load overtake an earlier store, arm64 nearly everything. The
    /// mark would be skipped, the bit be gone, and the page lost. An OR is ordered with the exchange: either the
    /// reader takes our bit and with it sees our store, or the bit stays for its next round.
    fn mark_byte(&self, log: &ActiveLog, subject: Subject, byte: u64, wanted: u8) {
        let mask = match &self.log_state().faults {
            Some(faults) => faults.apply(log, subject, byte, wanted),
            None => wanted,
        };
        let counts = self.counts();
        add(&counts.dropped_by_fault, count(wanted) - count(mask));
        if mask == 0 {
            return;
        }
        let Some((iova, target)) = self.log_byte(log.base + byte) else {
            add(&counts.log_unmapped, count(mask));
            return;
        };
        let before = target.or_u8(mask);
        add(&counts.marks, count(mask));
        add(&counts.pages_marked, count(mask & !before));
        if self.log_state().record.is_running() {
            self.record_marks(iova - log.base, mask);
        }
    }

    fn report_overflow(&self, log: &ActiveLog, page: u64, last_page: u64) {
        add(&self.counts().log_overflow, last_page - page + 1);
        if log.overflow_reported.swap(true, Ordering::Relaxed) {
            return;
        }
        self.violations().record(Violation {
            queue: -1,
            kind: "log_overflow",
            value: page << PAGE_SHIFT,
            clause: LOG_CLAUSE,
            detail: format!(
                "page {page:#x} was written, but the log [{:#x}, {:#x}) ends with page {:#x}",
                log.base,
                log.end,
                log.size_bytes().saturating_mul(8) - 1
            ),
        });
    }
}

/// The violation for a log that loses (part of) its memory.
pub(super) fn log_unmapped(log: &ActiveLog, iova: u64) -> Violation {
    Violation {
        queue: -1,
        kind: "log_unmapped",
        value: iova,
        clause: LOG_CLAUSE,
        detail: format!(
            "memory at {iova:#x} was unmapped while the log [{:#x}, {:#x}) ran in it",
            log.base, log.end
        ),
    }
}

/// Bits `first` to `last` (0..=7).
pub(super) fn bit_mask(first: u64, last: u64) -> u8 {
    (0xff << first) & (0xff >> (7 - last))
}

fn count(mask: u8) -> u64 {
    u64::from(mask.count_ones())
}
