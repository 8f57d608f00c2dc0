// SPDX-License-Identifier: Apache-2.0
//! Chains that a split ring gives out and takes back four at a time.

use crate::split_driver::SplitDriver;
use crate::support::{offer, open, Driver, Features, Guest, INDIRECT, MAP_BYTES, NEXT, PAGE};
use vdpa_net_dataplane::memory::Memory;
use vdpa_net_dataplane::ring::{AnyRing, Chain, Line, Taken, LINE_CHAINS};

const SPLIT: Features = Features {
    packed: false,
    event_idx: true,
    indirect: true,
};

/// A ring of eight through which `passed` have gone, with so many buffers available.
fn ready(passed: u64, buffers: usize) -> (Guest, SplitDriver, AnyRing) {
    let guest = Guest::new();
    let mut driver = SplitDriver::new(&guest, 8, true, passed);
    let mut ring = open(&guest, &driver, SPLIT, passed, false);
    offer(&guest, &mut driver, buffers);
    // Lines are taken of what is known to be there.
    assert_eq!(ring.has_available(&guest.space.lock()), Ok(buffers > 0));
    (guest, driver, ring)
}

fn take_line(ring: &mut AnyRing, memory: &Memory<'_>) -> Option<[Taken; LINE_CHAINS]> {
    let mut line = Line::default();
    let is_taken = ring.pop_line(memory, &mut line);
    is_taken.then(|| line.map(|single| single.taken()))
}

fn pop_all(ring: &mut AnyRing, memory: &Memory<'_>) -> Vec<Taken> {
    let mut chain = Chain::default();
    std::iter::from_fn(|| ring.pop(memory, &mut chain).ok()?.then_some(chain.taken)).collect()
}

/// A harvest between the elements and the index that shows them must not lose the page that it cleared.
#[test]
fn a_page_of_used_elements_is_marked_before_the_index_that_shows_them_and_behind_it() {
    let (guest, mut driver, mut ring) = ready(0, 8);
    let page = driver.areas().2 / PAGE * PAGE;
    guest.start_log();
    let memory = guest.space.lock();
    let line = take_line(&mut ring, &memory).expect("a line");
    assert!(guest.harvest().is_empty(), "taking stores nothing");
    ring.push_line(&memory, &line, [4, 5, 6, 7]).expect("used");
    drop(memory);
    assert_eq!(guest.harvest(), [page]);
    assert_eq!(driver.reap(&guest), [], "not published yet");
    ring.publish(&guest.space.lock()).expect("publish");
    assert_eq!(guest.harvest(), [page]);
    assert_eq!(driver.reap(&guest), [(0, 4), (1, 5), (2, 6), (3, 7)]);
}

#[test]
fn used_elements_on_both_sides_of_a_page_are_marked_on_both() {
    let guest = Guest::new();
    // The third element lies in both.
    guest.allocate(PAGE - 24 - 152, 16);
    let mut driver = SplitDriver::new(&guest, 8, true, 0);
    let used = driver.areas().2;
    assert_eq!(used % PAGE, PAGE - 24);
    let mut ring = open(&guest, &driver, SPLIT, 0, false);
    offer(&guest, &mut driver, LINE_CHAINS);
    guest.start_log();
    let memory = guest.space.lock();
    assert_eq!(ring.has_available(&memory), Ok(true));
    let line = take_line(&mut ring, &memory).expect("a line");
    ring.push_line(&memory, &line, [1; LINE_CHAINS])
        .expect("used");
    drop(memory);
    assert_eq!(
        guest.harvest(),
        [used / PAGE * PAGE, used / PAGE * PAGE + PAGE]
    );
}

#[test]
fn a_line_that_is_known_in_part_is_not_taken_and_its_chains_are() {
    for available in 0..LINE_CHAINS {
        let (guest, _, mut ring) = ready(0, available);
        let memory = guest.space.lock();
        assert_eq!(take_line(&mut ring, &memory), None);
        assert_eq!(pop_all(&mut ring, &memory).len(), available);
    }
}

