// SPDX-License-Identifier: Apache-2.0
//! Rings whose maps come and go: a look at one that may have to wait, and asking for what it will need.

use super::pair::{Pair, Side};
use super::queue::Queue;
use crate::memory::Memory;
use crate::ring::{Chain, Ring, RingResult};

impl Pair {
    /// The ring waits for a map: ask for those of the next chains, too, so that the answers come in one go. What is
    /// wrong with a chain is told when its turn comes.
    pub(super) fn ask_ahead(&self, side: &mut Side) {
        const CHAINS: usize = 32;
        let Some(ring) = side.slot.ring.as_deref_mut() else {
            return;
        };
        let memory = self.space.lock();
        let mut taken = Vec::with_capacity(CHAINS);
        while taken.len() < CHAINS && ring.pop(&memory, &mut side.chain) == Ok(true) {
            taken.push(side.chain.taken);
            let readable = side.chain.readable.iter().map(|range| (*range, false));
            let writable = side.chain.writable.iter().map(|range| (*range, true));
            for (range, write) in readable.chain(writable) {
                if memory.check(range, write).is_err() {
                    memory.missed().map(|miss| self.space.request_map(miss));
                }
            }
        }
        while let Some(last) = taken.pop() {
            ring.unpop(last);
        }
    }

    /// Look at a ring outside of a batch. None: it does not run, waits for a map, or has just broken.
    pub(super) fn look<T>(
        &self,
        side: &mut Side,
        queue: &Queue,
        look: impl FnOnce(&mut dyn Ring, &Memory<'_>) -> RingResult<T>,
    ) -> Option<T> {
        self.attempt(side, queue, |ring, _chain, memory| look(ring, memory))
    }

    /// Do something with a ring that may miss a map and is tried again then. None: it does not run, waits for a map, or
    /// has just broken. The areas of the ring itself are mapped.
    pub(super) fn attempt<T>(
        &self,
        side: &mut Side,
        queue: &Queue,
        attempt: impl FnOnce(&mut dyn Ring, &mut Chain, &Memory<'_>) -> RingResult<T>,
    ) -> Option<T> {
        if side.slot.waits(&self.space) {
            return None;
        }
        let generation = self.space.map_generation();
        let memory = self.space.lock();
        let checked = side.slot.check_areas(&self.space, &memory);
        let ring = side.slot.ring.as_deref_mut()?;
        let chain = &mut side.chain;
        let result = checked.and_then(|()| attempt(ring, chain, &memory));
        match result {
            Ok(seen) => {
                queue.counters.dirtied(&memory);
                Some(seen)
            }
            Err(fault) => {
                side.slot
                    .fail(queue, &self.space, fault, memory, generation);
                None
            }
        }
    }
}
