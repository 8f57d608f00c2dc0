// SPDX-License-Identifier: Apache-2.0
//! The one rule, over random sequences of everything that can write: what has changed is marked.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read, Write};

use proptest::prelude::*;
use vdpa_net_dataplane::memory::{DmaSpace, Memory, Range};

use crate::support::{contents, fd, map_pages, memfd, pipe, set_bits, PAGE};

const RAM_PAGES: u64 = 24;
const RAM_BYTES: u64 = RAM_PAGES * PAGE;
const LOG: u64 = 1 << 44;

/// Guest pages by IOVA, shuffled over the file in maps of different length: every long store straddles some.
const MAPS: [(u64, u64, u64); 5] = [(0, 16, 1), (1, 3, 5), (6, 20, 4), (10, 8, 8), (18, 0, 3)];
/// Pages 21 to 23 are not mapped.
const MAPPED_BYTES: u64 = 21 * PAGE;

#[derive(Clone, Debug)]
enum Store {
    StoreU16(u64),
    WritePair(u64),
    Compose(u64, usize),
    Write(u64, usize),
    Scatter(Vec<(u64, u64)>, usize),
    Readv(Vec<(u64, u64)>, usize),
    Mark(u64, u64),
}

fn writes() -> impl Strategy<Value = Vec<Store>> {
    let iova = 0..RAM_BYTES;
    let ranges = prop::collection::vec((iova.clone(), 0..3 * PAGE), 0..6);
    let bytes = 0..(5 * PAGE as usize);
    let write = prop_oneof![
        iova.clone().prop_map(Store::StoreU16),
        (0..RAM_BYTES / 4).prop_map(|word| Store::WritePair(4 * word)),
        (iova.clone(), bytes.clone()).prop_map(|(iova, len)| Store::Compose(iova, len)),
        (iova.clone(), bytes.clone()).prop_map(|(iova, len)| Store::Write(iova, len)),
        (ranges.clone(), bytes.clone()).prop_map(|(ranges, len)| Store::Scatter(ranges, len)),
        (ranges, bytes).prop_map(|(ranges, len)| Store::Readv(ranges, len)),
        (iova, 0..2 * PAGE).prop_map(|(iova, len)| Store::Mark(iova, len)),
    ];
    prop::collection::vec(write, 1..12)
}

fn ranges(list: &[(u64, u64)]) -> Vec<Range> {
    list.iter()
        .map(|(iova, len)| Range::new(*iova, *len))
        .collect()
}

/// Do it; whether it was refused is not the question here.
fn perform(memory: &Memory<'_>, write: &Store, fill: u8) {
    match write {
        Store::StoreU16(iova) => drop(memory.store_u16(*iova, u16::from_le_bytes([fill; 2]))),
        Store::WritePair(iova) => {
            drop(memory.write_pair(*iova, [u32::from_le_bytes([fill; 4]); 2]))
        }
        Store::Compose(iova, len) => {
            memory.compose(Range::new(*iova, *len as u64), |canvas| {
                canvas.put(0, &vec![fill; len / 2]);
                canvas.put(len / 2, &vec![fill; len - len / 2]);
            });
        }
        Store::Write(iova, len) => drop(memory.write_from(*iova, &vec![fill; *len])),
        Store::Scatter(list, len) => drop(memory.scatter(&ranges(list), &vec![fill; *len])),
        Store::Mark(iova, len) => memory.mark(Range::new(*iova, *len)),
        Store::Readv(list, len) => {
            let (reader, mut writer) = pipe();
            writer.write_all(&vec![fill; *len]).unwrap();
            drop(memory.readv_from(fd(&reader), &ranges(list)));
        }
    }
}

/// IOVA pages whose bytes differ.
fn changed_pages(before: &[u8], after: &[u8]) -> BTreeSet<u64> {
    let page = |bytes: &[u8], n: u64| bytes[(n * PAGE) as usize..][..PAGE as usize].to_vec();
    MAPS.iter()
        .flat_map(|(iova, file, pages)| (0..*pages).map(move |n| (iova + n, file + n)))
        .filter(|(_, file)| page(before, *file) != page(after, *file))
        .map(|(iova, _)| iova)
        .collect()
}

