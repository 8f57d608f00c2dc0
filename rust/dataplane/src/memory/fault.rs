// SPDX-License-Identifier: Apache-2.0
//! Faults of the dirty log: marks that are dropped, or go to the wrong place, on purpose and counted.
//!
//! They sit where the marks are made ([`super::mark`]): an unmarked store stays impossible to express elsewhere.

use std::sync::atomic::{AtomicU64, Ordering};

use super::log::ActiveLog;

/// A fault to install.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum MarkFault {
    /// Never mark this share (0..1) of the pages. Which ones, the seed alone decides: neither the timing of the
    /// workers nor how often a page is written changes it, so a run can be repeated, and no later mark of the same
    /// page heals what the fault did.
    Drop {
        /// The share; 0 (or not a number) drops nothing.
        rate: f64,
        /// Which pages.
        seed: u64,
    },
    /// Make no mark for a store to a ring.
    SkipRings,
    /// Set the bits of a byte most significant first.
    BitOrder,
    /// Take the log to end this many bytes early.
    End {
        /// Bytes of log.
        short_by: u64,
    },
}

impl MarkFault {
    fn slot(self) -> usize {
        match self {
            Self::Drop { .. } => 0,
            Self::SkipRings => 1,
            Self::BitOrder => 2,
            Self::End { .. } => 3,
        }
    }
}

/// What a mark is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Subject {
    /// The contents of buffers.
    Data,
    /// Used elements and indices, descriptor flags, events.
    Ring,
}

/// The faults that are installed, one of a kind, and how many marks each has spoilt.
#[derive(Debug, Default)]
pub(super) struct MarkFaults {
    installed: [Option<MarkFault>; 4],
    fired: [AtomicU64; 4],
}

impl MarkFaults {
    /// It takes the place of one of its kind.
    pub(super) fn install(&mut self, fault: MarkFault) {
        self.installed[fault.slot()] = Some(fault);
    }

    /// How many marks this kind of fault has spoilt.
    pub(super) fn fired(&self, kind: MarkFault) -> u64 {
        self.fired[kind.slot()].load(Ordering::Relaxed)
    }

    /// What becomes of a mask of marks in byte `byte` of the log.
    pub(super) fn apply(&self, log: &ActiveLog, subject: Subject, byte: u64, wanted: u8) -> u8 {
        let installed = self.installed.iter().flatten();
        installed.fold(wanted, |mask, &fault| {
            let left = spoil(fault, log, subject, byte, mask);
            let spoilt = u64::from((mask & !left).count_ones());
            self.fired[fault.slot()].fetch_add(spoilt, Ordering::Relaxed);
            left
        })
    }
}

fn spoil(fault: MarkFault, log: &ActiveLog, subject: Subject, byte: u64, mask: u8) -> u8 {
    let is_lost = match fault {
        MarkFault::BitOrder => return mask.reverse_bits(),
        MarkFault::Drop { rate, seed } => {
            return (0..8)
                .filter(|bit| mask & (1 << bit) != 0 && !drops(rate, seed, byte * 8 + bit))
                .fold(0, |kept, bit| kept | 1 << bit);
        }
        MarkFault::SkipRings => subject == Subject::Ring,
        MarkFault::End { short_by } => byte >= log.size_bytes().saturating_sub(short_by),
    };
    if is_lost {
        0
    } else {
        mask
    }
}

/// A page whose number draws less than its share of 2^64 is not marked.
fn drops(rate: f64, seed: u64, page: u64) -> bool {
    const ALL: f64 = 18_446_744_073_709_551_616.0;
    u128::from(splitmix64(seed, page)) < (rate.clamp(0.0, 1.0) * ALL) as u128
}

/// Number `index` of the SplitMix64 sequence of this seed (Steele, Lea, Flood 2014).
fn splitmix64(seed: u64, index: u64) -> u64 {
    const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut z = seed.wrapping_add(index.wrapping_add(1).wrapping_mul(GAMMA));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
