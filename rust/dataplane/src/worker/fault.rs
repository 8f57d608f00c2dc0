// SPDX-License-Identifier: Apache-2.0
//! Faults of a queue: used elements that are written twice, kicks and interrupts that are lost. A ring without a fault
//! knows nothing of them: with one, a [`FaultyRing`] stands in front of it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;

use crate::memory::Memory;
use crate::ring::{AnyRing, Chain, Ring, RingResult, RingState, Taken};

/// A fault to install.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum QueueFault {
    /// Write this used element (from 1, counted while a log runs) twice.
    DuplicateUsed(u64),
    /// After a restored start, neither scan the ring nor hear this many kicks.
    LostKick(u64),
    /// After a restored start, lose the interrupt that is owed, and this many that are due.
    LostIrq(u64),
}

/// What is installed at a queue (0: nothing), what is left of it, and how often it fired.
#[derive(Debug, Default)]
pub(crate) struct QueueFaults {
    duplicate_at: AtomicU64,
    pushed: AtomicU64,
    duplicated: AtomicU64,
    is_deaf: AtomicBool,
    scans_skipped: AtomicU64,
    kicks: Lost,
    interrupts: Lost,
}

#[derive(Debug, Default)]
struct Lost {
    wanted: AtomicU64,
    left: AtomicU64,
    fired: AtomicU64,
}

impl Lost {
    fn start(&self, is_restored: bool, owed: u64) {
        let wanted = self.wanted.load(Ordering::Relaxed);
        let lost = if is_restored && wanted > 0 {
            wanted.saturating_add(owed)
        } else {
            0
        };
        self.left.store(lost, Ordering::Relaxed);
    }

    /// Whether this one is lost.
    fn take(&self) -> bool {
        let less_one = |left: u64| left.checked_sub(1);
        // One look at a word that nobody writes, where no fault is installed.
        let is_lost = self.left.load(Ordering::Relaxed) > 0
            && self
                .left
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, less_one)
                .is_ok();
        if is_lost {
            self.fired.fetch_add(1, Ordering::Relaxed);
        }
        is_lost
    }
}

impl QueueFaults {
    /// From now on, or from the next restored start on.
    pub(crate) fn install(&self, fault: QueueFault) {
        match fault {
            QueueFault::DuplicateUsed(number) => self.duplicate_at.store(number, Ordering::Relaxed),
            QueueFault::LostKick(count) => self.kicks.wanted.store(count, Ordering::Relaxed),
            QueueFault::LostIrq(count) => self.interrupts.wanted.store(count, Ordering::Relaxed),
        }
    }

    /// How often a fault of this kind fired.
    pub(crate) fn fired(&self, kind: QueueFault) -> u64 {
        let count = |number: &AtomicU64| number.load(Ordering::Relaxed);
        match kind {
            QueueFault::DuplicateUsed(_) => count(&self.duplicated),
            QueueFault::LostKick(_) => count(&self.kicks.fired) + count(&self.scans_skipped),
            QueueFault::LostIrq(_) => count(&self.interrupts.fired),
        }
    }

    /// The queue starts: the ring to use instead of `ring`.
    pub(super) fn start(self: &Arc<Self>, ring: AnyRing, is_restored: bool) -> AnyRing {
        self.kicks.start(is_restored, 0);
        self.interrupts.start(is_restored, 1);
        let is_deaf = self.kicks.left.load(Ordering::Relaxed) > 0;
        self.is_deaf.store(is_deaf, Ordering::Relaxed);
        self.in_front_of(ring)
    }

    /// The ring to use instead of `ring`, which runs already.
    pub(super) fn in_front_of(self: &Arc<Self>, ring: AnyRing) -> AnyRing {
        let wanted = [&self.duplicate_at, &self.kicks.wanted];
        if wanted
            .iter()
            .all(|number| number.load(Ordering::Relaxed) == 0)
        {
            return ring;
        }
        let faults = Arc::clone(self);
        AnyRing::Other(Box::new(FaultyRing {
            ring,
            faults,
            has_skipped_scan: false,
            has_asked_for_kicks: false,
        }))
    }

