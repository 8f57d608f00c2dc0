// SPDX-License-Identifier: Apache-2.0
//! Mapping, unmapping, permissions, limits.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Instant;

use proptest::prelude::*;
use vdpa_net_dataplane::error::Error;
use vdpa_net_dataplane::memory::{DmaSpace, Range};

use crate::support::{contents, fd, map_pages, memfd, PAGE};

fn errno(result: Result<(), Error>) -> i32 {
    result.expect_err("an error").errno()
}

#[test]
fn map_refuses_numbers_that_break_the_rules() {
    let (space, file) = (DmaSpace::new(8), memfd(4));
    let map = |iova, size, offset| errno(space.map(iova, size, fd(&file), offset, true, true));
    assert_eq!(map(1, PAGE, 0), libc::EINVAL);
    assert_eq!(map(0, 100, 0), libc::EINVAL);
    assert_eq!(map(0, PAGE, 8), libc::EINVAL);
    assert_eq!(map(0, 0, 0), libc::EINVAL);
    assert_eq!(map(u64::MAX - 4095, 2 * PAGE, 0), libc::EINVAL);
    assert_eq!(map(0, 2 * PAGE, u64::MAX - 4095), libc::EINVAL);
    assert_eq!(map(0, 5 * PAGE, 0), libc::EINVAL);
    assert_eq!(map(0, PAGE, 4 * PAGE), libc::EINVAL);
    assert!(space.mappings().is_empty());
}

#[test]
fn the_last_page_of_the_address_space_can_be_mapped() {
    let (space, file) = (DmaSpace::new(8), memfd(1));
    map_pages(&space, u64::MAX - 4095, &file, 0, 1);
    // What follows the last address is nothing, not address 0.
    map_pages(&space, 0, &file, 0, 1);
    space
        .lock()
        .write_from(u64::MAX - 3, &[1, 2, 3, 4])
        .unwrap();
    assert_eq!(contents(&file)[4092..], [1, 2, 3, 4]);
    let wrapping = space.lock().check(Range::new(u64::MAX, 2u64), true);
    assert_eq!(errno(wrapping), libc::EFAULT);
}

#[test]
fn an_overlap_is_refused_and_names_the_other_map() {
    let (space, file) = (DmaSpace::new(8), memfd(8));
    map_pages(&space, 0x10_000, &file, 0, 2);
    for iova in [0xf000, 0x10_000, 0x11_000] {
        let error = space
            .map(iova, 2 * PAGE, fd(&file), 0, true, true)
            .unwrap_err();
        assert_eq!(error.errno(), libc::EEXIST);
        assert!(error.to_string().contains("0x10000"), "{error}");
    }
    map_pages(&space, 0xe000, &file, 0, 2);
    map_pages(&space, 0x12_000, &file, 0, 2);
}

#[test]
fn the_limit_of_maps_is_enospc_and_a_free_place_can_be_used_again() {
    let (space, file) = (DmaSpace::new(2), memfd(4));
    map_pages(&space, 0, &file, 0, 1);
    map_pages(&space, PAGE, &file, 0, 1);
    assert_eq!(
        errno(space.map(2 * PAGE, PAGE, fd(&file), 0, true, true)),
        libc::ENOSPC
    );
    space.unmap(0, PAGE).unwrap();
    map_pages(&space, 2 * PAGE, &file, 0, 1);
}

#[test]
fn unmap_wants_exactly_one_earlier_map() {
    let (space, file) = (DmaSpace::new(8), memfd(4));
    map_pages(&space, 0, &file, 0, 2);
    map_pages(&space, 2 * PAGE, &file, 2, 2);
    for (iova, size) in [(0, PAGE), (PAGE, PAGE), (0, 4 * PAGE), (8 * PAGE, PAGE)] {
        assert_eq!(errno(space.unmap(iova, size)), libc::ENOENT);
    }
    space.unmap(0, 2 * PAGE).unwrap();
    assert!(!space.is_mapped(0, 1, false));
    assert!(space.is_mapped(2 * PAGE, 2 * PAGE, true));
    assert_eq!(space.unmap_all(), 1);
    assert_eq!(
        space.lock().read_array::<1>(2 * PAGE).unwrap_err().errno(),
        libc::EFAULT
    );
}

