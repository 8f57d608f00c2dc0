// SPDX-License-Identifier: Apache-2.0
//! Several threads: harvesting, unmapping, switching logs.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{mpsc, Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use vdpa_net_dataplane::memory::{DmaSpace, Range};

use crate::support::{contents, map_pages, memfd, PAGE};

const LOG: u64 = 1 << 44;
const PAGES: u64 = 1024;
const GENERATIONS: u64 = 300;

/// The reader's side of a file: its own mmap, as another process has it.
struct Peer {
    words: *const AtomicU64,
    count: usize,
}

// SAFETY: the words are atomics in a shared mmap that is never given back.
unsafe impl Send for Peer {}

impl Peer {
    fn new(file: &File) -> Self {
        let bytes = file.metadata().unwrap().len() as usize;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let (null, fd) = (std::ptr::null_mut(), file.as_raw_fd());
        // SAFETY: a new mmap of an open file touches nothing that exists.
        let start = unsafe { libc::mmap(null, bytes, protection, libc::MAP_SHARED, fd, 0) };
        assert_ne!(start, libc::MAP_FAILED);
        Self {
            words: start.cast(),
            count: bytes / 8,
        }
    }

    fn words(&self) -> &[AtomicU64] {
        // SAFETY: the mmap has `count` words and stays.
        unsafe { std::slice::from_raw_parts(self.words, self.count) }
    }

    /// Exchange every word of the first `count` with zero; calls `take` with each page that was set.
    fn harvest(&self, count: usize, mut take: impl FnMut(u64)) {
        for (number, word) in self.words()[..count].iter().enumerate() {
            let mut bits = word.swap(0, Ordering::AcqRel);
            while bits != 0 {
                take(number as u64 * 64 + u64::from(bits.trailing_zeros()));
                bits &= bits - 1;
            }
        }
    }
}

/// Write whole pages, every second one, each once per generation: a mark that is lost is not made up for by the
/// next write to its page. The other writer's pages share all the bytes of the log.
fn write_generations(space: &DmaSpace, first: u64, start: &Barrier, running: &AtomicUsize) {
    for generation in 1..=GENERATIONS {
        start.wait();
        let bytes = generation.to_le_bytes().repeat(PAGE as usize / 8);
        for page in (first..PAGES).step_by(2) {
            space.lock().write_from(page * PAGE, &bytes).unwrap();
        }
        running.fetch_sub(1, Ordering::Release);
    }
}

/// The reader copies a page whenever its bit was set, as a migration does: here its last word, which is stored last.
/// After each generation the copy must be complete.
#[test]
fn a_concurrent_harvest_loses_no_page() {
    let (space, ram, log) = (Arc::new(DmaSpace::new(8)), memfd(PAGES), memfd(1));
    map_pages(&space, 0, &ram, 0, PAGES);
    map_pages(&space, LOG, &log, 0, 1);
    space.start_log(LOG, LOG + PAGES / 8).unwrap();
    let (source, bits) = (Peer::new(&ram), Peer::new(&log));
    let start = Arc::new(Barrier::new(3));
    let running = Arc::new(AtomicUsize::new(0));
    let writers: Vec<_> = (0..2)
        .map(|first| {
            let (space, start) = (Arc::clone(&space), Arc::clone(&start));
            let running = Arc::clone(&running);
            thread::spawn(move || write_generations(&space, first, &start, &running))
        })
        .collect();
    let mut copy = vec![0; PAGES as usize];
    let mut lost = 0;
    let deadline = Instant::now() + Duration::from_secs(60);
    for generation in 1..=GENERATIONS {
        running.store(2, Ordering::Relaxed);
        start.wait();
        let mut last_round = false;
        while !last_round {
            assert!(Instant::now() < deadline, "a writer hangs or is dead");
            last_round = running.load(Ordering::Acquire) == 0;
            bits.harvest(PAGES as usize / 64, |page| {
                let last_word = (page as usize + 1) * (PAGE as usize / 8) - 1;
                copy[page as usize] = source.words()[last_word].load(Ordering::Relaxed);
            });
        }
        lost += copy.iter().filter(|copied| **copied != generation).count();
    }
    writers
        .into_iter()
        .for_each(|writer| writer.join().unwrap());
    assert_eq!(
        lost, 0,
        "pages that were written after their last mark was harvested"
    );
}

/// Nobody harvests: whatever is missing at the end was lost between the two writers.
#[test]
fn two_writers_that_share_the_bytes_of_a_log_lose_no_bit() {
    let (space, log) = (Arc::new(DmaSpace::new(8)), memfd(1));
    map_pages(&space, LOG, &log, 0, 1);
    space.start_log(LOG, LOG + PAGE).unwrap();
    let start = Arc::new(Barrier::new(2));
    let peer = Peer::new(&log);
    for _ in 0..20 {
        let mark = |first: u64| {
            let (space, start) = (Arc::clone(&space), Arc::clone(&start));
            thread::spawn(move || {
                let memory = space.lock();
                start.wait();
                let pages = (first..PAGE * 8).step_by(2);
                pages.for_each(|page| memory.mark(Range::new(page * PAGE, 1u64)));
            })
        };
        let writers = [mark(0), mark(1)];
        writers.into_iter().for_each(|w| w.join().unwrap());
        let mut marked = 0;
        peer.harvest(512, |_| marked += 1);
        assert_eq!(marked, PAGE * 8);
    }
}