#[test]
fn a_line_goes_not_over_the_end_of_the_ring_but_its_used_elements_do() {
    // One entry away from the end of the used ring, none from that of the available ring.
    let (guest, mut driver, mut ring) = ready(5, 8);
    let memory = guest.space.lock();
    assert_eq!(take_line(&mut ring, &memory), None, "three are left");
    let mut chain = Chain::default();
    let mut taken = Vec::new();
    for _ in 0..3 {
        assert_eq!(ring.pop(&memory, &mut chain), Ok(true));
        taken.push(chain.taken);
    }
    taken.extend(take_line(&mut ring, &memory).expect("a line"));
    ring.push_used(&memory, taken[0], 9).expect("used");
    let line = [taken[1], taken[2], taken[3], taken[4]];
    ring.push_line(&memory, &line, [1, 2, 3, 4]).expect("used");
    ring.publish(&memory).expect("publish");
    drop(memory);
    let used = [(0, 9), (1, 1), (2, 2), (3, 3), (4, 4)];
    assert_eq!(driver.reap(&guest), used);
    assert_eq!(ring.state(), driver.state(10, 10));
}

/// What is wrong with an entry is told when its turn comes.
#[test]
fn a_line_with_an_entry_that_names_no_descriptor_is_not_taken() {
    for place in 0..LINE_CHAINS as u64 {
        for head in [8, 9, 0xffff] {
            let (guest, driver, mut ring) = ready(0, 4);
            guest.set_u16(driver.areas().1 + 4 + 2 * place, head);
            let memory = guest.space.lock();
            assert_eq!(take_line(&mut ring, &memory), None);
            assert_eq!(pop_all(&mut ring, &memory).len() as u64, place);
            let fault = ring
                .pop(&memory, &mut Chain::default())
                .expect_err("a fault");
            assert_eq!((fault.kind, fault.value), ("avail_head", head.into()));
        }
    }
}

#[test]
fn a_line_with_a_list_or_an_indirect_table_in_it_is_not_taken() {
    for place in 0..LINE_CHAINS as u64 {
        for flag in [NEXT, INDIRECT] {
            let (guest, driver, mut ring) = ready(0, 4);
            guest.set_u16(driver.areas().0 + 16 * place + 12, flag);
            let memory = guest.space.lock();
            assert_eq!(take_line(&mut ring, &memory), None);
            assert_eq!(ring.state(), driver.state(0, 0));
        }
    }
}

/// Whoever takes a line has its packets delivered before it uses the chains.
#[test]
fn no_line_is_taken_whose_used_elements_can_not_be_written() {
    let guest = Guest::new();
    let mut driver = SplitDriver::new(&guest, 8, true, 0);
    let mut ring = open(&guest, &driver, SPLIT, 0, false);
    let (_, _, used) = driver.areas();
    guest.forbid_writing(used);
    offer(&guest, &mut driver, LINE_CHAINS);
    let memory = guest.space.lock();
    assert_eq!(ring.has_available(&memory), Ok(true));
    assert_eq!(take_line(&mut ring, &memory), None);
    assert_eq!(pop_all(&mut ring, &memory).len(), LINE_CHAINS);
}

#[test]
fn no_line_is_taken_where_a_part_of_the_ring_lies_in_two_maps() {
    // Bytes before the border: it is in the descriptors, in the second half of the available ring, in the used ring.
    for before in [64, 144, 160] {
        let guest = Guest::new();
        guest.allocate(MAP_BYTES - before, 16);
        let mut driver = SplitDriver::new(&guest, 8, true, 4);
        let mut ring = open(&guest, &driver, SPLIT, 4, false);
        offer(&guest, &mut driver, LINE_CHAINS);
        let memory = guest.space.lock();
        assert_eq!(ring.has_available(&memory), Ok(true));
        assert_eq!(take_line(&mut ring, &memory), None, "{before} bytes");
        assert_eq!(pop_all(&mut ring, &memory).len(), LINE_CHAINS);
    }
}
