// SPDX-License-Identifier: Apache-2.0
//! Guest memory as a driver sees it, and what drivers of either format have in common.

use std::cell::Cell;
use std::fs::File;
use std::os::fd::{AsFd, FromRawFd};
use std::os::unix::fs::FileExt;

use vdpa_net_dataplane::memory::{DmaSpace, Range};
use vdpa_net_dataplane::ring::{
    self, AnyRing, RingConfig, RingState, F_EVENT_IDX, F_INDIRECT_DESC, F_RING_PACKED,
};

pub const PAGE: u64 = 4096;
pub const BASE: u64 = 0x40_0000;
const PAGES: u64 = 256;
const PAGES_PER_MAP: u64 = 3;
pub const MAP_BYTES: u64 = PAGES_PER_MAP * PAGE;
const LOG: u64 = 1 << 40;

pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;

/// Memory of a guest. What is read and written here goes through system calls: neither marked nor ordered by the code
/// under test. Maps are a few pages long, so that rings and buffers straddle them.
pub struct Guest {
    pub space: DmaSpace,
    file: File,
    log: File,
    next: Cell<u64>,
}

/// Whether these bytes lie in one map of a guest.
pub fn lies_in_one_map(iova: u64, bytes: u64) -> bool {
    let map = |iova: u64| (iova - BASE) / MAP_BYTES;
    map(iova) == map(iova + bytes - 1)
}

fn memfd(bytes: u64) -> File {
    // SAFETY: the name is a valid C string.
    let fd = unsafe { libc::memfd_create(b"guest\0".as_ptr().cast(), libc::MFD_CLOEXEC) };
    assert!(fd >= 0, "memfd_create");
    // SAFETY: the fd is new and ours.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(bytes).expect("set_len");
    file
}

impl Guest {
    pub fn new() -> Self {
        let (space, file, log) = (DmaSpace::new(1024), memfd(PAGES * PAGE), memfd(PAGE));
        let size = MAP_BYTES;
        let mut offset = 0;
        while offset < PAGES * PAGE {
            let size = size.min(PAGES * PAGE - offset);
            space
                .map(BASE + offset, size, file.as_fd(), offset, true, true)
                .expect("map");
            offset += size;
        }
        space
            .map(LOG, PAGE, log.as_fd(), 0, true, true)
            .expect("map the log");
        Self {
            space,
            file,
            log,
            next: Cell::new(BASE),
        }
    }

    pub fn file(&self) -> &File {
        &self.file
    }

    pub fn size() -> u64 {
        PAGES * PAGE
    }

    /// Let the device only read the map that these bytes lie in.
    pub fn forbid_writing(&self, iova: u64) {
        let size = MAP_BYTES;
        let offset = (iova - BASE) / size * size;
        let mapped = self.space.unmap(BASE + offset, size).and_then(|()| {
            let file = self.file.as_fd();
            self.space
                .map(BASE + offset, size, file, offset, true, false)
        });
        mapped.expect("map again");
    }

    /// Unused bytes.
    pub fn allocate(&self, bytes: u64, align: u64) -> u64 {
        let start = self.next.get().next_multiple_of(align);
        assert!(start + bytes <= BASE + PAGES * PAGE, "guest memory is full");
        self.next.set(start + bytes);
        start
    }

    pub fn write(&self, iova: u64, data: &[u8]) {
        self.file.write_all_at(data, iova - BASE).expect("write");
    }

    pub fn read<const N: usize>(&self, iova: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.file
            .read_exact_at(&mut bytes, iova - BASE)
            .expect("read");
        bytes
    }

    pub fn u16(&self, iova: u64) -> u16 {
        u16::from_le_bytes(self.read(iova))
    }

    pub fn set_u16(&self, iova: u64, value: u16) {
        self.write(iova, &value.to_le_bytes());
    }

    /// All memory.
    pub fn snapshot(&self) -> Vec<u8> {
        let mut bytes = vec![0; (PAGES * PAGE) as usize];
        self.file.read_exact_at(&mut bytes, 0).expect("read");
        bytes
    }

    pub fn start_log(&self) {
        let bytes = (BASE / PAGE + PAGES).div_ceil(8);
        self.space.start_log(LOG, LOG + bytes).expect("start_log");
    }