fn guest() -> (DmaSpace, File, File) {
    let (space, ram, log) = (DmaSpace::new(16), memfd(RAM_PAGES), memfd(1));
    for (iova, file, pages) in MAPS {
        map_pages(&space, iova * PAGE, &ram, file, pages);
    }
    map_pages(&space, LOG, &log, 0, 1);
    (space, ram, log)
}

proptest! {
    #[test]
    fn every_page_that_changed_is_marked(writes in writes()) {
        let (space, ram, log) = guest();
        space.record_marks(true);
        space.start_log(LOG + 5, LOG + 8).unwrap();
        let mut marked_before = BTreeSet::new();
        for (number, write) in writes.iter().enumerate() {
            let before = contents(&ram);
            perform(&space.lock(), write, number as u8 + 1);
            let changed = changed_pages(&before, &contents(&ram));
            let marked: BTreeSet<u64> = set_bits(&contents(&log)[5..8]).into_iter().collect();
            prop_assert!(changed.is_subset(&marked), "{:?}: {:?}, marked {:?}", write, changed, marked);
            prop_assert!(marked_before.is_subset(&marked));
            marked_before = marked;
        }
        let recorded: BTreeSet<u64> = set_bits(&space.marked_pages()).into_iter().collect();
        prop_assert_eq!(recorded, marked_before);
        prop_assert!(contents(&log)[..5].iter().chain(&contents(&log)[8..]).all(|byte| *byte == 0));
    }

    #[test]
    fn what_is_written_is_read_back_by_every_way(iova in 0..MAPPED_BYTES - 9000, len in 0usize..9000, cut in 0usize..9000) {
        let (space, _ram, _log) = guest();
        let data: Vec<u8> = (0..len).map(|n| (n * 7 + 1) as u8).collect();
        let cut = cut.min(len);
        let parts = [Range::new(iova, cut as u64), Range::new(iova + cut as u64, (len - cut) as u64)];
        let memory = space.lock();
        prop_assert_eq!(memory.scatter(&parts, &data).unwrap(), len);
        let mut whole = vec![0; len];
        memory.read_into(iova, &mut whole).unwrap();
        prop_assert_eq!(&whole, &data);
        let mut gathered = vec![9];
        prop_assert_eq!(memory.gather(&parts, &mut gathered).unwrap(), len);
        prop_assert_eq!(&gathered[1..], &data[..]);
        let (mut reader, writer) = pipe();
        prop_assert_eq!(memory.writev_to(fd(&writer), &parts).unwrap().unwrap(), len);
        drop(writer);
        let mut piped = Vec::new();
        reader.read_to_end(&mut piped).unwrap();
        prop_assert_eq!(&piped, &data);
    }
}

#[test]
fn a_read_marks_only_the_pages_of_the_bytes_that_came() {
    let (space, _ram, log) = guest();
    space.start_log(LOG, LOG + 8).unwrap();
    let (reader, mut writer) = pipe();
    let pages: Vec<Range> = (0..4).map(|n| Range::new(n * PAGE, PAGE)).collect();
    let memory = space.lock();
    let error = memory.readv_from(fd(&reader), &pages).unwrap().unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
    assert_eq!(set_bits(&contents(&log)), [0u64; 0]);
    writer.write_all(&[1; 5000]).unwrap();
    assert_eq!(
        memory.readv_from(fd(&reader), &pages).unwrap().unwrap(),
        5000
    );
    assert_eq!(set_bits(&contents(&log)), [0, 1]);
}

