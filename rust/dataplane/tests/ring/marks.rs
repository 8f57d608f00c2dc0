// SPDX-License-Identifier: Apache-2.0
//! The dirty log of a ring's own stores: each marked, and what makes a batch visible marked again afterwards.

use proptest::prelude::*;

use crate::packed_driver::PackedDriver;
use crate::split_driver::SplitDriver;
use crate::support::{changed_pages, offer, open, Driver, Features, Guest, Piece, PAGE};
use vdpa_net_dataplane::ring::{AnyRing, Chain, Taken};

fn features(packed: bool, event_idx: bool) -> Features {
    Features {
        packed,
        event_idx,
        indirect: false,
    }
}

fn driver(guest: &Guest, packed: bool, size: u16, event_idx: bool, passed: u64) -> Box<dyn Driver> {
    if packed {
        Box::new(PackedDriver::new(guest, size, event_idx, passed))
    } else {
        Box::new(SplitDriver::new(guest, size, event_idx, passed))
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn each_call_marks_exactly_the_pages_that_it_writes(
        packed in any::<bool>(),
        event_idx in any::<bool>(),
        passed in 0u64..0x1_0000,
        chains in prop::collection::vec(1usize..4, 1..60),
    ) {
        let guest = Guest::new();
        let size = if packed { 1000 } else { 1024 };
        let mut driver = driver(&guest, packed, size, event_idx, passed);
        let mut ring = open(&guest, driver.as_ref(), features(packed, event_idx), passed, true);
        let buffer = guest.allocate(64, 1);
        let piece = Piece { iova: buffer, len: 64, writable: true };
        guest.start_log();
        let step = |what: &str, may_repeat: bool, work: &mut dyn FnMut()| {
            let before = guest.snapshot();
            work();
            let (written, marked) = (changed_pages(&before, &guest.snapshot()), guest.harvest());
            prop_assert!(written.iter().all(|page| marked.contains(page)), "{what}: {written:x?} {marked:x?}");
            // What is stored may be what was there before.
            prop_assert!(may_repeat || marked.len() <= written.len() + 1, "{what}: {written:x?} {marked:x?}");
            Ok(())
        };
        let mut taken: Vec<Taken> = Vec::new();
        for pieces in chains {
            driver.add(&guest, &vec![piece; pieces], false);
        }
        step("taking", false, &mut || {
            let mut chain = Chain::default();
            while ring.pop(&guest.space.lock(), &mut chain).unwrap() {
                taken.push(chain.taken);
            }
        })?;
        for taken in taken {
            step("a used element", true, &mut || {
                ring.push_used(&guest.space.lock(), taken, 9).unwrap();
            })?;
        }
        step("publishing", false, &mut || {
            ring.publish(&guest.space.lock()).unwrap();
        })?;
        step("asking for kicks", true, &mut || {
            ring.enable_kicks(&guest.space.lock()).unwrap();
        })?;
        step("asking for none", true, &mut || {
            ring.disable_kicks(&guest.space.lock()).unwrap();
        })?;
    }
}

/// A guest with a ring of 8 on which so many buffers are available, logging.
fn ready(packed: bool, buffers: usize) -> (Guest, Box<dyn Driver>, AnyRing) {
    let guest = Guest::new();
    let mut driver = driver(&guest, packed, 8, true, 0);
    let ring = open(&guest, driver.as_ref(), features(packed, true), 0, false);
    offer(&guest, driver.as_mut(), buffers);
    guest.start_log();
    (guest, driver, ring)
}

#[test]
fn taking_marks_nothing() {
    for packed in [false, true] {
        let (guest, _, mut ring) = ready(packed, 1);
        let popped = ring.pop(&guest.space.lock(), &mut Chain::default());
        assert_eq!(popped, Ok(true));
        assert!(guest.harvest().is_empty());
    }
}

/// A harvest between the elements and what shows them must not lose the page that it cleared.
#[test]
fn the_page_of_index_or_flags_is_marked_again_when_they_are_stored() {
    for packed in [false, true] {
        let (guest, driver, mut ring) = ready(packed, 3);
        let mut chain = Chain::default();
        for _ in 0..3 {
            ring.pop(&guest.space.lock(), &mut chain).unwrap();
            ring.push_used(&guest.space.lock(), chain.taken, 1).unwrap();
        }
        let (desc, _, device) = driver.areas();
        let page = if packed { desc } else { device } / PAGE * PAGE;
        assert!(guest.harvest().contains(&page));
        ring.publish(&guest.space.lock()).unwrap();
        assert_eq!(guest.harvest(), [page]);
    }
}

#[test]
fn the_flags_of_the_first_packed_element_come_last() {
    let guest = Guest::new();
    let mut driver = PackedDriver::new(&guest, 8, true, 0);
    let mut ring = open(&guest, &driver, features(true, true), 0, false);
    let iova = guest.allocate(64, 1);
    let piece = Piece {
        iova,
        len: 64,
        writable: true,
    };
    (0..2).for_each(|_| {
        driver.add(&guest, &[piece; 2], false);
    });
    let mut chain = Chain::default();
    let available = driver.available_flags(0);
    for _ in 0..2 {
        ring.pop(&guest.space.lock(), &mut chain).unwrap();
        ring.push_used(&guest.space.lock(), chain.taken, 1).unwrap();
    }
    let flags = |place: u64| guest.u16(driver.place(place) + 14);
    assert_eq!(flags(0) & available, available, "still available");
    assert_ne!(flags(2), driver.available_flags(2), "used, and behind it");
    ring.publish(&guest.space.lock()).unwrap();
    assert_eq!(driver.reap(&guest).len(), 2);
}
