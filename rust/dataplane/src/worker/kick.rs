// SPDX-License-Identifier: Apache-2.0
//! A kick by whoever is told of it first. While the worker rests he does the work himself: that saves a wake-up, which
//! costs more than a packet does.

use std::time::Instant;

use super::coalesce::Done;
use super::pair::{Direction, Pair, State};
use super::receive::Ended;
use super::transmit::Transmitted;

/// What is sent in the worker's place at once: whoever has more to send keeps the worker busy, not the one who kicks.
const BUDGET: u16 = 16;

impl Pair {
    /// The driver has written this queue's doorbell.
    pub(crate) fn kick(&self, direction: Direction) {
        let is_heard = match direction {
            Direction::Receive => self.receives_anyway(),
            Direction::Transmit => self.transmit_for_worker(),
        };
        if is_heard {
            self.queue(direction).kicked(1);
        } else {
            // Only a counter at its maximum makes this fail, and then it is signalled already.
            let _ = self.queue(direction).kick.write(1);
        }
    }

    /// Whether new receive buffers change nothing: the worker sleeps until there is a packet, or until the queue is
    /// started, which makes it look at the ring.
    fn receives_anyway(&self) -> bool {
        let is_idle = |state: &State| {
            state.rx.slot.ring.is_none() || state.rx_ended == Some(Ended::NoPackets)
        };
        self.playing_understudy().is_none()
            && self
                .try_lock()
                .is_some_and(|state| state.rhythm.is_resting() && is_idle(&state))
    }

    /// Send what there is. False: the worker has to do it.
    fn transmit_for_worker(&self) -> bool {
        let Some(mut guard) = self.try_lock() else {
            return false;
        };
        let state = &mut *guard;
        if !state.rhythm.is_resting() || state.tx_is_blocked || state.hooked.hook.is_some() {
            return false;
        }
        let sent = self.transmit(&mut state.tx, BUDGET);
        let is_done = sent.map_or(true, |sent| {
            // Nothing is what a kick is about that was meant for what has been sent by now, or that waits for a map.
            sent.chains == 0 && !sent.is_blocked || self.leave(state, sent)
        });
        self.hand_over(guard);
        if !is_done {
            self.events.wake();
        }
        true
    }

    /// Whether the worker can rest on, behind these.
    fn leave(&self, state: &mut State, sent: Transmitted) -> bool {
        let done = Done {
            sent: sent.chains.into(),
            received: 0,
        };
        state.rhythm.worked(done);
        state.tx_is_blocked = sent.is_blocked;
        let (poll, coalesce) = (self.poll_time(), self.coalesce_time());
        !sent.is_blocked
            && sent.chains < BUDGET
            && state.rhythm.rests_on(poll, coalesce, Instant::now())
            && !self.enable_kicks(&mut state.tx, &self.tx)
    }
}
