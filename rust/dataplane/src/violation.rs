// SPDX-License-Identifier: Apache-2.0
//! What guests, drivers and clients did wrong: recorded with its evidence, bounded, never silent.

use std::collections::VecDeque;

use parking_lot::Mutex;
use vmm_sys_util::eventfd::EventFd;

/// One thing that broke a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The virtqueue, or -1 where none is concerned.
    pub queue: i32,
    /// A short name, stable across versions.
    pub kind: &'static str,
    /// The offending value.
    pub value: u64,
    /// The clause that was broken.
    pub clause: &'static str,
    /// A sentence for people.
    pub detail: String,
}

/// Kind of the entry that [`ViolationLog::take`] adds when entries were dropped; its value is how many.
pub const VIOLATIONS_DROPPED: &str = "violations_dropped";

#[derive(Debug, Default)]
struct Entries {
    kept: VecDeque<Violation>,
    total: u64,
    dropped: u64,
    dropped_since_take: u64,
    event: Option<EventFd>,
}

/// A bounded, thread-safe list of violations. When it is full, the first ones are kept (they are the cause,
/// what follows is mostly the consequence) and the later ones counted.
#[derive(Debug)]
pub struct ViolationLog {
    capacity: usize,
    entries: Mutex<Entries>,
}

impl ViolationLog {
    /// A log that keeps at most `capacity` entries between two calls of [`Self::take`].
    pub fn new(capacity: usize) -> Self {
        Self {
            capacity,
            entries: Mutex::default(),
        }
    }

    /// Signal this eventfd at every record from now on (None: none).
    pub fn set_event(&self, event: Option<EventFd>) {
        self.entries.lock().event = event;
    }

    /// Keep or count one violation.
    pub fn record(&self, violation: Violation) {
        let mut entries = self.entries.lock();
        entries.total += 1;
        if entries.kept.len() < self.capacity {
            entries.kept.push_back(violation);
        } else {
            entries.dropped += 1;
            entries.dropped_since_take += 1;
        }
        if let Some(event) = &entries.event {
            // It fails only when the counter is at its maximum, and then it is signalled already.
            let _ = event.write(1);
        }
    }

    /// Remove and return what is kept, oldest first. If entries were dropped since the last call, a last
    /// entry of kind [`VIOLATIONS_DROPPED`] says how many.
    pub fn take(&self) -> Vec<Violation> {
        let mut entries = self.entries.lock();
        let mut taken: Vec<Violation> = entries.kept.drain(..).collect();
        let dropped = std::mem::take(&mut entries.dropped_since_take);
        if dropped > 0 {
            taken.push(Violation {
                queue: -1,
                kind: VIOLATIONS_DROPPED,
                value: dropped,
                clause: "",
                detail: format!("{dropped} more violations came than the log keeps"),
            });
        }
        taken
    }

    /// How many were recorded since creation, dropped ones included.
    pub fn total(&self) -> u64 {
        self.entries.lock().total
    }

    /// How many were dropped since creation.
    pub fn dropped(&self) -> u64 {
        self.entries.lock().dropped
    }
}

impl Default for ViolationLog {
    fn default() -> Self {
        Self::new(1024)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn violation(value: u64) -> Violation {
        Violation {
            queue: -1,
            kind: "test",
            value,
            clause: "none",
            detail: String::new(),
        }
    }

    fn values(log: &ViolationLog) -> Vec<(&'static str, u64)> {
        log.take().iter().map(|v| (v.kind, v.value)).collect()
    }

    #[test]
    fn a_full_log_keeps_the_first_and_says_how_many_it_dropped() {
        let log = ViolationLog::new(2);
        (1..=5).for_each(|value| log.record(violation(value)));
        assert_eq!((log.total(), log.dropped()), (5, 3));
        let expected = [("test", 1), ("test", 2), (VIOLATIONS_DROPPED, 3)];
        assert_eq!(values(&log), expected);
        log.record(violation(6));
        assert_eq!(values(&log), [("test", 6)]);
        assert_eq!((log.total(), log.dropped()), (6, 3));
    }

    #[test]
    fn each_record_signals_the_event() {
        let log = ViolationLog::default();
        let event = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        log.set_event(Some(event.try_clone().unwrap()));
        log.record(violation(1));
        log.record(violation(2));
        assert_eq!(event.read().unwrap(), 2);
        log.set_event(None);
        log.record(violation(3));
        assert!(event.read().is_err());
    }
}
