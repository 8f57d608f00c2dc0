// SPDX-License-Identifier: Apache-2.0
//! What a worker that has run out of work wants to know of its pair, and tells the driver before it sleeps.

use std::time::{Duration, Instant};

use super::coalesce::Nap;
use super::pair::{Pair, PortWish, Side};
use super::queue::Queue;
use super::receive::Ended;

impl Pair {
    /// Whether a look at the rings and the port says that a batch is worth it.
    pub(super) fn has_work(&self) -> bool {
        let mut guard = self.lock_as_worker();
        let state = &mut *guard;
        if !state.tx_is_blocked && self.offers_chain(&mut state.tx) {
            return true;
        }
        match state.rx_ended {
            // A packet that waits for more chains than there are would make this say yes for ever.
            Some(Ended::NoBuffers) => state.inbox.is_empty() && self.offers_chain(&mut state.rx),
            Some(Ended::NoPackets) => !state.port_is_gone && self.events.is_readable(&self.port),
            _ => false,
        }
    }

    fn offers_chain(&self, side: &mut Side) -> bool {
        if side.slot.waits(&self.space) {
            return false;
        }
        match side.slot.ring.as_deref_mut() {
            // A fault is for the next batch to report.
            Some(ring) => ring.has_available(&self.space.lock()) != Ok(false),
            None => false,
        }
    }

    /// How long to look for more after work. None: there was none since the worker rested.
    pub(super) fn patience(&self) -> Option<Duration> {
        let limit = self.poll_time();
        self.lock_as_worker().rhythm.patience(limit)
    }

    /// What came of that: how long it took until there was work.
    pub(super) fn polled(&self, waited: Option<Duration>) {
        let limit = self.poll_time();
        self.lock_as_worker().rhythm.polled(limit, waited);
    }

    /// The nap to take after work.
    pub(super) fn nap(&self) -> Option<Nap> {
        let limit = self.coalesce_time();
        self.lock_as_worker().rhythm.nap(limit, Instant::now())
    }

    /// Ask the driver for kicks and say what else to wait for, as far as no nap does without. None: there is work
    /// already.
    pub(super) fn prepare_sleep(&self, nap: Option<Nap>) -> Option<PortWish> {
        let mut guard = self.lock_as_worker();
        let state = &mut *guard;
        let asked = nap;
        let nap = nap.unwrap_or_default();
        let mut wish = PortWish {
            readable: state.rx_ended == Some(Ended::NoPackets) && !nap.receives,
            writable: state.tx_is_blocked,
        };
        let hears_tx = !state.tx_is_blocked && !nap.sends;
        if hears_tx && self.enable_kicks(&mut state.tx, &self.tx) {
            return None;
        }
        let lacks_buffers = state.rx_ended == Some(Ended::NoBuffers) && !nap.receives;
        if state.rx_ended == Some(Ended::Budget)
            || lacks_buffers && self.enable_kicks(&mut state.rx, &self.rx)
        {
            return None;
        }
        if state.port_is_gone {
            wish = PortWish::default();
        }
        state.rhythm.rest(asked);
        self.hand_over(guard);
        Some(wish)
    }

    pub(super) fn enable_kicks(&self, side: &mut Side, queue: &Queue) -> bool {
        self.look(side, queue, |ring, memory| ring.enable_kicks(memory))
            .unwrap_or(false)
    }
}
