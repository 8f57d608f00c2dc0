// SPDX-License-Identifier: Apache-2.0
//! The split ring against rust-vmm's `virtio-queue`: the same driver on two equal memories, one device on each.

use std::sync::Arc;

use proptest::prelude::*;
use virtio_queue::{Queue, QueueT};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap};

use crate::split_driver::SplitDriver;
use crate::support::{open, Driver, Features, Guest, Piece, BASE, WRITE};
use vdpa_net_dataplane::ring::{AnyRing, Chain};

/// A round: chains that come (pieces, writable, indirect), then as many are used, then an event is asked for.
type Round = (Vec<(usize, bool, bool)>, usize, u16);

struct Ours {
    guest: Guest,
    driver: SplitDriver,
    ring: AnyRing,
}

struct Theirs {
    guest: Guest,
    driver: SplitDriver,
    memory: GuestMemoryMmap,
    queue: Queue,
}

/// What a device makes of a chain: head, then (address, length, writable) of each buffer.
type Seen = (u16, Vec<(u64, u32, bool)>);

impl Ours {
    fn new(features: Features, size: u16, passed: u64) -> Self {
        let guest = Guest::new();
        let driver = SplitDriver::new(&guest, size, features.event_idx, passed);
        let ring = open(&guest, &driver, features, passed, true);
        Self {
            guest,
            driver,
            ring,
        }
    }

    fn pop(&mut self) -> Option<(Chain, Seen)> {
        let mut chain = Chain::default();
        let popped = self.ring.pop(&self.guest.space.lock(), &mut chain);
        popped.expect("pop").then(|| {
            let readable = chain.readable.iter().map(|r| (r.iova, r.len as u32, false));
            let writable = chain.writable.iter().map(|r| (r.iova, r.len as u32, true));
            let seen = (chain.taken.head, readable.chain(writable).collect());
            (chain, seen)
        })
    }
}

impl Theirs {
    fn new(features: Features, size: u16, passed: u64) -> Self {
        let guest = Guest::new();
        let driver = SplitDriver::new(&guest, size, features.event_idx, passed);
        let file = guest.file().try_clone().expect("dup");
        let range = (
            GuestAddress(BASE),
            Guest::size() as usize,
            Some(FileOffset::from_arc(Arc::new(file), 0)),
        );
        let memory = GuestMemoryMmap::from_ranges_with_files([range]).expect("mmap");
        let mut queue = Queue::new(size).expect("a queue");
        let (desc, avail, used) = driver.areas();
        let halves = |address: u64| (Some(address as u32), Some((address >> 32) as u32));
        let ((d0, d1), (a0, a1), (u0, u1)) = (halves(desc), halves(avail), halves(used));
        queue.set_desc_table_address(d0, d1);
        queue.set_avail_ring_address(a0, a1);
        queue.set_used_ring_address(u0, u1);
        queue.set_event_idx(features.event_idx);
        queue.set_next_avail(passed as u16);
        queue.set_next_used(passed as u16);
        queue.set_ready(true);
        assert!(queue.is_valid(&memory));
        Self {
            guest,
            driver,
            memory,
            queue,
        }
    }

    fn pop(&mut self) -> Option<Seen> {
        let chain = self.queue.pop_descriptor_chain(&self.memory)?;
        let head = chain.head_index();
        let buffers = chain.map(|d| (d.addr().0, d.len(), d.flags() & WRITE != 0));
        Some((head, buffers.collect()))
    }
}

fn rounds() -> impl Strategy<Value = Vec<Round>> {
    let chain = (1usize..4, any::<bool>(), any::<bool>());
    let round = (prop::collection::vec(chain, 0..12), 0usize..12, 0u16..8);
    prop::collection::vec(round, 1..30)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn split_ring_does_what_virtio_queue_does(
        event_idx in any::<bool>(),
        indirect in any::<bool>(),
        size in prop_oneof![Just(8u16), Just(64), Just(256)],
        passed in prop_oneof![Just(0u64), 0xffc0u64..0x1_0000, 0u64..0x1_0000],
        rounds in rounds(),
    ) {
        let features = Features { packed: false, event_idx, indirect };
        let (mut ours, mut theirs) = (Ours::new(features, size, passed), Theirs::new(features, size, passed));
        let buffer = ours.guest.allocate(4096, 1);
        theirs.guest.allocate(4096, 1);
        let mut is_first = true;
        for (chains, uses, event) in rounds {
            for (pieces, writable, in_table) in chains {
                let pieces: Vec<Piece> = (0..pieces)
                    .map(|at| Piece { iova: buffer + at as u64, len: 10 + at as u32, writable: writable || at > 1 })
                    .collect();
                let in_table = in_table && indirect;
                if ours.driver.slots_needed(pieces.len(), in_table) <= ours.driver.free_slots() {
                    ours.driver.add(&ours.guest, &pieces, in_table);
                    theirs.driver.add(&theirs.guest, &pieces, in_table);
                }
            }
            let mut used = 0;
            while used < uses {
                let (mine, other) = (ours.pop(), theirs.pop());
                prop_assert_eq!(mine.as_ref().map(|(_, seen)| seen), other.as_ref());
                let Some((chain, (head, _))) = mine else { break };
                used += 1;
                let len = used as u32 * 7;
                ours.ring.push_used(&ours.guest.space.lock(), chain.taken, len).unwrap();
                theirs.queue.add_used(&theirs.memory, head, len).unwrap();
            }
            let mine = ours.ring.publish(&ours.guest.space.lock()).unwrap();
            if used > 0 {
                let other = theirs.queue.needs_notification(&theirs.memory).unwrap();
                // Their queue takes it that nothing was announced before; ours does not know and tells.
                prop_assert!(mine == other || (is_first && mine));
                is_first = false;
            }
            // Both have seen all that there is when they ask for kicks.
            let left = ours.driver.made_available().wrapping_sub(u64::from(ours.ring.state().last_avail_idx)) as u16;
            if left == 0 {
                prop_assert_eq!(ours.pop().is_none(), theirs.pop().is_none());
                let mine = ours.ring.enable_kicks(&ours.guest.space.lock()).unwrap();
                let other = theirs.queue.enable_notification(&theirs.memory).unwrap();
                prop_assert_eq!(mine, other);
            }
            prop_assert_eq!(ours.guest.snapshot() == theirs.guest.snapshot(), true, "the memories differ");
            prop_assert_eq!(ours.driver.reap(&ours.guest), theirs.driver.reap(&theirs.guest));
            let state = ours.ring.state();
            prop_assert_eq!((state.last_avail_idx, state.used_idx), (theirs.queue.next_avail(), theirs.queue.next_used()));
            for (driver, guest) in [(&ours.driver, &ours.guest), (&theirs.driver, &theirs.guest)] {
                driver.set_event(guest, Some(u64::from(state.used_idx.wrapping_add(event))));
            }
        }
    }
}