    /// The driver kicked `count` times since the worker looked last: one that is not lost makes the queue be looked at
    /// again.
    pub(super) fn kicked(&self, count: u64) {
        let is_heard = || (0..count).any(|_| !self.kicks.take());
        if self.is_deaf.load(Ordering::Relaxed) && is_heard() {
            self.is_deaf.store(false, Ordering::Relaxed);
        }
    }

    pub(super) fn loses_interrupt(&self) -> bool {
        self.interrupts.take()
    }

    fn is_to_be_duplicated(&self) -> bool {
        let number = self.pushed.fetch_add(1, Ordering::Relaxed) + 1;
        let is_it = number == self.duplicate_at.load(Ordering::Relaxed);
        self.duplicated
            .fetch_add(u64::from(is_it), Ordering::Relaxed);
        is_it
    }
}

/// A ring as its faults let it appear.
#[derive(Debug)]
struct FaultyRing {
    ring: AnyRing,
    faults: Arc<QueueFaults>,
    has_skipped_scan: bool,
    has_asked_for_kicks: bool,
}

impl FaultyRing {
    /// Whether nobody looks at the ring; that something lay in it which nobody saw counts once.
    fn is_deaf(&mut self, memory: &Memory<'_>) -> RingResult<bool> {
        let is_deaf = self.faults.is_deaf.load(Ordering::Relaxed);
        if is_deaf && !self.has_skipped_scan && self.ring.has_available(memory)? {
            self.has_skipped_scan = true;
            self.faults.scans_skipped.fetch_add(1, Ordering::Relaxed);
        }
        Ok(is_deaf)
    }
}

impl Ring for FaultyRing {
    fn has_available(&mut self, memory: &Memory<'_>) -> RingResult<bool> {
        Ok(!self.is_deaf(memory)? && self.ring.has_available(memory)?)
    }

    fn available(&mut self, memory: &Memory<'_>, limit: u16) -> RingResult<u16> {
        if self.is_deaf(memory)? {
            return Ok(0);
        }
        self.ring.available(memory, limit)
    }

    fn pop(&mut self, memory: &Memory<'_>, chain: &mut Chain) -> RingResult<bool> {
        if self.is_deaf(memory)? {
            return Ok(false);
        }
        self.ring.pop(memory, chain)
    }

    fn unpop(&mut self, taken: Taken) {
        self.ring.unpop(taken);
    }

    fn write_used(&mut self, memory: &Memory<'_>, taken: Taken, len: u32) -> RingResult<()> {
        self.ring.write_used(memory, taken, len)
    }

    fn push_used(&mut self, memory: &Memory<'_>, taken: Taken, len: u32) -> RingResult<()> {
        self.ring.push_used(memory, taken, len)?;
        if memory.is_logging() && self.faults.is_to_be_duplicated() {
            self.ring.write_used(memory, taken, len)?;
        }
        Ok(())
    }

    fn publish(&mut self, memory: &Memory<'_>) -> RingResult<bool> {
        self.ring.publish(memory)
    }

    fn enable_kicks(&mut self, memory: &Memory<'_>) -> RingResult<bool> {
        if self.is_deaf(memory)? {
            // Once, as a device does that finds nothing: what the one before it has left in memory depends on whether
            // it slept when it was stopped.
            if !std::mem::replace(&mut self.has_asked_for_kicks, true) {
                self.ring.enable_kicks(memory)?;
            }
            return Ok(false);
        }
        self.ring.enable_kicks(memory)
    }

    fn disable_kicks(&mut self, memory: &Memory<'_>) -> RingResult<()> {
        self.ring.disable_kicks(memory)
    }

    fn check_restored(&self, memory: &Memory<'_>) -> RingResult<()> {
        self.ring.check_restored(memory)
    }

    fn state(&self) -> RingState {
        self.ring.state()
    }

    fn size(&self) -> u16 {
        self.ring.size()
    }
}
