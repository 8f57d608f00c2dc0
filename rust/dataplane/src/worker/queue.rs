// SPDX-License-Identifier: Apache-2.0
//! One virtqueue as the workers hold it: what anyone may touch at any time ([`Queue`]), and what needs the lock of
//! its owner ([`Slot`]).

use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::Arc;

use parking_lot::Mutex;
use vmm_sys_util::eventfd::EventFd;

use super::fault::{QueueFault, QueueFaults};
use super::signal::{Call, Signal};
use crate::counters::QueueCounters;
use crate::error::{Error, Result};
use crate::memory::{DmaSpace, Memory};
use crate::os::new_eventfd;
use crate::ring::{self, AnyRing, Ring, RingConfig, RingFault, RingResult, RingState, F_IN_ORDER};
use crate::violation::{Violation, ViolationLog};

/// The part of a queue that needs no lock, or its own short one.
#[derive(Debug)]
pub(crate) struct Queue {
    index: AtomicU16,
    pub(crate) kick: EventFd,
    pub(crate) attached_kick: Mutex<Option<Signal>>,
    pub(crate) call: Call,
    pub(crate) counters: QueueCounters,
    pub(crate) faults: Arc<QueueFaults>,
    is_running: AtomicBool,
    has_broken: AtomicBool,
    violations: Arc<ViolationLog>,
}

impl Queue {
    pub(crate) fn new(index: u16, violations: Arc<ViolationLog>) -> Result<Self> {
        Ok(Self {
            index: AtomicU16::new(index),
            kick: new_eventfd()?,
            attached_kick: Mutex::default(),
            call: Call::default(),
            counters: QueueCounters::default(),
            faults: Arc::default(),
            is_running: AtomicBool::new(false),
            has_broken: AtomicBool::new(false),
            violations,
        })
    }

    /// The virtqueue that it is now.
    pub(crate) fn index(&self) -> u16 {
        self.index.load(Ordering::Relaxed)
    }

    pub(crate) fn set_index(&self, index: u16) {
        self.index.store(index, Ordering::Relaxed);
    }

    pub(crate) fn is_running(&self) -> bool {
        self.is_running.load(Ordering::Acquire)
    }

    /// Whether a fault in its ring has stopped it since the last call. A stop or a start in between changes nothing.
    pub(crate) fn take_broken(&self) -> bool {
        self.has_broken.swap(false, Ordering::AcqRel)
    }

    pub(crate) fn interrupt(&self) {
        self.counters.interrupted();
        if !self.faults.loses_interrupt() {
            self.call.raise();
        }
    }

    /// The driver kicked `count` times.
    pub(super) fn kicked(&self, count: u64) {
        self.counters.kicked(count);
        self.faults.kicked(count);
    }

    pub(crate) fn record(&self, violation: Violation) {
        self.violations.record(violation);
    }
}

/// The part of a queue that its owner's lock guards.
#[derive(Debug, Default)]
pub(crate) struct Slot {
    pub(crate) ring: Option<AnyRing>,
    /// The negotiated features.
    pub(crate) features: u64,
    /// Changes with every start and stop.
    pub(crate) generation: u64,
    last_state: RingState,
    config: RingConfig,
    /// The generation of the maps that lack one that the ring needs.
    waits_since: Option<u64>,
}

impl Slot {
    /// Put a ring in. Errors: there is one, or `config` does not make one.
    pub(crate) fn start(
        &mut self,
        queue: &Queue,
        space: &DmaSpace,
        config: &RingConfig,
    ) -> Result<()> {
        if self.ring.is_some() {
            return Err(Error::State(format!(
                "queue {} runs: stop it before it is started again",
                queue.index()
            )));
        }
        let memory = space.lock();
        let ring = ring::open(config, &memory)?;
        if config.restored {
            check_restored(queue, config, &*ring, &memory);
        } else {
            queue.call.forget();
        }
        drop(memory);
        self.ring = Some(queue.faults.start(ring, config.restored));
        self.features = config.features;
        self.config = *config;
        self.waits_since = None;
        self.generation += 1;
        queue.is_running.store(true, Ordering::Release);
        if config.restored {
            // A call that was lost in the switch-over must not hang the guest.
            queue.interrupt();
        }
        Ok(())
    }