    /// The pages marked since the last call, by their IOVA.
    pub fn harvest(&self) -> Vec<u64> {
        let mut bits = vec![0; PAGE as usize];
        self.log.read_exact_at(&mut bits, 0).expect("read the log");
        self.log
            .write_all_at(&vec![0; PAGE as usize], 0)
            .expect("clear the log");
        (0..bits.len() as u64 * 8)
            .filter(|page| bits[(page / 8) as usize] >> (page % 8) & 1 == 1)
            .map(|page| page * PAGE)
            .collect()
    }
}

/// Pages in which two snapshots differ, by their IOVA.
pub fn changed_pages(before: &[u8], after: &[u8]) -> Vec<u64> {
    let pages = before
        .chunks(PAGE as usize)
        .zip(after.chunks(PAGE as usize));
    pages
        .enumerate()
        .filter(|(_, (old, new))| old != new)
        .map(|(index, _)| BASE + index as u64 * PAGE)
        .collect()
}

/// Bytes of one descriptor or used element of a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    pub iova: u64,
    pub len: u32,
    pub writable: bool,
}

impl Piece {
    pub fn range(&self) -> Range {
        Range::new(self.iova, self.len)
    }
}

/// The features that the tests vary.
#[derive(Clone, Copy, Debug)]
pub struct Features {
    pub packed: bool,
    pub event_idx: bool,
    pub indirect: bool,
}

impl Features {
    pub fn bits(self) -> u64 {
        let mut bits = 0;
        for (on, bit) in [
            (self.packed, F_RING_PACKED),
            (self.event_idx, F_EVENT_IDX),
            (self.indirect, F_INDIRECT_DESC),
        ] {
            bits |= if on { bit } else { 0 };
        }
        bits
    }
}

/// A driver, as far as the tests need one. It counts what passes from 0 on, never modulo anything: entries of a split
/// ring, descriptors of a packed one.
pub trait Driver {
    /// The areas: descriptor, driver, device.
    fn areas(&self) -> (u64, u64, u64);
    fn size(&self) -> u16;
    /// LM_RING_STATE's half for a ring through which `passed` have gone.
    fn encode(&self, passed: u64) -> u16;
    /// Places that a chain takes, and how many are free.
    fn slots_needed(&self, pieces: usize, indirect: bool) -> u64;
    fn free_slots(&self) -> u64;
    /// Make a chain available; what the device will call it.
    fn add(&mut self, guest: &Guest, pieces: &[Piece], indirect: bool) -> u16;
    /// How many have been made available.
    fn made_available(&self) -> u64;
    /// Whether it has to kick for what it made available from number `before` on.
    fn needs_kick(&self, guest: &Guest, before: u64) -> bool;
    /// Take all used elements: (name, bytes written).
    fn reap(&mut self, guest: &Guest) -> Vec<(u16, u32)>;
    /// Ask for an interrupt when number `event` is used (None: for none; needs EVENT_IDX for another number than the
    /// next).
    fn set_event(&self, guest: &Guest, event: Option<u64>);

    fn config(&self, features: Features, state: RingState, restored: bool) -> RingConfig {
        let (desc, driver, device) = self.areas();
        RingConfig {
            size: u32::from(self.size()),
            desc,
            driver,
            device,
            state,
            features: features.bits(),
            restored,
        }
    }

    fn state(&self, last_avail: u64, used: u64) -> RingState {
        RingState {
            last_avail_idx: self.encode(last_avail),
            used_idx: self.encode(used),
        }
    }
}

/// Open the ring of a driver at `passed`.
pub fn open(
    guest: &Guest,
    driver: &dyn Driver,
    features: Features,
    passed: u64,
    restored: bool,
) -> AnyRing {
    let config = driver.config(features, driver.state(passed, passed), restored);
    ring::open(&config, &guest.space.lock()).expect("open")
}

/// Make so many buffers available, all at one place that the device may write.
pub fn offer(guest: &Guest, driver: &mut dyn Driver, buffers: usize) {
    let piece = Piece {
        iova: guest.allocate(64, 1),
        len: 64,
        writable: true,
    };
    (0..buffers).for_each(|_| {
        driver.add(guest, &[piece], false);
    });
}

/// One descriptor, in either layout.
pub fn descriptor(addr: u64, len: u32, third: u16, fourth: u16) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&addr.to_le_bytes());
    bytes[8..12].copy_from_slice(&len.to_le_bytes());
    bytes[12..14].copy_from_slice(&third.to_le_bytes());
    bytes[14..].copy_from_slice(&fourth.to_le_bytes());
    bytes
}
