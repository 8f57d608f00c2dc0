// SPDX-License-Identifier: Apache-2.0
//! The device: one ring, the chains that it has taken, the dirty log.

use std::collections::VecDeque;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use vdpa_net_dataplane::memory::{DmaSpace, PAGE_BYTES};
use vdpa_net_dataplane::ring::{
    self, AnyRing, Chain, Line, Ring, RingConfig, RingResult, Single, Taken, LINE_CHAINS,
};

use crate::guest::{memfd, Guest};
use crate::input::{Operation, Setup, MEMORY_BYTES, MEMORY_IOVA};

const LOG_IOVA: u64 = 1 << 40;
const LOG_BYTES: u64 = 4096;
/// A chain that was taken from the ring, and whether the device wrote to it.
struct Popped {
    chain: Chain,
    written: bool,
}

/// What the real device has of these, on its own maps.
pub struct Device {
    space: DmaSpace,
    config: RingConfig,
    ring: Option<AnyRing>,
    popped: VecDeque<Popped>,
    log: File,
    logging: bool,
    mapped: [bool; 2],
    packed: bool,
}

impl Device {
    /// Opens the ring, if it can be.
    pub fn new(setup: &Setup, guest: &Guest) -> Self {
        let mut device = Self {
            space: DmaSpace::new(8),
            config: setup.config(),
            ring: None,
            popped: VecDeque::new(),
            log: memfd(LOG_BYTES),
            logging: false,
            mapped: [false; 2],
            packed: setup.is_packed(),
        };
        device.remap(0, guest);
        device.remap(1, guest);
        let log = device.log.as_fd();
        device
            .space
            .map(LOG_IOVA, LOG_BYTES, log, 0, true, true)
            .expect("the log can be mapped");
        device.open();
        device
    }

    /// One step. A ring that reports a fault is not used any more, as the workers do it.
    pub fn act(&mut self, operation: &Operation, guest: &Guest) {
        match *operation {
            Operation::Log { on } => self.log(on, guest),
            Operation::Remap { second } => self.remap(usize::from(second), guest),
            Operation::Move => self.go_on_elsewhere(),
            _ => {
                if let Some(mut ring) = self.ring.take() {
                    if self.step(&mut *ring, operation).is_ok() {
                        self.ring = Some(ring);
                    } else {
                        self.popped.clear();
                    }
                }
            }
        }
    }

    /// Every page that has changed since the last check was marked, if the device logs.
    pub fn check_marks(&self, guest: &mut Guest) {
        let now = guest.contents();
        if self.logging {
            let mut bits = vec![0; LOG_BYTES as usize];
            self.log
                .read_exact_at(&mut bits, 0)
                .expect("the log is a file");
            for (in_file, page) in pages_in_memory_order() {
                let range = in_file as usize..(in_file + PAGE_BYTES) as usize;
                let marked = bits[(page / 8) as usize] >> (page % 8) & 1 == 1;
                assert!(
                    marked || now[range.clone()] == guest.shadow[range],
                    "page {page:#x} was written and not marked"
                );
            }
        }
        guest.shadow = now;
    }

    fn open(&mut self) {
        let memory = self.space.lock();
        self.ring = ring::open(&self.config, &memory).ok();
        self.popped.clear();
        if let Some(ring) = &self.ring {
            assert_eq!(
                ring.state(),
                self.config.state,
                "it starts where it was told to"
            );
            assert_eq!(u32::from(ring.size()), self.config.size);
            let _ = ring.check_restored(&memory);
        }
    }

    fn step(&mut self, ring: &mut dyn Ring, operation: &Operation) -> RingResult<()> {
        let memory = self.space.lock();
        match *operation {
            Operation::Pop => {
                let mut chain = Chain::default();
                if ring.pop(&memory, &mut chain)? {
                    check_chain(&chain, ring.size(), self.packed);
                    self.popped.push_back(Popped {
                        chain,
                        written: false,
                    });
                }
            }
            Operation::PopLine => {
                let mut line = Line::default();
                let is_taken = ring.pop_line(&memory, &mut line);
                for single in line.iter().filter(|_| is_taken) {
                    let chain = chain_of(single);
                    check_chain(&chain, ring.size(), self.packed);
                    self.popped.push_back(Popped {
                        chain,
                        written: false,
                    });
                }
            }
            Operation::UseLine { len } => {
                if let Some(line) = oldest(&self.popped) {
                    self.popped.drain(..LINE_CHAINS);
                    ring.push_line(&memory, &line, [u32::from(len), 1, 0, 2])?;
                }
            }
            Operation::Use { len } => {
                if let Some(popped) = self.popped.pop_front() {
                    ring.push_used(&memory, popped.chain.taken, u32::from(len))?;
                }
            }
            Operation::Fill { len } => {
                if let Some(popped) = self.popped.front_mut() {
                    popped.written = true;
                    let data = vec![0xa5; usize::from(len)];
                    if let Ok(written) = memory.scatter(&popped.chain.writable, &data) {
                        let room = popped.chain.writable_len.min(u64::from(len));
                        assert_eq!(written as u64, room, "all that there is room for");
                    }
                }
            }
            Operation::Publish => drop(ring.publish(&memory)?),
            Operation::Unpop => {
                hand_back(&mut self.popped, ring);
            }
            Operation::Kicks { on: true } => drop(ring.enable_kicks(&memory)?),
            Operation::Kicks { on: false } => ring.disable_kicks(&memory)?,
            Operation::Available => {
                let offered = ring.available(&memory, u16::MAX)?;
                // The two may differ: a driver can take back what it had offered.
                ring.has_available(&memory)?;
                assert!(offered <= ring.size(), "{offered} of {}", ring.size());
            }
            _ => {}
        }
        Ok(())
    }

