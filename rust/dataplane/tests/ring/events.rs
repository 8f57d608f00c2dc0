// SPDX-License-Identifier: Apache-2.0
//! Notifications where indices wrap, and after a restore (virtio 1.3 2.7.7, 2.7.10, 2.8.10).

use crate::packed_driver::PackedDriver;
use crate::split_driver::SplitDriver;
use crate::support::{open, Driver, Features, Guest, Piece};
use vdpa_net_dataplane::ring::{AnyRing, Chain};

fn features(packed: bool) -> Features {
    Features {
        packed,
        event_idx: true,
        indirect: false,
    }
}

struct Rig {
    guest: Guest,
    driver: Box<dyn Driver>,
    ring: AnyRing,
    buffer: u64,
}

impl Rig {
    fn new(packed: bool, size: u16, passed: u64) -> Self {
        let guest = Guest::new();
        let driver: Box<dyn Driver> = if packed {
            Box::new(PackedDriver::new(&guest, size, true, passed))
        } else {
            Box::new(SplitDriver::new(&guest, size, true, passed))
        };
        driver.set_event(&guest, None);
        let ring = open(&guest, driver.as_ref(), features(packed), passed, true);
        let buffer = guest.allocate(64, 1);
        Self {
            guest,
            driver,
            ring,
            buffer,
        }
    }

    fn add(&mut self) {
        let piece = Piece {
            iova: self.buffer,
            len: 64,
            writable: true,
        };
        self.driver.add(&self.guest, &[piece], false);
    }

    /// Use one buffer; whether an interrupt is due.
    fn turn(&mut self) -> bool {
        self.add();
        let mut chain = Chain::default();
        let memory = self.guest.space.lock();
        assert_eq!(self.ring.pop(&memory, &mut chain), Ok(true));
        self.ring.push_used(&memory, chain.taken, 64).unwrap();
        let interrupt = self.ring.publish(&memory).unwrap();
        drop(memory);
        assert_eq!(self.driver.reap(&self.guest).len(), 1);
        interrupt
    }
}

/// (packed, size, where to begin): the turns that follow cross every wrap that the format has.
const CASES: [(bool, u16, u64); 6] = [
    (false, 8, 0xfff0),
    (false, 256, 0xff00),
    (true, 7, 0),
    (true, 8, 8),
    (true, 1, 1),
    (true, 255, 250),
];

#[test]
fn an_armed_event_interrupts_exactly_once_on_each_lap_and_wrap() {
    for (packed, size, passed) in CASES {
        let mut rig = Rig::new(packed, size, passed);
        rig.turn();
        let mut next = passed + 1;
        for _ in 0..60 {
            // Two buffers ahead where the ring is that long.
            let ahead = u64::from(size.min(3)) - 1;
            rig.driver.set_event(&rig.guest, Some(next + ahead));
            for number in next..=next + ahead {
                let due = rig.turn();
                assert_eq!(due, number == next + ahead, "{packed} {size} {number}");
            }
            next += ahead + 1;
        }
    }
}

#[test]
fn the_first_completion_after_a_start_interrupts_whatever_the_event_says() {
    for (packed, size, passed) in CASES {
        let mut rig = Rig::new(packed, size, passed);
        // Behind: another device has passed it before, and nobody knows whether it told.
        let period = if packed { 2 * u64::from(size) } else { 1 << 16 };
        rig.driver.set_event(&rig.guest, Some(passed + period - 1));
        assert!(rig.turn(), "{packed} {size}");
        if size > 1 {
            assert!(!rig.turn(), "{packed} {size}");
        }
    }
}

#[test]
fn a_packed_driver_that_disabled_interrupts_gets_none() {
    let mut rig = Rig::new(true, 7, 5);
    rig.driver.set_event(&rig.guest, None);
    assert!((0..20).all(|_| !rig.turn()));
}

#[test]
fn a_sleeping_device_is_kicked_at_each_place_of_the_ring() {
    for (packed, size, passed) in CASES {
        let mut rig = Rig::new(packed, size, passed);
        for number in 0..40 {
            assert_eq!(rig.ring.enable_kicks(&rig.guest.space.lock()), Ok(false));
            let made = rig.driver.made_available();
            rig.add();
            let kicks = rig.driver.needs_kick(&rig.guest, made);
            assert!(kicks, "{packed} {size} {number}");
            let mut chain = Chain::default();
            let memory = rig.guest.space.lock();
            assert_eq!(rig.ring.pop(&memory, &mut chain), Ok(true));
            rig.ring.push_used(&memory, chain.taken, 1).unwrap();
            rig.ring.publish(&memory).unwrap();
            drop(memory);
            rig.driver.reap(&rig.guest);
        }
    }
}

#[test]
fn a_buffer_that_comes_before_the_driver_can_know_of_the_wish_is_found() {
    for (packed, size, passed) in CASES {
        let mut rig = Rig::new(packed, size, passed);
        let mut chain = Chain::default();
        assert_eq!(rig.ring.pop(&rig.guest.space.lock(), &mut chain), Ok(false));
        rig.add();
        assert_eq!(rig.ring.enable_kicks(&rig.guest.space.lock()), Ok(true));
        assert_eq!(rig.ring.pop(&rig.guest.space.lock(), &mut chain), Ok(true));
    }
}

#[test]
fn buffers_that_were_handed_back_are_no_news_and_the_next_one_is() {
    for (packed, size, passed) in CASES {
        if size < 3 {
            continue;
        }
        let mut rig = Rig::new(packed, size, passed);
        rig.add();
        rig.add();
        let (mut first, mut second) = (Chain::default(), Chain::default());
        let memory = rig.guest.space.lock();
        assert_eq!(rig.ring.pop(&memory, &mut first), Ok(true));
        assert_eq!(rig.ring.pop(&memory, &mut second), Ok(true));
        assert_eq!(rig.ring.pop(&memory, &mut Chain::default()), Ok(false));
        rig.ring.unpop(second.taken);
        rig.ring.unpop(first.taken);
        assert_eq!(rig.ring.enable_kicks(&memory), Ok(false), "a busy loop");
        drop(memory);
        let made = rig.driver.made_available();
        rig.add();
        assert!(rig.driver.needs_kick(&rig.guest, made), "a lost kick");
    }
}

#[test]
fn without_event_idx_the_flags_decide() {
    let features = Features {
        packed: true,
        event_idx: false,
        indirect: false,
    };
    let guest = Guest::new();
    let mut driver = PackedDriver::new(&guest, 5, false, 0);
    let mut ring = open(&guest, &driver, features, 0, false);
    let buffer = guest.allocate(64, 1);
    let mut turn = |driver: &mut PackedDriver, wanted: bool| {
        let piece = Piece {
            iova: buffer,
            len: 64,
            writable: true,
        };
        driver.set_event(&guest, wanted.then_some(0));
        driver.add(&guest, &[piece], false);
        let mut chain = Chain::default();
        let memory = guest.space.lock();
        ring.pop(&memory, &mut chain).unwrap();
        ring.push_used(&memory, chain.taken, 1).unwrap();
        let due = ring.publish(&memory).unwrap();
        drop(memory);
        driver.reap(&guest);
        due
    };
    for wanted in [true, false, true, true, false] {
        assert_eq!(turn(&mut driver, wanted), wanted);
    }
}