#[test]
fn permissions_of_each_map_hold() {
    let (space, file) = (DmaSpace::new(8), memfd(2));
    space.map(0, PAGE, fd(&file), 0, true, false).unwrap();
    space.map(PAGE, PAGE, fd(&file), PAGE, false, true).unwrap();
    let memory = space.lock();
    assert!(memory.read_array::<4>(0).is_ok());
    assert_eq!(errno(memory.write_from(0, &[1])), libc::EFAULT);
    assert_eq!(errno(memory.store_u16(0, 1)), libc::EFAULT);
    assert!(memory.write_from(PAGE, &[1]).is_ok());
    assert!(memory.read_array::<4>(PAGE).is_err());
    // A write that begins in the writable map's neighbour changes nothing at all.
    let error = memory.write_from(PAGE - 1, &[7, 7]).unwrap_err();
    drop(memory);
    assert!(
        error.to_string().contains("write of 2 bytes at iova 0xfff"),
        "{error}"
    );
    assert_eq!(contents(&file)[PAGE as usize], 1);
}

#[test]
fn a_read_only_descriptor_can_be_mapped_for_reading_only() {
    let (space, file) = (DmaSpace::new(8), memfd(1));
    file.write_all_at(b"rom", 0).unwrap();
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
    let read_only = File::open(path).unwrap();
    assert_eq!(
        errno(space.map(0, PAGE, fd(&read_only), 0, true, true)),
        libc::EACCES
    );
    space.map(0, PAGE, fd(&read_only), 0, true, false).unwrap();
    assert_eq!(&space.lock().read_array::<3>(0).unwrap(), b"rom");
    // The same file by a descriptor that can write gets an mmap that can.
    space.map(PAGE, PAGE, fd(&file), 0, true, true).unwrap();
    space.lock().write_from(PAGE, b"RAM").unwrap();
    assert_eq!(&space.lock().read_array::<3>(0).unwrap(), b"RAM");
}

#[test]
fn what_is_not_a_file_is_refused() {
    let space = DmaSpace::new(8);
    let zero = File::options()
        .read(true)
        .write(true)
        .open("/dev/zero")
        .unwrap();
    assert_eq!(
        errno(space.map(0, PAGE, fd(&zero), 0, true, true)),
        libc::EINVAL
    );
}

#[test]
fn a_file_of_odd_length_can_be_mapped_to_the_end_of_its_last_page() {
    let (space, file) = (DmaSpace::new(8), memfd(0));
    file.set_len(PAGE + 100).unwrap();
    map_pages(&space, 0, &file, 0, 2);
    space.lock().write_from(PAGE, b"log").unwrap();
    assert_eq!(&contents(&file)[PAGE as usize..][..3], b"log");
    assert_eq!(
        errno(space.map(1 << 20, 3 * PAGE, fd(&file), 0, true, true)),
        libc::EINVAL
    );
}

#[test]
fn a_file_that_has_grown_can_be_mapped_further_and_old_maps_stay() {
    let (space, file) = (DmaSpace::new(8), memfd(1));
    map_pages(&space, 0, &file, 0, 1);
    file.set_len(3 * PAGE).unwrap();
    map_pages(&space, PAGE, &file, 1, 2);
    space.lock().write_from(PAGE - 1, &[1, 2]).unwrap();
    assert_eq!(contents(&file)[4095..4097], [1, 2]);
}

#[test]
fn a_sparse_file_can_not_take_all_the_address_space() {
    let (space, file) = (DmaSpace::new(8), memfd(0));
    file.set_len(1 << 46).unwrap();
    assert_eq!(
        errno(space.map(0, PAGE, fd(&file), 0, true, true)),
        libc::ENOMEM
    );
    map_pages(&space, 0, &memfd(1), 0, 1);
}

#[test]
fn maps_of_one_file_share_one_mmap() {
    let (space, file) = (DmaSpace::new(8), memfd(4));
    map_pages(&space, 0, &file, 0, 1);
    map_pages(&space, 1 << 40, &file, 3, 1);
    let maps = space.mappings();
    assert_eq!(maps[1].address - maps[0].address, 3 * PAGE as usize);
    assert_eq!(
        (maps[1].iova, maps[1].offset, maps[1].size),
        (1 << 40, 3 * PAGE, PAGE)
    );
}