    /// As a migration does it: untouched chains are handed back, the others used, all of it published.
    fn go_on_elsewhere(&mut self) {
        let Some(mut ring) = self.ring.take() else {
            return self.open();
        };
        let memory = self.space.lock();
        while hand_back(&mut self.popped, &mut *ring) {}
        let mut stopped = Ok(());
        for popped in self.popped.drain(..) {
            stopped = stopped.and_then(|()| ring.push_used(&memory, popped.chain.taken, 0));
        }
        let published = stopped.and_then(|()| ring.publish(&memory));
        drop(memory);
        if published.is_ok() {
            self.config.state = ring.state();
            self.config.restored = true;
            self.open();
        }
    }

    fn log(&mut self, on: bool, guest: &Guest) {
        if on {
            self.log
                .write_all_at(&[0; LOG_BYTES as usize], 0)
                .expect("the log is a file");
            self.logging = self.space.start_log(LOG_IOVA, LOG_IOVA + LOG_BYTES).is_ok();
            assert_eq!(
                guest.contents(),
                guest.shadow,
                "nothing was written meanwhile"
            );
        } else {
            self.space.stop_log();
            self.logging = false;
        }
    }

    /// The halves of the file lie in memory in reverse order, so that what spans them is not in one piece.
    fn remap(&mut self, which: usize, guest: &Guest) {
        let half = MEMORY_BYTES / 2;
        let iova = MEMORY_IOVA + half * which as u64;
        let offset = half * (1 - which as u64);
        let done = if self.mapped[which] {
            self.space.unmap(iova, half)
        } else {
            self.space
                .map(iova, half, guest.file.as_fd(), offset, true, true)
        };
        done.expect("a map that was, or was not");
        self.mapped[which] = !self.mapped[which];
    }
}

fn chain_of(single: &Single) -> Chain {
    let (buffers, len) = (vec![single.buffer], single.buffer.len);
    let mut chain = Chain::default();
    chain.taken = single.taken();
    if single.is_writable {
        (chain.writable, chain.writable_len) = (buffers, len);
    } else {
        (chain.readable, chain.readable_len) = (buffers, len);
    }
    chain
}

/// The oldest chains, as many as can be used at once.
fn oldest(popped: &VecDeque<Popped>) -> Option<[Taken; LINE_CHAINS]> {
    let oldest = popped.iter().take(LINE_CHAINS);
    let taken: Vec<Taken> = oldest.map(|popped| popped.chain.taken).collect();
    taken.try_into().ok()
}

/// Hand the newest chain back, which is allowed as long as nothing was written to it.
fn hand_back(popped: &mut VecDeque<Popped>, ring: &mut dyn Ring) -> bool {
    match popped.pop_back() {
        Some(newest) if newest.written => {
            popped.push_back(newest);
            false
        }
        Some(newest) => {
            ring.unpop(newest.chain.taken);
            true
        }
        None => false,
    }
}

/// What a ring says of a chain: places that are in it, and lengths that are those of its buffers.
fn check_chain(chain: &Chain, size: u16, packed: bool) {
    let taken = chain.taken;
    assert!(packed || taken.head < size, "head {} of {size}", taken.head);
    assert!(
        (1..=size).contains(&taken.slots),
        "{} places of {size}",
        taken.slots
    );
    for (ranges, len) in [
        (&chain.readable, chain.readable_len),
        (&chain.writable, chain.writable_len),
    ] {
        assert_eq!(ranges.iter().map(|range| range.len).sum::<u64>(), len);
    }
    assert!(chain.readable.len() + chain.writable.len() <= usize::from(size).max(1024));
}

/// (offset in the file, page number as the log counts) of each page of guest memory.
fn pages_in_memory_order() -> impl Iterator<Item = (u64, u64)> {
    let half = MEMORY_BYTES / 2;
    (0..MEMORY_BYTES / PAGE_BYTES).map(move |page| {
        let at = page * PAGE_BYTES;
        let in_file = if at < half { at + half } else { at - half };
        (in_file, (MEMORY_IOVA + at) / PAGE_BYTES)
    })
}
