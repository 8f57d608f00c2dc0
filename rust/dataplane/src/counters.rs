// SPDX-License-Identifier: Apache-2.0
//! What a queue did since its creation: plain atomics, read without any lock.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::memory::Memory;

/// Why a packet was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drop {
    /// Transmit: shorter than its header, or the back end refused what the header says.
    BadHeader,
    /// Longer than a packet can be, or than the receive buffers are.
    TooLong,
    /// The back end could not take it.
    Backend,
    /// No receive buffer came before the back end was flushed.
    NoBuffer,
    /// Receive: the driver does not want it.
    Filtered,
    /// A packet hook dropped it.
    Hook,
}

/// Names and values of a queue's counters.
pub type Snapshot = [(&'static str, u64); 12];

/// Counters of one queue.
#[derive(Debug, Default)]
pub struct QueueCounters {
    packets: AtomicU64,
    bytes: AtomicU64,
    kicks: AtomicU64,
    interrupts: AtomicU64,
    chains: AtomicU64,
    dirty_pages: AtomicU64,
    drops: [AtomicU64; 6],
}

/// What one batch counts by itself: an atomic operation for each packet would cost as much as the ring does.
#[derive(Debug, Default)]
pub struct BatchCounters {
    packets: u64,
    bytes: u64,
    chains: u64,
}

impl BatchCounters {
    /// One packet went through, `bytes` long without its virtio-net header.
    pub fn packet(&mut self, bytes: u64) {
        self.packets += 1;
        self.bytes += bytes;
    }

    /// A chain was used.
    pub fn chain(&mut self) {
        self.chains += 1;
    }
}

impl QueueCounters {
    /// One packet went through, `bytes` long without its virtio-net header.
    pub fn packet(&self, bytes: u64) {
        self.packets.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// What a batch has counted.
    pub fn add(&self, batch: &BatchCounters) {
        let pairs = [
            (&self.packets, batch.packets),
            (&self.bytes, batch.bytes),
            (&self.chains, batch.chains),
        ];
        for (total, more) in pairs {
            if more > 0 {
                total.fetch_add(more, Ordering::Relaxed);
            }
        }
    }

    /// `count` packets were dropped.
    pub fn dropped(&self, reason: Drop, count: u64) {
        self.drops[reason as usize].fetch_add(count, Ordering::Relaxed);
    }

    /// The driver kicked `count` times.
    pub fn kicked(&self, count: u64) {
        self.kicks.fetch_add(count, Ordering::Relaxed);
    }

    /// An interrupt was due.
    pub fn interrupted(&self) {
        self.interrupts.fetch_add(1, Ordering::Relaxed);
    }

    /// A chain was used.
    pub fn chain(&self) {
        self.chains.fetch_add(1, Ordering::Relaxed);
    }

    /// The work that ends with this guard has marked pages of the dirty log. One that lies on a page with other
    /// queues' writes counts for who came first.
    pub fn dirtied(&self, memory: &Memory<'_>) {
        let pages = memory.pages_marked();
        if pages > 0 {
            self.dirty_pages.fetch_add(pages, Ordering::Relaxed);
        }
    }

    /// Names and values.
    pub fn snapshot(&self) -> Snapshot {
        let drops = |reason: Drop| self.drops[reason as usize].load(Ordering::Relaxed);
        [
            ("packets", self.packets.load(Ordering::Relaxed)),
            ("bytes", self.bytes.load(Ordering::Relaxed)),
            ("kicks", self.kicks.load(Ordering::Relaxed)),
            ("interrupts", self.interrupts.load(Ordering::Relaxed)),
            ("chains", self.chains.load(Ordering::Relaxed)),
            ("dirty_pages", self.dirty_pages.load(Ordering::Relaxed)),
            ("drops_bad_header", drops(Drop::BadHeader)),
            ("drops_too_long", drops(Drop::TooLong)),
            ("drops_backend", drops(Drop::Backend)),
            ("drops_no_buffer", drops(Drop::NoBuffer)),
            ("drops_filtered", drops(Drop::Filtered)),
            ("drops_hook", drops(Drop::Hook)),
        ]
    }

    /// One value by its name in [`Self::snapshot`].
    pub fn get(&self, name: &str) -> Option<u64> {
        let all = self.snapshot();
        all.iter()
            .find(|(key, _)| *key == name)
            .map(|(_, value)| *value)
    }
}
