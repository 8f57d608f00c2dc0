// SPDX-License-Identifier: Apache-2.0
//! Chains that a ring gives out and takes back four at a time.

use crate::model::Rig;
use crate::packed_driver::PackedDriver;
use crate::support::{lies_in_one_map, offer, open, Driver, Features, Guest, Piece, PAGE};
use vdpa_net_dataplane::memory::Memory;
use vdpa_net_dataplane::ring::{AnyRing, Chain, Line, Taken, LINE_CHAINS};

impl Rig {
    /// Whether the next chains can be had at once: one buffer each, and what the ring has of them side by side.
    fn has_line(&self) -> bool {
        let taken: u64 = self.model.taken.iter().map(|(_, chain)| chain.slots).sum();
        let size = u64::from(self.driver.size());
        let next = (self.model.pushed + taken) % size;
        let (desc, driver, device) = self.driver.areas();
        let singles = self.model.offered.iter().take(LINE_CHAINS);
        let are_single = singles.filter(|chain| chain.is_single).count() == LINE_CHAINS;
        let fits = if self.is_split {
            lies_in_one_map(desc, 16 * size)
                && lies_in_one_map(device, 6 + 8 * size)
                && lies_in_one_map(driver + 4 + 2 * next, 8)
        } else {
            next % 4 == 0 && desc % 64 == 0
        };
        are_single && fits && next + 4 <= size
    }

    pub fn pop_line(&mut self) {
        let expected = self.has_line();
        let line = take_line(&mut self.ring, &self.guest.space.lock());
        assert_eq!(line.is_some(), expected);
        for single in line.into_iter().flatten() {
            let expected = self.model.offered.pop_front().expect("a line of chains");
            let ranges = if single.is_writable {
                &expected.writable
            } else {
                &expected.readable
            };
            assert_eq!(ranges, &[single.buffer]);
            assert_eq!(single.head, expected.name);
            self.model.taken.push_back((single.taken(), expected));
        }
    }

    pub fn use_line(&mut self) {
        let oldest = self.model.taken.iter().take(LINE_CHAINS);
        let oldest: Vec<Taken> = oldest.map(|(taken, _)| *taken).collect();
        let Ok(line) = <[Taken; LINE_CHAINS]>::try_from(oldest) else {
            return;
        };
        let lens = [5, 0, 6, 7];
        self.ring
            .push_line(&self.guest.space.lock(), &line, lens)
            .expect("push_line");
        for ((_, chain), len) in self.model.taken.drain(..LINE_CHAINS).zip(lens) {
            self.model.unpublished.push((chain.name, len));
            self.model.pushed += chain.slots;
        }
        assert_eq!(self.driver.reap(&self.guest), [], "not published yet");
    }
}

const PACKED: Features = Features {
    packed: true,
    event_idx: true,
    indirect: false,
};

/// A packed ring with so many buffers available.
fn ready(size: u16, buffers: usize) -> (Guest, PackedDriver, AnyRing) {
    let guest = Guest::new();
    let mut driver = PackedDriver::new(&guest, size, true, 0);
    let ring = open(&guest, &driver, PACKED, 0, false);
    offer(&guest, &mut driver, buffers);
    (guest, driver, ring)
}

fn take_line(ring: &mut AnyRing, memory: &Memory<'_>) -> Option<Line> {
    let mut line = Line::default();
    ring.pop_line(memory, &mut line).then_some(line)
}

/// Take two lines and use both.
fn use_two(guest: &Guest, ring: &mut AnyRing) {
    let memory = guest.space.lock();
    for _ in 0..2 {
        let line = take_line(ring, &memory)
            .expect("a line")
            .map(|single| single.taken());
        ring.push_line(&memory, &line, [1, 2, 3, 4]).expect("used");
    }
}

#[test]
fn the_flags_of_the_first_descriptor_of_the_first_line_come_last() {
    let (guest, mut driver, mut ring) = ready(8, 8);
    use_two(&guest, &mut ring);
    let flags = |place: u64| guest.u16(driver.place(place) + 14);
    let available = driver.available_flags(0);
    assert_eq!(flags(0) & available, available, "still available");
    for place in 1..8 {
        let both = 0x8080;
        assert_eq!(flags(place) & both, both, "descriptor {place} is used");
    }
    assert_eq!(
        driver.reap(&guest),
        [],
        "the driver does not get past the first"
    );
    ring.publish(&guest.space.lock()).expect("publish");
    let lens: Vec<u32> = driver.reap(&guest).iter().map(|used| used.1).collect();
    assert_eq!(lens, [1, 2, 3, 4, 1, 2, 3, 4]);
}