    /// Make the queue faulty, the ring that runs included.
    pub(crate) fn install_fault(&mut self, queue: &Queue, fault: QueueFault) {
        queue.faults.install(fault);
        self.ring = self.ring.take().map(|ring| queue.faults.in_front_of(ring));
    }

    /// Where the ring stands, or stood when it was stopped.
    pub(crate) fn state(&self) -> RingState {
        self.ring
            .as_ref()
            .map_or(self.last_state, |ring| ring.state())
    }

    /// Take the ring out; what was in flight counts as not taken.
    pub(crate) fn stop(&mut self, queue: &Queue) -> RingState {
        self.take_out(queue);
        self.last_state
    }

    /// Take the ring out because of a fault in it, and tell.
    pub(crate) fn break_down(&mut self, queue: &Queue, space: &DmaSpace, fault: RingFault) {
        self.publish_what_is_done(queue, &space.lock());
        self.take_out(queue);
        queue.has_broken.store(true, Ordering::Release);
        queue.record(fault.into_violation(queue.index()));
    }

    /// Whether the ring waits for a map that has not come.
    pub(crate) fn waits(&self, space: &DmaSpace) -> bool {
        self.waits_since
            .is_some_and(|since| since == space.map_generation())
    }

    /// Check that the ring itself is mapped, where maps come and go. Nothing of it is used between this check and the
    /// end of the batch that could miss.
    pub(crate) fn check_areas(&self, space: &DmaSpace, memory: &Memory<'_>) -> RingResult<()> {
        if space.waits_for_maps() {
            ring::check_areas(&self.config, memory)?;
        }
        Ok(())
    }

    /// A batch has failed: wait for the map that it missed and that can be asked for, else break down. True: it
    /// waits. `memory` is the batch's own guard: what the batch has done is published under it, for once it is
    /// dropped the ring itself may be unmapped. `generation` is that of the maps before the batch.
    pub(crate) fn fail(
        &mut self,
        queue: &Queue,
        space: &DmaSpace,
        fault: RingFault,
        memory: Memory<'_>,
        generation: u64,
    ) -> bool {
        let missed = memory.missed();
        self.publish_what_is_done(queue, &memory);
        queue.counters.dirtied(&memory);
        // Under the guard: a map that comes now takes the request back, one that has come is none to ask for.
        let is_asked = missed.is_some_and(|miss| space.request_map(miss));
        drop(memory);
        if is_asked {
            self.waits_since = Some(generation);
            return true;
        }
        self.break_down(queue, space, fault);
        false
    }

    fn take_out(&mut self, queue: &Queue) {
        self.last_state = self.state();
        if self.ring.take().is_some() {
            self.generation += 1;
        }
        queue.is_running.store(false, Ordering::Release);
    }

    /// The chains before the bad one were served: the driver shall see that, if the ring still allows it.
    fn publish_what_is_done(&mut self, queue: &Queue, memory: &Memory<'_>) {
        if let Some(ring) = &mut self.ring {
            if let Ok(true) = ring.publish(memory) {
                queue.interrupt();
            }
        }
    }
}

/// A restored state is checked against what lies in memory (LM_RING_STATE) and against what was negotiated. The queue
/// runs all the same: a migration that went wrong shows, and harms no more than it has.
fn check_restored(queue: &Queue, config: &RingConfig, ring: &dyn Ring, memory: &Memory<'_>) {
    if let Err(fault) = ring.check_restored(memory) {
        queue.record(fault.into_violation(queue.index()));
    }
    let RingState {
        last_avail_idx,
        used_idx,
    } = config.state;
    if config.features & F_IN_ORDER != 0 && last_avail_idx != used_idx {
        queue.record(Violation {
            queue: i32::from(queue.index()),
            kind: "restored_gap",
            value: u64::from(used_idx) << 16 | u64::from(last_avail_idx),
            clause: "virtio 1.3 2.7.9, 2.8.8: with IN_ORDER buffers are used in the order they came in",
            detail: format!(
                "restored last_avail_idx is {last_avail_idx:#x} and used_idx {used_idx:#x}: what lies between will \
                 never be used"
            ),
        });
    }
}
