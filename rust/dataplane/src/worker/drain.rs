// SPDX-License-Identifier: Apache-2.0
//! How a pair comes to rest: its queues are drained and stopped, or it is taken out of service for reception.

use std::time::Instant;

use parking_lot::MutexGuard;

use super::pair::{Direction, Pair, State, BATCH, DRAIN_TIMEOUT};
use super::receive::Ended;
use crate::counters::Drop as DropReason;
use crate::ring::RingState;

/// A back end that is filled faster than it can be flushed must not hold the caller for ever.
const FLUSH_LIMIT: u64 = 1 << 16;

impl Pair {
    /// Drain, then take the ring out. Runs on the caller's thread: when the lock is his, no batch is in progress, and
    /// after it the worker finds no ring.
    pub(crate) fn stop(&self, direction: Direction) -> RingState {
        let mut state = self.lock();
        match direction {
            Direction::Receive => self.drain_receive(&mut state),
            Direction::Transmit => self.drain_transmit(&mut state),
        }
        self.take_out(state, direction)
    }

    /// Take the ring out as it is.
    pub(crate) fn halt(&self, direction: Direction) -> RingState {
        self.take_out(self.lock(), direction)
    }

    fn take_out(&self, mut state: MutexGuard<'_, State>, direction: Direction) -> RingState {
        let (side, queue) = state.side(self, direction);
        let last = side.slot.stop(queue);
        drop(state);
        self.events.wake();
        last
    }

    /// Whether the pair may receive from now on. One that may not any more delivers what has come for it, as long as
    /// there are buffers, and drops the rest.
    pub(crate) fn set_active(&self, is_active: bool) {
        let mut state = self.lock();
        if state.is_active == is_active {
            return;
        }
        if is_active {
            state.port_is_gone = false;
        } else {
            self.drain_transmit(&mut state);
            self.drain_receive(&mut state);
            self.flush_port(&mut state);
            state.rx_ended = None;
        }
        state.is_active = is_active;
        drop(state);
        self.events.wake();
    }

    /// Drop what the back end has queued; how many packets.
    pub(crate) fn flush(&self) -> u64 {
        self.flush_port(&mut self.lock())
    }

    fn flush_port(&self, state: &mut State) -> u64 {
        let mut flushed = state.inbox.clear();
        while flushed < FLUSH_LIMIT && self.port.discard() {
            flushed += 1;
        }
        self.rx.counters.dropped(DropReason::NoBuffer, flushed);
        flushed
    }

    /// Send all chains that are available now.
    fn drain_transmit(&self, state: &mut MutexGuard<'_, State>) {
        if state.hooked.hook.is_some() {
            return self.wait_for_hook(state);
        }
        let Some(mut left) = self.available(state) else {
            return;
        };
        let deadline = Instant::now() + DRAIN_TIMEOUT;
        while left > 0 {
            let Some(done) = self.transmit(&mut state.tx, left.min(BATCH)) else {
                return;
            };
            left -= done.chains;
            let patience = deadline.saturating_duration_since(Instant::now());
            if done.is_blocked && !self.events.wait_writable(&self.port, patience) {
                return;
            }
            if !done.is_blocked && done.chains == 0 {
                return;
            }
        }
    }

    /// None: the transmit queue does not run, or is broken.
    fn available(&self, state: &mut State) -> Option<u16> {
        self.look(&mut state.tx, &self.tx, |ring, memory| {
            ring.available(memory, u16::MAX)
        })
    }

    /// Deliver what the back end has, as long as there are buffers.
    fn drain_receive(&self, state: &mut State) {
        // A packet that a hook has not seen stays where it is.
        if !state.is_active || state.hooked.hook.is_some() {
            return;
        }
        let Some(ring) = &state.rx.slot.ring else {
            return;
        };
        let mut left = ring.size();
        while left > 0 {
            match self.receive(&mut state.rx, &mut state.inbox, left.min(BATCH)) {
                Some(batch) if batch.ended == Ended::Budget => {
                    left = left.saturating_sub(batch.packets.max(1));
                }
                _ => return,
            }
        }
    }
}