#[test]
fn more_pieces_than_one_system_call_takes_are_transferred_all_the_same() {
    let (space, ram, log) = guest();
    space.start_log(LOG, LOG + 8).unwrap();
    // Every other byte, so that no two pieces can be joined.
    let pieces: Vec<Range> = (0..3000).map(|n| Range::new(n * 2, 1u64)).collect();
    let (mut reader, mut writer) = pipe();
    writer.write_all(&[5; 3000]).unwrap();
    let memory = space.lock();
    assert_eq!(
        memory.readv_from(fd(&reader), &pieces).unwrap().unwrap(),
        3000
    );
    assert_eq!(set_bits(&contents(&log)), [0, 1]);
    let after = contents(&ram);
    assert_eq!(after[16 * PAGE as usize..][..4], [5, 0, 5, 0]);
    assert_eq!(
        memory.writev_to(fd(&writer), &pieces).unwrap().unwrap(),
        3000
    );
    let mut back = vec![0; 4000];
    assert_eq!(reader.read(&mut back).unwrap(), 3000);
    assert_eq!(back[..3000], [5; 3000]);
}

#[test]
fn a_chain_that_names_terabytes_is_refused() {
    let (space, _ram, _log) = guest();
    let ranges = vec![Range::new(0, 20 * PAGE); 1000];
    let mut out = Vec::new();
    let error = space.lock().gather(&ranges, &mut out).unwrap_err();
    assert_eq!((error.errno(), out.len()), (libc::EMSGSIZE, 0));
}

#[test]
fn a_pair_is_written_whole_wherever_four_divides_its_address() {
    let (space, ram, _) = guest();
    let memory = space.lock();
    // In one map at both alignments, across two maps, and not mapped.
    for (iova, is_mapped) in [
        (8, true),
        (12, true),
        (PAGE - 4, true),
        (21 * PAGE - 4, false),
    ] {
        assert_eq!(
            memory.write_pair(iova, [0x0403_0201, 0x0807_0605]).is_ok(),
            is_mapped
        );
        let expected = if is_mapped {
            [1, 2, 3, 4, 5, 6, 7, 8]
        } else {
            [0; 8]
        };
        let mut found = [0; 8];
        let readable = if is_mapped { 8 } else { 4 };
        memory.read_into(iova, &mut found[..readable]).unwrap();
        assert_eq!(found, expected, "{iova:#x}");
    }
    drop(memory);
    assert_eq!(
        contents(&ram)[16 * PAGE as usize + 8..][..12],
        [1, 2, 3, 4, 1, 2, 3, 4, 5, 6, 7, 8]
    );
}

#[test]
fn nothing_is_composed_where_a_buffer_does_not_lie_in_one_map() {
    let (space, ram, log) = guest();
    space.start_log(LOG, LOG + 8).unwrap();
    let memory = space.lock();
    let compose =
        |iova, len: u64| memory.compose(Range::new(iova, len), |canvas| canvas.put(1, &[7, 8]));
    assert!(!compose(PAGE - 2, 4));
    assert!(!compose(21 * PAGE, 4));
    assert!(!compose(0, 0));
    assert_eq!(set_bits(&contents(&log)), [0u64; 0]);
    assert!(compose(PAGE - 4, 4));
    drop(memory);
    assert_eq!(contents(&ram)[17 * PAGE as usize - 4..][..4], [0, 7, 8, 0]);
    assert_eq!(set_bits(&contents(&log)), [0]);
}

#[test]
fn words_are_little_endian_and_must_be_aligned() {
    let (space, ram, _log) = guest();
    let memory = space.lock();
    memory.store_u16(2, 0x1234).unwrap();
    assert_eq!(memory.load_u16(2).unwrap(), 0x1234);
    assert_eq!(
        contents(&ram)[16 * PAGE as usize..][..4],
        [0, 0, 0x34, 0x12]
    );
    assert_eq!(memory.store_u16(1, 1).unwrap_err().errno(), libc::EINVAL);
    assert_eq!(
        memory.load_u16(MAPPED_BYTES).unwrap_err().errno(),
        libc::EFAULT
    );
}