/// The bit is set already, the reader clears it and copies the page while the writer stores and marks: the store is
/// in the copy, or the bit is set again.
#[test]
fn a_store_that_meets_a_harvest_of_its_page_is_copied_or_marked_again() {
    const ROUNDS: u16 = 60_000;
    let (space, ram, log) = (Arc::new(DmaSpace::new(8)), memfd(1), memfd(1));
    map_pages(&space, 0, &ram, 0, 1);
    map_pages(&space, LOG, &log, 0, 1);
    space.start_log(LOG, LOG + 8).unwrap();
    let round = Arc::new(AtomicU64::new(0));
    let stored = Arc::new(AtomicU64::new(0));
    let writer = {
        let (space, round, stored) = (Arc::clone(&space), Arc::clone(&round), Arc::clone(&stored));
        thread::spawn(move || {
            for number in 1..=ROUNDS {
                wait_for(&round, u64::from(number));
                space.lock().store_u16(0, number).unwrap();
                stored.store(u64::from(number), Ordering::Release);
            }
        })
    };
    let (page, bits) = (Peer::new(&ram), Peer::new(&log));
    let mut lost = 0;
    for number in 1..=u64::from(ROUNDS) {
        bits.words()[0].store(1, Ordering::SeqCst);
        round.store(number, Ordering::SeqCst);
        (0..number % 64).for_each(|_| std::hint::spin_loop());
        let mut copied = 0;
        let mut copy = |_| copied = page.words()[0].load(Ordering::Relaxed);
        bits.harvest(1, &mut copy);
        wait_for(&stored, number);
        bits.harvest(1, &mut copy);
        lost += u64::from(copied != number);
    }
    writer.join().unwrap();
    assert_eq!(lost, 0);
}

/// Spin, because a wake-up would take longer than the window that is looked for; yield where the core is shared.
fn wait_for(value: &AtomicU64, expected: u64) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while value.load(Ordering::Acquire) != expected {
        for _ in 0..200 {
            if value.load(Ordering::Acquire) == expected {
                return;
            }
            std::hint::spin_loop();
        }
        assert!(
            Instant::now() < deadline,
            "the other thread hangs or is dead"
        );
        thread::yield_now();
    }
}

#[test]
fn unmap_waits_for_the_batch_that_is_under_way() {
    let (space, ram) = (Arc::new(DmaSpace::new(8)), memfd(1));
    map_pages(&space, 0, &ram, 0, 1);
    let memory = space.lock();
    let (sender, unmapped) = mpsc::channel();
    let unmapper = {
        let space = Arc::clone(&space);
        thread::spawn(move || {
            space.unmap(0, PAGE).unwrap();
            sender.send(()).unwrap();
        })
    };
    // Nothing is ever sent while the guard is held; the time only bounds how long that is watched.
    let early = unmapped.recv_timeout(Duration::from_millis(50));
    assert_eq!(early, Err(mpsc::RecvTimeoutError::Timeout));
    memory.write_from(0, b"still mine").unwrap();
    drop(memory);
    unmapped
        .recv_timeout(Duration::from_secs(30))
        .expect("unmap goes on");
    unmapper.join().unwrap();
    assert_eq!(&contents(&ram)[..10], b"still mine");
}

#[test]
fn a_change_gets_through_while_workers_take_batch_after_batch() {
    let (space, ram) = (Arc::new(DmaSpace::new(64)), memfd(8));
    map_pages(&space, 0, &ram, 0, 8);
    let stop = Arc::new(AtomicBool::new(false));
    let workers: Vec<_> = (0..4)
        .map(|_| {
            let (space, stop) = (Arc::clone(&space), Arc::clone(&stop));
            thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let memory = space.lock();
                    (0..16).for_each(|n| memory.store_u16(n * 2, 1).unwrap());
                }
            })
        })
        .collect();
    let (sender, changed) = mpsc::channel();
    let changer = {
        let space = Arc::clone(&space);
        thread::spawn(move || {
            for n in 1..=200 {
                map_pages(&space, n * 0x10_000, &ram, 0, 1);
                space.barrier();
                space.unmap(n * 0x10_000, PAGE).unwrap();
            }
            sender.send(()).unwrap();
        })
    };
    let result = changed.recv_timeout(Duration::from_secs(60));
    stop.store(true, Ordering::Relaxed);
    workers
        .into_iter()
        .for_each(|worker| worker.join().unwrap());
    result.expect("writers are not starved");
    changer.join().unwrap();
}

/// After start_log has returned, the old log's bytes stay as they are.
#[test]
fn no_mark_reaches_the_old_log_after_a_switch() {
    let (space, ram, logs) = (Arc::new(DmaSpace::new(8)), memfd(64), memfd(2));
    map_pages(&space, 0, &ram, 0, 64);
    map_pages(&space, LOG, &logs, 0, 2);
    let place = |number: u64| LOG + number % 2 * PAGE;
    space.start_log(place(0), place(0) + 8).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let worker = {
        let (space, stop) = (Arc::clone(&space), Arc::clone(&stop));
        thread::spawn(move || {
            for round in 0u64.. {
                space.lock().store_u16(round % 64 * PAGE, 1).unwrap();
                if stop.load(Ordering::Relaxed) {
                    return;
                }
            }
        })
    };
    let peer = Peer::new(&logs);
    let deadline = Instant::now() + Duration::from_secs(60);
    for number in 1..500u64 {
        space.start_log(place(number), place(number) + 8).unwrap();
        let old = &peer.words()[(number as usize + 1) % 2 * 512];
        old.store(0, Ordering::SeqCst);
        let marks = space.log_counters().marks;
        while space.log_counters().marks < marks + 20 {
            assert!(Instant::now() < deadline, "the worker makes no marks");
            thread::yield_now();
        }
        assert_eq!(old.load(Ordering::SeqCst), 0, "switch {number}");
    }
    stop.store(true, Ordering::Relaxed);
    worker.join().unwrap();
}
