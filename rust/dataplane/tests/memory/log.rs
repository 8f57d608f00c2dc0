// SPDX-License-Identifier: Apache-2.0
//! The dirty log, as the contract of the LM registers has it.

use std::os::unix::fs::FileExt;

use vdpa_net_dataplane::memory::{DmaSpace, LogCounters, Range};

use crate::support::{contents, fd, map_pages, memfd, set_bits, violation_kinds, PAGE};

const LOG: u64 = 1 << 44;

/// 64 pages of guest memory at 0, a log of two pages at [`LOG`].
fn space_with_log() -> (DmaSpace, std::fs::File, std::fs::File) {
    let (space, ram, log) = (DmaSpace::new(64), memfd(64), memfd(2));
    map_pages(&space, 0, &ram, 0, 64);
    map_pages(&space, LOG, &log, 0, 2);
    (space, ram, log)
}

#[test]
fn a_page_is_one_bit_least_significant_first() {
    let (space, _ram, log) = space_with_log();
    space.start_log(LOG, LOG + 8).unwrap();
    space.lock().write_from(9 * PAGE + 5, &[1]).unwrap();
    assert_eq!(contents(&log)[..3], [0, 0b10, 0]);
}

#[test]
fn a_store_over_many_pages_marks_each_of_them() {
    let (space, _ram, log) = space_with_log();
    space.start_log(LOG, LOG + 8).unwrap();
    space
        .lock()
        .write_from(6 * PAGE - 1, &vec![1; 12 * PAGE as usize])
        .unwrap();
    assert_eq!(set_bits(&contents(&log)), (5..=17).collect::<Vec<_>>());
    let expected = LogCounters {
        marks: 13,
        pages_marked: 13,
        ..LogCounters::default()
    };
    assert_eq!(space.log_counters(), expected);
}

#[test]
fn a_page_that_is_marked_already_is_marked_again() {
    let (space, _ram, log) = space_with_log();
    space.start_log(LOG, LOG + 8).unwrap();
    space.lock().store_u16(0, 1).unwrap();
    space.lock().store_u16(2, 1).unwrap();
    let counters = space.log_counters();
    assert_eq!((counters.marks, counters.pages_marked), (2, 1));
    log.write_all_at(&[0], 0).unwrap();
    space.lock().mark(Range::new(0, 2u64));
    assert_eq!(set_bits(&contents(&log)), [0]);
}

#[test]
fn reads_and_stores_without_a_log_mark_nothing() {
    let (space, _ram, log) = space_with_log();
    space.lock().write_from(0, b"early").unwrap();
    space.start_log(LOG, LOG + 8).unwrap();
    let memory = space.lock();
    memory.read_array::<64>(0).unwrap();
    memory.load_u16(0).unwrap();
    memory
        .gather(&[Range::new(0, 9u64)], &mut Vec::new())
        .unwrap();
    drop(memory);
    space.stop_log();
    space.lock().write_from(0, b"late").unwrap();
    assert_eq!(set_bits(&contents(&log)), [0u64; 0]);
    assert_eq!(space.log_counters(), LogCounters::default());
    assert_eq!(space.log_range(), None);
}

#[test]
fn the_log_may_begin_at_any_byte_and_straddle_maps() {
    let space = DmaSpace::new(64);
    let (ram, high, low) = (memfd(64), memfd(1), memfd(1));
    map_pages(&space, 0, &ram, 0, 64);
    // Neighbours as IOVAs, the other way round as files.
    map_pages(&space, LOG, &low, 0, 1);
    map_pages(&space, LOG + PAGE, &high, 0, 1);
    space.start_log(LOG + PAGE - 3, LOG + PAGE + 5).unwrap();
    space
        .lock()
        .write_from(20 * PAGE, &vec![1; 8 * PAGE as usize])
        .unwrap();
    assert_eq!(contents(&low)[4093..], [0, 0, 0xf0]);
    assert_eq!(contents(&high)[..2], [0x0f, 0]);
}

#[test]
fn a_start_that_fails_changes_nothing() {
    let (space, ram, log) = space_with_log();
    space.map(1 << 30, PAGE, fd(&ram), 0, true, false).unwrap();
    space.start_log(LOG, LOG + 8).unwrap();
    let bad = [
        (LOG, LOG, libc::EINVAL),
        (LOG + 1, LOG, libc::EINVAL),
        (LOG, LOG + 2 * PAGE + 1, libc::EFAULT),
        (LOG - 1, LOG + 8, libc::EFAULT),
        (1 << 30, (1 << 30) + 8, libc::EFAULT),
        (0, u64::MAX, libc::EFAULT),
    ];
    for (base, end, errno) in bad {
        assert_eq!(space.start_log(base, end).unwrap_err().errno(), errno);
        assert_eq!(space.log_range(), Some((LOG, LOG + 8)));
    }
    space.lock().write_from(3 * PAGE, &[1]).unwrap();
    assert_eq!(set_bits(&contents(&log)), [3]);
}

