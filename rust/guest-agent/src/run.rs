// SPDX-License-Identifier: Apache-2.0
//! One run of traffic: what its threads share.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::receive::Received;
use crate::wire::Summary;

/// What the lab ordered.
#[derive(Clone, Copy, Debug, Default)]
pub struct Order {
    /// Which run; 0 before the first.
    pub run_id: u64,
    /// Packets a second.
    pub rate_pps: u32,
    /// Shortest payload in bytes.
    pub min_length: usize,
    /// Longest payload in bytes.
    pub max_length: usize,
    /// Seed of lengths and bodies.
    pub seed: u64,
}

/// A run's state.
#[derive(Default)]
pub struct Run {
    /// What was ordered.
    pub order: Order,
    /// Packets go out.
    pub sending: bool,
    /// Sequence numbers used up.
    pub sent: u64,
    /// Packets that the kernel did not take.
    pub send_errors: u32,
    /// The receive side.
    pub received: Received,
}

/// The run that the threads share, and its clock.
pub struct Shared {
    run: Mutex<Run>,
    changed: Condvar,
    epoch: Instant,
}

impl Shared {
    /// Nothing ordered yet.
    pub fn new() -> Self {
        Self {
            run: Mutex::default(),
            changed: Condvar::new(),
            epoch: Instant::now(),
        }
    }

    /// Nanoseconds on this machine's monotonic clock.
    pub fn now_ns(&self) -> u64 {
        self.epoch.elapsed().as_nanos() as u64
    }

    /// The run, locked.
    pub fn lock(&self) -> MutexGuard<'_, Run> {
        self.run.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a run; the same one again changes nothing (its request was repeated).
    pub fn start(&self, order: Order) {
        let mut run = self.lock();
        if run.order.run_id != order.run_id {
            *run = Run {
                order,
                sending: true,
                ..Run::default()
            };
            self.changed.notify_all();
        }
    }

    /// Ends the sending of this run.
    pub fn stop(&self) {
        self.lock().sending = false;
    }

    /// Waits until a run other than `known` is being sent.
    pub fn wait_for_other(&self, known: u64) -> Order {
        let mut run = self.lock();
        while !run.sending || run.order.run_id == known {
            run = self
                .changed
                .wait(run)
                .unwrap_or_else(PoisonError::into_inner);
        }
        run.order
    }

    /// Takes the next sequence number of a run, None when it is over.
    pub fn take_sequence(&self, run_id: u64) -> Option<(u64, Summary)> {
        let mut run = self.lock();
        if !run.sending || run.order.run_id != run_id {
            return None;
        }
        run.sent += 1;
        Some((run.sent - 1, run.received.summary))
    }
}
