// SPDX-License-Identifier: Apache-2.0
//! What can be done with the dirty log of a [`DmaSpace`].

use super::fault::MarkFault;
use super::intervals::IntervalMap;
use super::log::{ActiveLog, LogCounters};
use super::space::{Backing, DmaSpace};
use crate::error::{Error, Result};

impl DmaSpace {
    /// Log dirty pages to [base, end) from now on. It replaces a log that runs: on return no mark reaches the old
    /// one any more. Errors: EINVAL (end <= base), EFAULT (not mapped writable); then nothing has changed.
    pub fn start_log(&self, base: u64, end: u64) -> Result<()> {
        if end <= base {
            let expected = "an end after the base";
            return Err(Error::BadLog {
                base,
                end,
                expected,
            });
        }
        let mut inner = self.inner.write();
        check_log_mapped(&inner.maps, base, end)?;
        let files = if inner.log.places.is_wanted() {
            inner.files()
        } else {
            Vec::new()
        };
        let log = &mut inner.log;
        log.record.reserve(base, end)?;
        log.places.start(log.active.is_none(), files.into_iter());
        log.record.start(end - base, log.active.is_none());
        if log.record.is_running() && log.active.is_none() {
            log.last_writes.clear();
        }
        log.active = Some(ActiveLog::new(base, end));
        Ok(())
    }

    /// Stop logging. On return every mark of every earlier store has been made, and none follows.
    pub fn stop_log(&self) {
        self.inner.write().log.active = None;
    }

    /// (base, end) of the log that runs.
    pub fn log_range(&self) -> Option<(u64, u64)> {
        let inner = self.inner.read();
        inner.log.active.as_ref().map(|log| (log.base, log.end))
    }

    /// Return when every mark of every earlier store has been made: a store and its mark are made in one batch, and
    /// the write lock waits for the batches under way.
    pub fn barrier(&self) {
        drop(self.inner.write());
    }

    /// Spoil marks from now on, for good, and count it.
    pub fn install_fault(&self, fault: MarkFault) {
        let mut inner = self.inner.write();
        inner
            .log
            .faults
            .get_or_insert_with(Box::default)
            .install(fault);
    }

    /// How many marks a fault of this kind has spoilt.
    pub fn fault_count(&self, kind: MarkFault) -> u64 {
        let inner = self.inner.read();
        inner
            .log
            .faults
            .as_ref()
            .map_or(0, |faults| faults.fired(kind))
    }

    /// Keep a copy of every bit that is set in a log, from the next start of a log on. The copy survives a change of
    /// log and a stop; a start after a stop clears it.
    pub fn record_marks(&self, on: bool) {
        self.inner.write().log.record.set_wanted(on);
    }

    /// That copy, in the format of a log.
    pub fn marked_pages(&self) -> Vec<u8> {
        self.inner.read().log.record.to_vec()
    }

    /// What the copy holds since it was last taken, and `look` called while no batch is under way: every store before
    /// that moment is before it with all of its marks, every later one is behind it with all of them. An audit that
    /// divides time into intervals looks at the pages written there. Everything waits meanwhile.
    pub fn take_marked_pages(&self, look: impl FnOnce()) -> Vec<u8> {
        let mut inner = self.inner.write();
        look();
        inner.log.record.take()
    }

    /// The counters; those of a batch are added when it ends.
    pub fn log_counters(&self) -> LogCounters {
        self.totals.snapshot()
    }
}

fn check_log_mapped(maps: &IntervalMap<Backing>, base: u64, end: u64) -> Result<()> {
    let mut fault_iova = base;
    while fault_iova < end {
        let Some(interval) = maps.at(fault_iova).filter(|i| i.value.writable) else {
            return Err(Error::LogNotMapped {
                base,
                end,
                fault_iova,
            });
        };
        // `last` is at most the top of the address space, and then `end` is reached.
        fault_iova = interval.last.saturating_add(1).max(fault_iova + 1);
    }
    Ok(())
}
