// SPDX-License-Identifier: Apache-2.0
//! Marks that are carried from the log of a device's own addresses to one of guest memory.

use std::fs::File;
use std::os::unix::fs::FileExt;

use proptest::prelude::*;
use vdpa_net_dataplane::memory::{DmaSpace, Range, Translation};

use crate::support::{contents, map_pages, memfd, set_bits, violation_kinds, PAGE};

const SOURCE: u64 = 1 << 44;
const TARGET: u64 = 1 << 45;

/// A log of device addresses with these bytes, and an empty one of guest memory that runs.
fn logs(source: &[u8]) -> (DmaSpace, File, File) {
    let (space, from, to) = (DmaSpace::new(8), memfd(1), memfd(1));
    from.write_all_at(source, 0).unwrap();
    map_pages(&space, SOURCE, &from, 0, 1);
    map_pages(&space, TARGET, &to, 0, 1);
    space.start_log(TARGET, TARGET + 64).unwrap();
    (space, from, to)
}

fn translation(iova_page: u64, pages: u64, address_page: u64) -> Translation {
    Translation {
        iova: iova_page * PAGE,
        size: pages * PAGE,
        address: address_page * PAGE,
    }
}

#[test]
fn a_mark_goes_over_to_the_page_behind_its_address() {
    let (space, from, to) = logs(&[0b1001_0110]);
    let moved = space.lock().transcribe(
        SOURCE,
        SOURCE + 64,
        &[translation(1, 2, 100), translation(4, 1, 7)],
    );
    assert_eq!(moved, Ok(3));
    assert_eq!(set_bits(&contents(&to)), [7, 100, 101]);
    assert_eq!(set_bits(&contents(&from)), [7]);
}

#[test]
fn one_page_that_has_two_addresses_is_marked_by_either() {
    let (space, _from, to) = logs(&[0b10, 0b1]);
    let both = [translation(1, 1, 5), translation(8, 1, 5)];
    assert_eq!(space.lock().transcribe(SOURCE, SOURCE + 64, &both), Ok(2));
    assert_eq!(set_bits(&contents(&to)), [5]);
}

#[test]
fn addresses_behind_the_source_have_no_marks() {
    let (space, from, to) = logs(&[0xff, 0xff]);
    let moved = space.lock().transcribe(
        SOURCE,
        SOURCE + 1,
        &[translation(4, 100, 4), translation(900, 1, 9)],
    );
    assert_eq!(moved, Ok(4));
    assert_eq!(set_bits(&contents(&to)), [4, 5, 6, 7]);
    assert_eq!(contents(&from)[..2], [0x0f, 0xff]);
}

#[test]
fn a_page_behind_the_target_is_a_violation_and_never_silent() {
    let (space, _from, to) = logs(&[1]);
    let moved = space
        .lock()
        .transcribe(SOURCE, SOURCE + 64, &[translation(0, 1, 64 * 8)]);
    assert_eq!(moved, Ok(1));
    assert_eq!(set_bits(&contents(&to)), Vec::<u64>::new());
    assert_eq!(violation_kinds(&space), ["log_overflow"]);
}

#[test]
fn a_source_that_is_not_mapped_is_an_error() {
    let (space, _from, _to) = logs(&[]);
    let missing = space
        .lock()
        .transcribe(7 << 44, (7 << 44) + 64, &[translation(0, 1, 0)]);
    assert!(missing.is_err());
}

#[test]
fn a_log_says_whether_it_has_marks() {
    let (space, from, _to) = logs(&[]);
    let whole = Range::new(SOURCE, PAGE);
    assert_eq!(space.lock().has_marks(whole), Ok(false));
    from.write_all_at(&[4], PAGE - 1).unwrap();
    assert_eq!(space.lock().has_marks(whole), Ok(true));
    assert_eq!(
        space.lock().has_marks(Range::new(SOURCE, PAGE - 1)),
        Ok(false)
    );
    assert!(space.lock().has_marks(Range::new(0, 1u64)).is_err());
}

proptest! {
    #[test]
    fn every_mark_of_a_translated_page_arrives_and_no_other(
        source in proptest::collection::vec(any::<u8>(), 8),
        first in 0u64..60,
        pages in 0u64..64,
        address in 0u64..400,
    ) {
        let (space, from, to) = logs(&source);
        let moved = space.lock().transcribe(SOURCE, SOURCE + 8, &[translation(first, pages, address)]);
        let (inside, outside): (Vec<u64>, Vec<u64>) = set_bits(&source)
            .into_iter()
            .partition(|page| (first..first + pages).contains(page));
        prop_assert_eq!(moved, Ok(inside.len() as u64));
        prop_assert_eq!(set_bits(&contents(&from)), outside);
        let expected: Vec<u64> = inside.iter().map(|page| page - first + address).collect();
        prop_assert_eq!(set_bits(&contents(&to)), expected);
    }
}