#[test]
fn a_million_maps_of_one_page_work() {
    const MAPS: u64 = 1 << 20;
    let (space, file) = (DmaSpace::new(1 << 20), memfd(64));
    let begun = Instant::now();
    for page in 0..MAPS {
        map_pages(&space, page * 2 * PAGE, &file, page % 64, 1);
    }
    assert_eq!(
        errno(space.map(1 << 60, PAGE, fd(&file), 0, true, true)),
        libc::ENOSPC
    );
    space
        .lock()
        .store_u16((MAPS - 1) * 2 * PAGE, 0xabcd)
        .unwrap();
    assert!(!space.is_mapped(PAGE, 1, false));
    for page in 0..MAPS {
        space.unmap(page * 2 * PAGE, PAGE).unwrap();
    }
    assert!(space.mappings().is_empty());
    println!("{MAPS} maps and unmaps in {:?}", begun.elapsed());
    assert_eq!(contents(&file)[63 * PAGE as usize..][..2], [0xcd, 0xab]);
}

#[derive(Clone, Debug)]
enum Step {
    Map {
        page: u64,
        pages: u64,
        writable: bool,
    },
    Unmap {
        page: u64,
        pages: u64,
    },
    UnmapNth(usize),
    Ask {
        page: u64,
        pages: u64,
    },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let place = || (0u64..48, 1u64..9);
    let map = (place(), any::<bool>());
    let step = prop_oneof![
        4 => map.prop_map(|((page, pages), writable)| Step::Map { page, pages, writable }),
        1 => place().prop_map(|(page, pages)| Step::Unmap { page, pages }),
        2 => any::<usize>().prop_map(Step::UnmapNth),
        3 => place().prop_map(|(page, pages)| Step::Ask { page, pages }),
    ];
    prop::collection::vec(step, 1..80)
}

/// The model: a list of (first page, pages, writable).
#[derive(Default)]
struct Model(Vec<(u64, u64, bool)>);

impl Model {
    fn overlaps(&self, page: u64, pages: u64) -> bool {
        self.0
            .iter()
            .any(|(p, n, _)| *p < page + pages && page < p + n)
    }

    fn allows(&self, page: u64, write: bool) -> bool {
        self.0
            .iter()
            .any(|(p, n, w)| (*p..p + n).contains(&page) && (*w || !write))
    }

    fn remove(&mut self, page: u64, pages: u64) -> bool {
        let before = self.0.len();
        self.0.retain(|(p, n, _)| (*p, *n) != (page, pages));
        self.0.len() < before
    }
}

proptest! {
    #[test]
    fn maps_behave_as_a_plain_list_of_ranges(steps in steps()) {
        let (space, file) = (DmaSpace::new(1 << 20), memfd(16));
        let mut model = Model::default();
        for step in steps {
            match step {
                Step::Map { page, pages, writable } => {
                    let mapped = space.map(page * PAGE, pages * PAGE, fd(&file), 0, true, writable);
                    prop_assert_eq!(mapped.is_ok(), !model.overlaps(page, pages));
                    if mapped.is_ok() {
                        model.0.push((page, pages, writable));
                    }
                }
                Step::Unmap { page, pages } => {
                    let unmapped = space.unmap(page * PAGE, pages * PAGE);
                    prop_assert_eq!(unmapped.is_ok(), model.remove(page, pages));
                }
                Step::UnmapNth(nth) if !model.0.is_empty() => {
                    let (page, pages, _) = model.0[nth % model.0.len()];
                    prop_assert!(space.unmap(page * PAGE, pages * PAGE).is_ok());
                    model.remove(page, pages);
                }
                Step::UnmapNth(_) => {}
                Step::Ask { page, pages } => for write in [false, true] {
                    let expected = (page..page + pages).all(|p| model.allows(p, write));
                    let mapped = space.is_mapped(page * PAGE + 7, pages * PAGE - 7, write);
                    prop_assert_eq!(mapped, expected);
                },
            }
        }
        let mut expected: Vec<_> = model.0.iter().map(|(p, n, w)| (p * PAGE, n * PAGE, *w)).collect();
        expected.sort_unstable();
        let maps: Vec<_> = space.mappings().iter().map(|m| (m.iova, m.size, m.writable)).collect();
        prop_assert_eq!(maps, expected);
    }
}