#[test]
fn a_start_while_a_log_runs_switches_to_the_new_one() {
    let (space, _ram, log) = space_with_log();
    space.start_log(LOG, LOG + 8).unwrap();
    space.lock().write_from(0, &[1]).unwrap();
    space.start_log(LOG + PAGE, LOG + PAGE + 16).unwrap();
    space.lock().write_from(PAGE, &[1]).unwrap();
    let bits = contents(&log);
    assert_eq!(set_bits(&bits[..4096]), [0]);
    assert_eq!(set_bits(&bits[4096..]), [1]);
    assert_eq!(space.log_range(), Some((LOG + PAGE, LOG + PAGE + 16)));
}

#[test]
fn pages_beyond_the_end_are_counted_and_reported_once_per_start() {
    let (space, _ram, log) = space_with_log();
    space.start_log(LOG, LOG + 1).unwrap();
    space
        .lock()
        .write_from(7 * PAGE, &vec![1; 3 * PAGE as usize])
        .unwrap();
    space.lock().write_from(40 * PAGE, &[1]).unwrap();
    assert_eq!(contents(&log)[..2], [0x80, 0]);
    assert_eq!(space.log_counters().log_overflow, 3);
    let violations = space.violations().take();
    assert_eq!(violations.len(), 1);
    assert_eq!(
        (violations[0].kind, violations[0].value),
        ("log_overflow", 8 * PAGE)
    );
    space.start_log(LOG, LOG + 1).unwrap();
    space.lock().write_from(8 * PAGE, &[1]).unwrap();
    assert_eq!(violation_kinds(&space), ["log_overflow"]);
}

#[test]
fn a_log_that_is_unmapped_while_it_runs_is_a_violation_and_its_marks_are_counted() {
    let space = DmaSpace::new(64);
    let (ram, log) = (memfd(64), memfd(2));
    map_pages(&space, 0, &ram, 0, 64);
    map_pages(&space, LOG, &log, 0, 1);
    map_pages(&space, LOG + PAGE, &log, 1, 1);
    // Page 0 is in the first map's last byte, page 8 in the second one's first.
    space.start_log(LOG + PAGE - 1, LOG + PAGE + 8).unwrap();
    space.unmap(LOG + PAGE, PAGE).unwrap();
    let violations = space.violations().take();
    assert_eq!(
        (violations[0].kind, violations[0].value),
        ("log_unmapped", LOG + PAGE)
    );
    space
        .lock()
        .write_from(7 * PAGE, &vec![1; 2 * PAGE as usize])
        .unwrap();
    assert_eq!(space.log_counters().log_unmapped, 1);
    assert_eq!(contents(&log)[4095..4097], [0x80, 0]);
    space.unmap(0, 64 * PAGE).unwrap();
    assert_eq!(violation_kinds(&space), [""; 0]);
    space.unmap_all();
    assert_eq!(violation_kinds(&space), ["log_unmapped"]);
}

#[test]
fn the_record_holds_what_was_marked_over_a_change_of_log_and_a_stop() {
    let (space, _ram, _log) = space_with_log();
    space.start_log(LOG, LOG + 2).unwrap();
    space.record_marks(true);
    space.lock().write_from(PAGE, &[1]).unwrap();
    assert!(
        space.marked_pages().is_empty(),
        "it begins with the next start"
    );
    space.start_log(LOG, LOG + 3).unwrap();
    space.lock().write_from(2 * PAGE, &[1]).unwrap();
    space.start_log(LOG + PAGE, LOG + PAGE + 8).unwrap();
    space.lock().write_from(33 * PAGE, &[1]).unwrap();
    space.stop_log();
    space.lock().write_from(4 * PAGE, &[1]).unwrap();
    assert_eq!(set_bits(&space.marked_pages()), [2, 33]);
    space.start_log(LOG, LOG + 8).unwrap();
    assert_eq!(set_bits(&space.marked_pages()), [0u64; 0]);
    space.record_marks(false);
    space.lock().write_from(0, &[1]).unwrap();
    assert_eq!(set_bits(&space.marked_pages()), [0u64; 0]);
}

#[test]
fn a_taken_record_begins_anew_and_the_look_comes_between_the_intervals() {
    let (space, _ram, _log) = space_with_log();
    space.record_marks(true);
    space.start_log(LOG, LOG + 8).unwrap();
    space.lock().store_u16(3 * PAGE, 1).unwrap();
    let mut looked = 0;
    let first = space.take_marked_pages(|| looked += 1);
    space.lock().store_u16(5 * PAGE, 1).unwrap();
    let second = space.take_marked_pages(|| looked += 1);
    assert_eq!((set_bits(&first), set_bits(&second)), (vec![3], vec![5]));
    assert_eq!(looked, 2);
}
