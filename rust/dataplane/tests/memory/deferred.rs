// SPDX-License-Identifier: Apache-2.0
//! Used elements have one mark for several stores: when it is made.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU16, Ordering};
use std::thread;

use vdpa_net_dataplane::memory::{DmaSpace, MarkFault};

use crate::support::{contents, map_pages, memfd, set_bits, PAGE};

const LOG: u64 = 1 << 44;
const ELEMENTS: u64 = PAGE;
const INDEX: u64 = 2 * PAGE + 2;

/// Eight pages, logging.
fn guest() -> (DmaSpace, File, File) {
    let (space, ram, log) = (DmaSpace::new(2), memfd(8), memfd(1));
    map_pages(&space, 0, &ram, 0, 8);
    map_pages(&space, LOG, &log, 0, 1);
    space.start_log(LOG, LOG + 1).unwrap();
    (space, ram, log)
}

/// The pages that are marked; they are not any more.
fn harvest(log: &File) -> Vec<u64> {
    let pages = set_bits(&contents(log));
    log.write_all_at(&[0], 0).unwrap();
    pages
}

#[test]
fn elements_are_marked_before_the_word_that_shows_them_is_stored() {
    let (space, _ram, log) = guest();
    let memory = space.lock();
    memory.write_pair(ELEMENTS, [1, 2]).unwrap();
    memory.write_pair(ELEMENTS + 8, [3, 4]).unwrap();
    memory.store_u16(INDEX, 2).unwrap();
    assert_eq!(harvest(&log), [1, 2]);
    // A bit that was taken meanwhile is set again for what is stored behind it.
    memory.write_pair(ELEMENTS + 16, [5, 6]).unwrap();
    memory.store_u16(INDEX, 3).unwrap();
    assert_eq!(harvest(&log), [1, 2]);
    memory.store_u16(INDEX, 3).unwrap();
    assert_eq!(harvest(&log), [2]);
}

#[test]
fn elements_that_nothing_shows_are_marked_when_the_batch_ends() {
    let (space, _ram, log) = guest();
    let memory = space.lock();
    memory.write_pair(ELEMENTS, [1, 2]).unwrap();
    drop(memory);
    assert_eq!(harvest(&log), [1]);
    drop(space.lock());
    assert_eq!(harvest(&log), [0u64; 0]);
}

#[test]
fn elements_of_another_page_bring_the_mark_of_those_before_them() {
    let (space, _ram, log) = guest();
    let memory = space.lock();
    memory.write_pair(ELEMENTS, [1, 2]).unwrap();
    memory.write_pair(3 * PAGE, [1, 2]).unwrap();
    assert_eq!(harvest(&log), [1]);
    // One that lies on two pages.
    memory.write_pair(5 * PAGE - 4, [1, 2]).unwrap();
    assert_eq!(harvest(&log), [3, 4]);
    drop(memory);
    assert_eq!(harvest(&log), [5]);
}

#[test]
fn a_fault_of_ring_marks_spoils_them_too() {
    let (space, _ram, log) = guest();
    space.install_fault(MarkFault::SkipRings);
    space.lock().write_pair(ELEMENTS, [1, 2]).unwrap();
    assert_eq!(harvest(&log), [0u64; 0]);
    assert_eq!(space.fault_count(MarkFault::SkipRings), 1);
}

/// The reader of the log may come at any moment after the index was stored: the mark is there by then.
#[test]
fn who_sees_the_index_finds_the_mark() {
    const ROUNDS: u16 = 2000;
    let (space, ram, log) = guest();
    let seen = AtomicU16::new(0);
    thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut without_mark = Vec::new();
            for round in 1..=ROUNDS {
                let mut index = [0; 2];
                while u16::from_le_bytes(index) != round {
                    ram.read_exact_at(&mut index, INDEX).unwrap();
                }
                if !set_bits(&contents(&log)).contains(&1) {
                    without_mark.push(round);
                }
                seen.store(round, Ordering::Release);
            }
            without_mark
        });
        for round in 1..=ROUNDS {
            let memory = space.lock();
            log.write_all_at(&[0], 0).unwrap();
            memory.write_pair(ELEMENTS, [1, 2]).unwrap();
            memory.store_u16(INDEX, round).unwrap();
            while seen.load(Ordering::Acquire) != round {
                thread::yield_now();
            }
        }
        assert_eq!(reader.join().unwrap(), [0u16; 0]);
    });
}
