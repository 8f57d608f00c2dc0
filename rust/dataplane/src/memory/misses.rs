// SPDX-License-Identifier: Apache-2.0
//! Accesses to addresses that nobody has mapped yet.
//!
//! A device behind an IOMMU that is asked for its translations can't know in advance which addresses a driver will use.
//! While somebody watches for misses, an access to an address without a map is a request: the queue waits, and looks
//! again when a map has come. What is refused is a fault, as every such access is while nobody watches.

use std::collections::BTreeSet;
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;
use vmm_sys_util::eventfd::EventFd;

use super::space::DmaSpace;
use super::PAGE_BYTES;

/// An access without a map: the page, and whether it was a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Miss {
    /// Address of the page.
    pub iova: u64,
    /// Whether it has to be writable.
    pub write: bool,
}

impl Miss {
    pub(super) fn at(iova: u64, write: bool) -> Self {
        let iova = iova & !(PAGE_BYTES - 1);
        Self { iova, write }
    }
}

#[derive(Debug, Default)]
struct State {
    event: Option<EventFd>,
    pending: BTreeSet<Miss>,
    /// Taken, and neither mapped nor answered. A queue that looks again meanwhile does not ask twice: by the time of the
    /// second answer the page may be used for something else.
    asked: BTreeSet<Miss>,
    refused: BTreeSet<Miss>,
    wakers: Vec<EventFd>,
}

/// The misses of one DMA space.
#[derive(Debug, Default)]
pub(super) struct Misses {
    is_watched: AtomicBool,
    generation: AtomicU64,
    state: Mutex<State>,
}

impl Misses {
    pub(super) fn is_watched(&self) -> bool {
        self.is_watched.load(Ordering::Acquire)
    }

    /// Changes whenever it is worth to look again.
    pub(super) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// None: misses are faults from now on.
    pub(super) fn watch(&self, event: Option<EventFd>) {
        let mut state = self.state.lock();
        self.is_watched.store(event.is_some(), Ordering::Release);
        state.event = event;
        state.pending.clear();
        state.asked.clear();
        state.refused.clear();
        self.look_again(&state);
    }

    pub(super) fn add_waker(&self, waker: EventFd) {
        self.state.lock().wakers.push(waker);
    }

    pub(super) fn forget_wakers(&self) {
        self.state.lock().wakers.clear();
    }

    /// False: it was refused, or nobody watches. A refusal holds for one access.
    pub(super) fn request(&self, miss: Miss) -> bool {
        let mut state = self.state.lock();
        if state.refused.remove(&miss) {
            return false;
        }
        let Some(event) = &state.event else {
            return false;
        };
        if !state.asked.contains(&miss) {
            // It fails only when the counter is at its maximum, and then it is signalled already.
            let _ = event.write(1);
            state.pending.insert(miss);
        }
        true
    }

    pub(super) fn take(&self, most: usize) -> Vec<Miss> {
        let mut state = self.state.lock();
        let mut taken = Vec::with_capacity(most.min(state.pending.len()));
        while taken.len() < most {
            let Some(miss) = state.pending.pop_first() else {
                break;
            };
            taken.push(miss);
        }
        state.asked.extend(&taken);
        taken
    }

    pub(super) fn retry(&self, miss: Miss) {
        let mut state = self.state.lock();
        state.asked.remove(&miss);
        self.look_again(&state);
    }

    pub(super) fn refuse(&self, miss: Miss) {
        let mut state = self.state.lock();
        state.asked.remove(&miss);
        state.refused.insert(miss);
        self.look_again(&state);
    }

    /// [first, last] has been mapped. Nobody has to ask for it any more: a request that is told of late would be one for
    /// a page that its driver may have given up again, which an IOMMU reports as a fault of the device.
    pub(super) fn mapped(&self, first: u64, last: u64) {
        if self.is_watched() {
            let mut state = self.state.lock();
            let is_outside = |miss: &Miss| miss.iova < first || miss.iova > last;
            state.pending.retain(is_outside);
            state.asked.retain(is_outside);
            state.refused.retain(is_outside);
            self.look_again(&state);
        }
    }

    fn look_again(&self, state: &State) {
        self.generation.fetch_add(1, Ordering::AcqRel);
        for waker in &state.wakers {
            let _ = waker.write(1);
        }
    }
}

impl DmaSpace {
    /// Take accesses without a map for requests, and signal this eventfd at each; None: they are faults again.
    pub fn watch_misses(&self, event: Option<OwnedFd>) {
        // SAFETY: the descriptor is open, and owned by nobody any more.
        let own = |fd: OwnedFd| unsafe { EventFd::from_raw_fd(fd.into_raw_fd()) };
        self.misses.watch(event.map(own));
    }

    /// Remove and return requests since the last call, so many at most.
    pub fn take_misses(&self, most: usize) -> Vec<Miss> {
        self.misses.take(most)
    }

    /// A request that was taken has come to nothing: whoever still needs it shall make it anew.
    pub fn retry_miss(&self, iova: u64, write: bool) {
        self.misses.retry(Miss::at(iova, write));
    }

    /// There will be no such map: the next such access to the page is a fault, unless it is mapped after all.
    pub fn refuse_miss(&self, iova: u64, write: bool) {
        self.misses.refuse(Miss::at(iova, write));
    }

    /// Signal this eventfd when a queue that waits for a map should look again.
    pub(crate) fn wake_for_maps(&self, waker: EventFd) {
        self.misses.add_waker(waker);
    }

    /// Nobody waits for maps or violations any more.
    pub(crate) fn forget_plane(&self) {
        self.violations().set_event(None);
        self.misses.forget_wakers();
    }

    /// Whether an access without a map is a request.
    pub(crate) fn waits_for_maps(&self) -> bool {
        self.misses.is_watched()
    }

    /// Changes whenever a queue that waits for a map should look again.
    pub(crate) fn map_generation(&self) -> u64 {
        self.misses.generation()
    }

    /// Ask for a map. False: it was refused, or nobody watches.
    pub(crate) fn request_map(&self, miss: Miss) -> bool {
        self.misses.request(miss)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: Miss = Miss {
        iova: 0x1000,
        write: true,
    };
    const SECOND: Miss = Miss {
        iova: 0x7000,
        write: false,
    };

    fn watched() -> Misses {
        let misses = Misses::default();
        misses.watch(Some(EventFd::new(0).unwrap()));
        assert!(misses.request(FIRST) && misses.request(SECOND));
        misses
    }

    #[test]
    fn a_page_that_was_mapped_meanwhile_is_not_asked_for() {
        let misses = watched();
        misses.mapped(0x1000, 0x1fff);
        assert_eq!(misses.take(usize::MAX), [SECOND]);
        assert!(misses.request(FIRST));
        assert_eq!(misses.take(usize::MAX), [FIRST]);
    }

    #[test]
    fn requests_are_taken_in_order_and_once() {
        let misses = watched();
        assert_eq!(misses.take(1), [FIRST]);
        assert!(misses.request(FIRST));
        assert_eq!(misses.take(2), [SECOND]);
        assert_eq!(misses.take(1), []);
    }
}
