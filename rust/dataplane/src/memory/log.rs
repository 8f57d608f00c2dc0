// SPDX-License-Identifier: Apache-2.0
//! The state of the dirty log: its range, the copy of what was marked, the counters.
//!
//! Page p is IOVA >> 12; its bit is bit p % 8 (least significant first) of byte p / 8 of the log.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicU8, Ordering};

use super::fault::MarkFaults;
use super::last_writes::LastWrites;
use super::places::PlaceRecord;
use crate::error::{Error, Result};

/// The copy of the marks takes at most this many bytes: guest addresses up to 8 TiB.
const MAX_RECORD_BYTES: u64 = 1 << 28;

/// What the log has counted since the DMA space was created. A batch adds its counts when it ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogCounters {
    /// Pages marked, however often.
    pub marks: u64,
    /// Bits that went from 0 to 1.
    pub pages_marked: u64,
    /// Marks of pages beyond the end of the log.
    pub log_overflow: u64,
    /// Marks lost because the log's memory had been unmapped.
    pub log_unmapped: u64,
    /// Marks that faults dropped.
    pub marks_dropped_by_fault: u64,
}

/// A log that runs: [base, end) in the IOVA space of the device itself.
#[derive(Debug)]
pub(super) struct ActiveLog {
    pub(super) base: u64,
    pub(super) end: u64,
    /// Whether the violation for a page beyond the end has been recorded.
    pub(super) overflow_reported: AtomicBool,
}

impl ActiveLog {
    pub(super) fn new(base: u64, end: u64) -> Self {
        Self {
            base,
            end,
            overflow_reported: AtomicBool::new(false),
        }
    }

    pub(super) fn size_bytes(&self) -> u64 {
        self.end - self.base
    }

    pub(super) fn overlaps(&self, first: u64, last: u64) -> bool {
        first < self.end && last >= self.base
    }
}

/// A copy of every bit that was set, for audits. It outlives the logs it was made from.
#[derive(Debug, Default)]
pub(super) struct MarkRecord {
    wanted: bool,
    running: bool,
    bits: Vec<AtomicU8>,
}

impl MarkRecord {
    /// Whether marks are recorded now.
    pub(super) fn is_running(&self) -> bool {
        self.running
    }

    /// On: from the next start of a log. Off: at once; what is recorded stays readable.
    pub(super) fn set_wanted(&mut self, on: bool) {
        self.wanted = on;
        self.running &= on;
    }

    /// Make room for a log of this length. Nothing that is seen from outside changes.
    pub(super) fn reserve(&mut self, base: u64, end: u64) -> Result<()> {
        if !self.wanted {
            return Ok(());
        }
        let bytes = end - base;
        let too_long = Error::BadLog {
            base,
            end,
            expected: "at most 2^28 bytes of log while marks are recorded",
        };
        if bytes > MAX_RECORD_BYTES {
            return Err(too_long);
        }
        let more = (bytes as usize).saturating_sub(self.bits.len());
        self.bits.try_reserve_exact(more).map_err(|_| too_long)
    }

    /// A log of this length starts; `first` if none ran. The room is reserved.
    pub(super) fn start(&mut self, bytes: u64, first: bool) {
        if !self.wanted {
            return;
        }
        if first {
            self.bits.clear();
        }
        self.running = true;
        let len = self.bits.len().max(bytes as usize);
        self.bits.resize_with(len, AtomicU8::default);
    }

    /// The bits of `mask` were set in byte `index` of the log.
    pub(super) fn set(&self, index: u64, mask: u8) {
        if self.running {
            if let Some(byte) = self.bits.get(index as usize) {
                byte.fetch_or(mask, Ordering::Relaxed);
            }
        }
    }

    /// What is recorded; the record begins anew.
    pub(super) fn take(&mut self) -> Vec<u8> {
        self.bits
            .iter_mut()
            .map(|byte| std::mem::take(byte.get_mut()))
            .collect()
    }

    pub(super) fn to_vec(&self) -> Vec<u8> {
        self.bits
            .iter()
            .map(|byte| byte.load(Ordering::Relaxed))
            .collect()
    }
}

/// Everything about logging that a batch sees; changed only while no batch runs.
#[derive(Debug, Default)]
pub(super) struct LogState {
    pub(super) active: Option<ActiveLog>,
    pub(super) faults: Option<Box<MarkFaults>>,
    pub(super) record: MarkRecord,
    pub(super) places: PlaceRecord,
    pub(super) last_writes: LastWrites,
}

/// The counts of one batch, kept apart so that workers don't share a cache line.
#[derive(Debug, Default)]
pub(super) struct BatchCounts {
    pub(super) marks: Cell<u64>,
    pub(super) pages_marked: Cell<u64>,
    pub(super) log_overflow: Cell<u64>,
    pub(super) log_unmapped: Cell<u64>,
    pub(super) dropped_by_fault: Cell<u64>,
}

/// Add to a count of a batch.
pub(super) fn add(count: &Cell<u64>, more: u64) {
    count.set(count.get() + more);
}

/// The counts of all batches that have ended. In cache lines of their own: every worker adds to them.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(super) struct TotalCounts {
    marks: AtomicU64,
    pages_marked: AtomicU64,
    log_overflow: AtomicU64,
    log_unmapped: AtomicU64,
    dropped_by_fault: AtomicU64,
}

impl TotalCounts {
    pub(super) fn add(&self, batch: &BatchCounts) {
        let pairs = [
            (&self.marks, &batch.marks),
            (&self.pages_marked, &batch.pages_marked),
            (&self.log_overflow, &batch.log_overflow),
            (&self.log_unmapped, &batch.log_unmapped),
            (&self.dropped_by_fault, &batch.dropped_by_fault),
        ];
        for (total, more) in pairs {
            if more.get() > 0 {
                total.fetch_add(more.get(), Ordering::Relaxed);
            }
        }
    }

    pub(super) fn snapshot(&self) -> LogCounters {
        LogCounters {
            marks: self.marks.load(Ordering::Relaxed),
            pages_marked: self.pages_marked.load(Ordering::Relaxed),
            log_overflow: self.log_overflow.load(Ordering::Relaxed),
            log_unmapped: self.log_unmapped.load(Ordering::Relaxed),
            marks_dropped_by_fault: self.dropped_by_fault.load(Ordering::Relaxed),
        }
    }
}