/// A harvest between the descriptors and the flags that show them must not lose the page that it cleared.
#[test]
fn a_page_of_lines_is_marked_before_the_flags_that_show_them_and_behind_them() {
    let (guest, driver, mut ring) = ready(8, 8);
    let page = driver.areas().0 / PAGE * PAGE;
    guest.start_log();
    let memory = guest.space.lock();
    let line = take_line(&mut ring, &memory)
        .expect("a line")
        .map(|single| single.taken());
    assert!(guest.harvest().is_empty(), "taking stores nothing");
    ring.push_line(&memory, &line, [1; LINE_CHAINS])
        .expect("used");
    drop(memory);
    assert_eq!(guest.harvest(), [page]);
    ring.publish(&guest.space.lock()).expect("publish");
    assert_eq!(guest.harvest(), [page]);
}

/// What lies in two pages is marked in both.
#[test]
fn lines_on_both_sides_of_a_page_are_marked_on_both() {
    let guest = Guest::new();
    guest.allocate(PAGE - 64, 1);
    let mut driver = PackedDriver::new(&guest, 8, true, 0);
    let mut ring = open(&guest, &driver, PACKED, 0, false);
    let (iova, len, writable) = (guest.allocate(64, 1), 64, true);
    (0..8).for_each(|_| {
        driver.add(
            &guest,
            &[Piece {
                iova,
                len,
                writable,
            }],
            false,
        );
    });
    guest.start_log();
    use_two(&guest, &mut ring);
    let first = driver.areas().0 / PAGE * PAGE;
    assert_eq!(guest.harvest(), [first, first + PAGE]);
}

#[test]
fn a_line_of_which_a_part_is_available_is_not_taken_and_its_chains_are() {
    for available in 0..LINE_CHAINS {
        let (guest, _, mut ring) = ready(8, available);
        let memory = guest.space.lock();
        assert_eq!(take_line(&mut ring, &memory), None);
        let mut chain = Chain::default();
        for _ in 0..available {
            assert_eq!(ring.pop(&memory, &mut chain), Ok(true));
        }
        assert_eq!(ring.pop(&memory, &mut chain), Ok(false));
    }
}

/// A driver that makes the same descriptors available again before they were used.
#[test]
fn no_more_chains_are_taken_than_the_ring_has_descriptors() {
    let (guest, driver, mut ring) = ready(8, 8);
    let memory = guest.space.lock();
    assert!(take_line(&mut ring, &memory).is_some() && take_line(&mut ring, &memory).is_some());
    for place in 0..8 {
        let flags = driver.available_flags(8) | 2;
        guest.set_u16(driver.place(place) + 14, flags);
    }
    assert_eq!(take_line(&mut ring, &memory), None);
}

#[test]
fn chains_of_a_line_can_be_handed_back_and_used_one_by_one() {
    let (guest, mut driver, mut ring) = ready(12, 8);
    let memory = guest.space.lock();
    let first = take_line(&mut ring, &memory).expect("a line");
    ring.unpop(first[3].taken());
    ring.unpop(first[2].taken());
    for single in &first[..2] {
        ring.push_used(&memory, single.taken(), 9).expect("used");
    }
    assert_eq!(
        take_line(&mut ring, &memory),
        None,
        "not where a line begins"
    );
    let mut chain = Chain::default();
    for single in &first[2..] {
        assert_eq!(ring.pop(&memory, &mut chain), Ok(true));
        assert_eq!(chain.taken, single.taken());
        ring.push_used(&memory, chain.taken, 9).expect("used");
    }
    let second = take_line(&mut ring, &memory)
        .expect("a line")
        .map(|single| single.taken());
    ring.push_line(&memory, &second, [9; LINE_CHAINS])
        .expect("used");
    ring.publish(&memory).expect("publish");
    assert_eq!(driver.reap(&guest).len(), 8);
}

#[test]
fn lines_go_round_a_ring_that_ends_with_one() {
    let (guest, mut driver, mut ring) = ready(8, 8);
    for lap in 1..6u64 {
        use_two(&guest, &mut ring);
        assert_eq!(
            ring.state().used_idx,
            driver.encode(8 * (lap - 1)),
            "not shown"
        );
        ring.publish(&guest.space.lock()).expect("publish");
        let state = ring.state();
        assert_eq!(state.used_idx, driver.encode(8 * lap));
        assert_eq!(state.last_avail_idx, driver.encode(8 * lap));
        assert_eq!(driver.reap(&guest).len(), 8);
        let piece = Piece {
            iova: guest.allocate(64, 1),
            len: 64,
            writable: false,
        };
        (0..8).for_each(|_| {
            driver.add(&guest, &[piece], false);
        });
    }
}
