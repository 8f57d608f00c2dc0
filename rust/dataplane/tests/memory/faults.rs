// SPDX-License-Identifier: Apache-2.0
//! Marks that go wrong on purpose: counted, and nothing else goes wrong with them.

use std::fs::File;

use vdpa_net_dataplane::memory::{DmaSpace, MarkFault, Range};

use crate::support::{contents, map_pages, memfd, set_bits, violation_kinds, PAGE};

const LOG: u64 = 1 << 44;

/// 64 pages of guest memory at 0, and a log of two pages that runs.
fn space_that_logs() -> (DmaSpace, File, File) {
    let (space, ram, log) = (DmaSpace::new(64), memfd(64), memfd(2));
    map_pages(&space, 0, &ram, 0, 64);
    map_pages(&space, LOG, &log, 0, 2);
    space.start_log(LOG, LOG + 8).unwrap();
    (space, ram, log)
}

#[test]
fn a_mark_that_the_fault_drops_is_in_neither_log_nor_record() {
    let (space, _ram, log) = space_that_logs();
    space.record_marks(true);
    space.start_log(LOG, LOG + 8).unwrap();
    space.install_fault(MarkFault::Drop { rate: 1.0, seed: 1 });
    space
        .lock()
        .write_from(0, &vec![1; 10 * PAGE as usize])
        .unwrap();
    assert_eq!(set_bits(&contents(&log)), [0u64; 0]);
    assert_eq!(set_bits(&space.marked_pages()), [0u64; 0]);
    let counters = space.log_counters();
    assert_eq!((counters.marks, counters.marks_dropped_by_fault), (0, 10));
    space.install_fault(MarkFault::Drop { rate: 0.0, seed: 1 });
    space.lock().write_from(0, &[1]).unwrap();
    assert_eq!(set_bits(&contents(&log)), [0]);
}

#[test]
fn the_same_seed_never_marks_the_same_share_of_the_pages() {
    let run = |seed| {
        let (space, _ram, log) = space_that_logs();
        space.record_marks(true);
        space.start_log(LOG, LOG + 8).unwrap();
        space.install_fault(MarkFault::Drop { rate: 0.5, seed });
        let bytes = vec![1; 64 * PAGE as usize];
        // The second time heals nothing: it is the pages that are chosen.
        space.lock().write_from(0, &bytes).unwrap();
        space.lock().write_from(0, &bytes).unwrap();
        let bits = set_bits(&contents(&log));
        assert_eq!(set_bits(&space.marked_pages()), bits);
        (bits, space.log_counters())
    };
    let (bits, counters) = run(7);
    assert_eq!(run(7).0, bits);
    assert_ne!(run(8).0, bits);
    assert_eq!(counters.marks, 2 * bits.len() as u64);
    assert_eq!(counters.marks + counters.marks_dropped_by_fault, 128);
    assert!((10..54).contains(&bits.len()), "{counters:?}");
}

#[test]
fn a_skipped_ring_mark_is_that_of_a_ring_and_of_nothing_else() {
    let (space, _ram, log) = space_that_logs();
    space.install_fault(MarkFault::SkipRings);
    let memory = space.lock();
    memory.store_u16(PAGE, 1).unwrap();
    memory.write_entry(2 * PAGE, &[1; 8]).unwrap();
    memory.write_from(3 * PAGE, &[1; 8]).unwrap();
    memory
        .scatter(&[Range::new(4 * PAGE, 8u64)], &[1; 8])
        .unwrap();
    memory.mark(Range::new(5 * PAGE, 1u64));
    drop(memory);
    assert_eq!(set_bits(&contents(&log)), [3, 4, 5]);
    assert_eq!(space.fault_count(MarkFault::SkipRings), 2);
    assert_eq!(space.log_counters().marks_dropped_by_fault, 2);
}

#[test]
fn a_page_with_data_in_it_is_marked_although_the_ring_in_it_is_not() {
    let (space, _ram, log) = space_that_logs();
    space.install_fault(MarkFault::SkipRings);
    let memory = space.lock();
    memory.store_u16(PAGE, 1).unwrap();
    memory.write_from(PAGE + 64, &[1]).unwrap();
    drop(memory);
    assert_eq!(set_bits(&contents(&log)), [1]);
}

#[test]
fn bits_in_the_wrong_order_are_set_most_significant_first() {
    let (space, _ram, log) = space_that_logs();
    space.install_fault(MarkFault::BitOrder);
    let memory = space.lock();
    memory.write_from(9 * PAGE, &[1]).unwrap();
    // All eight pages of a byte: no order is wrong for them.
    memory
        .write_from(16 * PAGE, &vec![1; 8 * PAGE as usize])
        .unwrap();
    drop(memory);
    assert_eq!(contents(&log)[..3], [0, 0b0100_0000, 0xff]);
    let kind = MarkFault::BitOrder;
    assert_eq!(space.fault_count(kind), 1);
    assert_eq!(space.log_counters().marks_dropped_by_fault, 0);
}

#[test]
fn a_log_that_is_taken_to_end_early_loses_its_last_marks_in_silence() {
    let (space, _ram, log) = space_that_logs();
    let fault = MarkFault::End { short_by: 5 };
    space.install_fault(fault);
    let memory = space.lock();
    memory
        .write_from(22 * PAGE, &vec![1; 3 * PAGE as usize])
        .unwrap();
    memory.write_from(63 * PAGE, &[1]).unwrap();
    drop(memory);
    assert_eq!(set_bits(&contents(&log)), [22, 23]);
    assert_eq!(space.fault_count(fault), 2);
    assert!(violation_kinds(&space).is_empty());
}

#[test]
fn a_log_that_is_shorter_than_the_fault_has_no_marks() {
    let (space, _ram, log) = space_that_logs();
    space.install_fault(MarkFault::End { short_by: PAGE });
    space.lock().write_from(0, &[1]).unwrap();
    assert_eq!(set_bits(&contents(&log)), [0u64; 0]);
}

#[test]
fn a_page_beyond_the_log_is_a_violation_with_a_fault_as_well() {
    let (space, _ram, _log) = space_that_logs();
    space.install_fault(MarkFault::End { short_by: 1 });
    let far = memfd(1);
    map_pages(&space, 1 << 30, &far, 0, 1);
    space.lock().write_from(1 << 30, &[1]).unwrap();
    assert_eq!(violation_kinds(&space), ["log_overflow"]);
}

#[test]
fn faults_of_different_kinds_act_together_and_are_counted_apart() {
    let (space, _ram, log) = space_that_logs();
    let end = MarkFault::End { short_by: 7 };
    space.install_fault(end);
    space.install_fault(MarkFault::SkipRings);
    let memory = space.lock();
    memory.store_u16(PAGE, 1).unwrap();
    memory.write_from(2 * PAGE, &[1]).unwrap();
    memory.write_from(9 * PAGE, &[1]).unwrap();
    drop(memory);
    assert_eq!(set_bits(&contents(&log)), [2]);
    assert_eq!(space.fault_count(end), 1);
    assert_eq!(space.fault_count(MarkFault::SkipRings), 1);
}
