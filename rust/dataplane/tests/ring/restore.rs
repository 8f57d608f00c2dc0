// SPDX-License-Identifier: Apache-2.0
//! A ring that goes on where another one stopped.

use crate::packed_driver::PackedDriver;
use crate::split_driver::SplitDriver;
use crate::support::{open, Driver, Features, Guest, Piece};
use vdpa_net_dataplane::ring::{self, Chain, RingState, F_RING_PACKED};

fn features(packed: bool) -> Features {
    Features {
        packed,
        event_idx: false,
        indirect: false,
    }
}

fn driver(guest: &Guest, packed: bool, size: u16, passed: u64) -> Box<dyn Driver> {
    if packed {
        Box::new(PackedDriver::new(guest, size, false, passed))
    } else {
        Box::new(SplitDriver::new(guest, size, false, passed))
    }
}

const CASES: [(bool, u16, u64); 8] = [
    (false, 8, 0),
    (false, 8, 0xffff),
    (false, 8, 0x1_0000),
    (true, 7, 0),
    (true, 7, 6),
    (true, 7, 7),
    (true, 7, 13),
    (true, 7, 14),
];

#[test]
fn the_initial_state_has_both_wrap_counters_set() {
    let initial = RingState::initial(F_RING_PACKED);
    assert_eq!((initial.last_avail_idx, initial.used_idx), (0x8000, 0x8000));
    assert_eq!(RingState::initial(0), RingState::default());
}

#[test]
fn a_state_that_memory_agrees_with_is_accepted_on_each_side_of_a_wrap() {
    for (packed, size, passed) in CASES {
        let guest = Guest::new();
        let driver = driver(&guest, packed, size, passed);
        let ring = open(&guest, driver.as_ref(), features(packed), passed, true);
        assert_eq!(ring.check_restored(&guest.space.lock()), Ok(()));
    }
}

#[test]
fn a_state_behind_what_memory_shows_is_told() {
    for (packed, size, passed) in CASES {
        if passed == 0 {
            continue;
        }
        let guest = Guest::new();
        let driver = driver(&guest, packed, size, passed);
        let ring = open(&guest, driver.as_ref(), features(packed), passed - 1, true);
        let fault = ring.check_restored(&guest.space.lock()).unwrap_err();
        assert_eq!(fault.kind, "used_idx");
        assert_eq!(fault.value, u64::from(driver.encode(passed - 1)));
    }
}

#[test]
fn chains_that_were_taken_and_not_used_are_taken_again_by_the_next_device() {
    for (packed, size, passed) in CASES {
        let guest = Guest::new();
        let mut driver = driver(&guest, packed, size, passed);
        let mut first = open(&guest, driver.as_ref(), features(packed), passed, true);
        let buffer = guest.allocate(64, 1);
        let pieces = |len: u32| {
            [1u32, 2].map(|part| Piece {
                iova: buffer,
                len: len * part,
                writable: true,
            })
        };
        let names: Vec<u16> = (1..=3)
            .map(|len| driver.add(&guest, &pieces(len), false))
            .collect();
        let memory = guest.space.lock();
        let mut chain = Chain::default();
        first.pop(&memory, &mut chain).unwrap();
        first.push_used(&memory, chain.taken, 5).unwrap();
        first.publish(&memory).unwrap();
        (0..2).for_each(|_| assert_eq!(first.pop(&memory, &mut chain), Ok(true)));
        let config = driver.config(features(packed), first.state(), true);
        let mut second = ring::open(&config, &memory).unwrap();
        assert_eq!(second.check_restored(&memory), Ok(()));
        for name in &names[1..] {
            assert_eq!(second.pop(&memory, &mut chain), Ok(true));
            assert_eq!(chain.taken.head, *name);
            second.push_used(&memory, chain.taken, 5).unwrap();
        }
        assert_eq!(second.pop(&memory, &mut chain), Ok(false));
        second.publish(&memory).unwrap();
        drop(memory);
        let used: Vec<u16> = driver.reap(&guest).iter().map(|(name, _)| *name).collect();
        assert_eq!(used, names);
    }
}
