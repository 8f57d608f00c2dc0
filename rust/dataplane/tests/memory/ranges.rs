// SPDX-License-Identifier: Apache-2.0
//! Unmapping ranges that hold several maps, and memory that came without a file.

use proptest::prelude::*;
use vdpa_net_dataplane::memory::{DmaSpace, Range};

use crate::support::{fd, map_pages, memfd, violation_kinds, PAGE};

#[test]
fn a_range_takes_the_maps_inside_of_it_and_no_others() {
    let (space, file) = (DmaSpace::new(8), memfd(4));
    for page in [0, 2, 4, 6] {
        map_pages(&space, page * PAGE, &file, 0, 1);
    }
    assert_eq!(space.unmap_within(PAGE, 4 * PAGE).unwrap(), 2);
    let left: Vec<u64> = space.mappings().iter().map(|m| m.iova / PAGE).collect();
    assert_eq!(left, [0, 6]);
    assert_eq!(space.unmap_within(0x10_0000, PAGE).unwrap(), 0);
}

#[test]
fn a_range_that_cuts_a_map_takes_nothing_and_names_it() {
    let (space, file) = (DmaSpace::new(8), memfd(4));
    map_pages(&space, 0, &file, 0, 2);
    map_pages(&space, 4 * PAGE, &file, 0, 2);
    for (first, pages, cut) in [
        (1, 8, "iova 0x0"),
        (0, 5, "iova 0x4000"),
        (5, 1, "iova 0x4000"),
    ] {
        let error = space.unmap_within(first * PAGE, pages * PAGE).unwrap_err();
        assert_eq!(error.errno(), libc::EINVAL);
        assert!(
            error.to_string().contains(&format!("cuts the map {cut}")),
            "{error}"
        );
    }
    assert_eq!(space.mappings().len(), 2);
}

#[test]
fn a_range_may_be_the_whole_address_space_but_not_empty_or_wrap_around() {
    let (space, file) = (DmaSpace::new(8), memfd(4));
    map_pages(&space, 0, &file, 0, 1);
    map_pages(&space, u64::MAX - 4095, &file, 0, 1);
    assert_eq!(space.unmap_within(0, 0).unwrap_err().errno(), libc::EINVAL);
    let wrapping = space.unmap_within(2, u64::MAX);
    assert_eq!(wrapping.unwrap_err().errno(), libc::EINVAL);
    assert_eq!(space.unmap_within(PAGE, u64::MAX - PAGE + 1).unwrap(), 1);
    assert_eq!(space.unmap_within(0, u64::MAX).unwrap(), 1);
}

#[test]
fn memory_without_a_file_takes_its_place_but_cannot_be_reached() {
    let (space, file) = (DmaSpace::new(3), memfd(4));
    space.reserve(PAGE, 2 * PAGE).unwrap();
    assert!(space.is_without_file(PAGE) && space.is_without_file(3 * PAGE - 1));
    assert!(!space.is_without_file(0) && !space.is_without_file(3 * PAGE));
    for write in [false, true] {
        let refused = space.lock().check(Range::new(PAGE, 1u64), write);
        assert_eq!(refused.unwrap_err().errno(), libc::EFAULT);
    }
    assert!(space.lock().write_from(PAGE, &[1]).is_err());
    assert_eq!(
        space.start_log(PAGE, 2 * PAGE).unwrap_err().errno(),
        libc::EFAULT
    );
    let overlap = space.map(2 * PAGE, PAGE, fd(&file), 0, true, true);
    assert_eq!(overlap.unwrap_err().errno(), libc::EEXIST);
    map_pages(&space, 0, &file, 0, 1);
    assert_eq!(space.reserve(0, PAGE).unwrap_err().errno(), libc::EEXIST);
    assert_eq!(space.mappings()[1].address, 0);
    space.unmap(PAGE, 2 * PAGE).unwrap();
    assert!(!space.is_without_file(PAGE));
}

#[test]
fn memory_without_a_file_counts_as_a_map() {
    let space = DmaSpace::new(1);
    space.reserve(0, PAGE).unwrap();
    assert_eq!(space.reserve(PAGE, PAGE).unwrap_err().errno(), libc::ENOSPC);
    assert_eq!(space.unmap_all(), 1);
}

#[test]
fn taking_the_log_away_with_a_range_is_a_violation() {
    let (space, file) = (DmaSpace::new(8), memfd(4));
    map_pages(&space, 0, &file, 0, 1);
    map_pages(&space, PAGE, &file, 1, 1);
    space.start_log(PAGE, PAGE + 8).unwrap();
    space.unmap_within(0, PAGE).unwrap();
    assert!(violation_kinds(&space).is_empty());
    space.unmap_within(0, 4 * PAGE).unwrap();
    assert_eq!(violation_kinds(&space), ["log_unmapped"]);
}

proptest! {
    /// The model owns pages one by one and knows nothing of intervals.
    #[test]
    fn unmapping_ranges_agrees_with_a_table_of_pages(
        maps in prop::collection::vec((0u64..60, 1u64..8), 0..12),
        ranges in prop::collection::vec((0u64..64, 1u64..64), 1..6),
    ) {
        let (space, file) = (DmaSpace::new(64), memfd(8));
        let mut owner = [None; 128];
        for (first, pages) in maps {
            let place = first as usize..(first + pages) as usize;
            let taken = owner[place.clone()].iter().any(Option::is_some);
            let mapped = space.map(first * PAGE, pages * PAGE, fd(&file), 0, true, true);
            prop_assert_eq!(mapped.is_err(), taken);
            if !taken {
                owner[place].fill(Some(first));
            }
        }
        for (first, pages) in ranges {
            let place = first as usize..(first + pages) as usize;
            let mut inside: Vec<u64> = owner[place.clone()].iter().flatten().copied().collect();
            inside.dedup();
            let cut = (0..128).any(|page| {
                !place.contains(&page) && owner[page].is_some_and(|map| inside.contains(&map))
            });
            let removed = space.unmap_within(first * PAGE, pages * PAGE);
            prop_assert_eq!(removed.is_err(), cut);
            if !cut {
                prop_assert_eq!(removed.unwrap(), inside.len());
                owner[place].fill(None);
            }
            for (page, map) in owner.iter().enumerate() {
                prop_assert_eq!(space.is_mapped(page as u64 * PAGE, PAGE, true), map.is_some());
            }
        }
    }
}
