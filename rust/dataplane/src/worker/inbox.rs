// SPDX-License-Identifier: Apache-2.0
//! What a pair has taken from its port and the driver has not got yet.

use std::sync::Arc;

use crate::backend::Slots;
use crate::filter::ReceiveFilter;
use crate::memory::Range;
use crate::ring::{Chain, Line, Taken, F_GUEST_CSUM, LINE_CHAINS};

/// The packets that were read ahead, and the working lists of a delivery.
#[derive(Debug)]
pub(crate) struct Inbox {
    pub(super) ahead: Slots,
    /// Whether the oldest packet is known to be wanted.
    pub(super) is_wanted: bool,
    /// The chains that were taken, and their lengths.
    pub(super) used: Vec<(Taken, u64)>,
    pub(super) ranges: Vec<Range>,
    /// Chains that were taken at once.
    pub(super) line: Line,
    /// Bytes of all chains that were taken.
    pub(super) room: u64,
    pub(super) filter: Arc<ReceiveFilter>,
    /// Whether the driver wants checksums that are there.
    pub(super) completes_checksums: bool,
    /// Whether packets may go straight to the driver.
    pub(super) is_direct: bool,
    /// Bytes of the last packet.
    pub(super) expected: u64,
    /// Whether a packet hook has seen the oldest packet.
    pub(super) is_hooked: bool,
    /// Changes when the oldest packet goes away.
    epoch: u64,
}

impl Inbox {
    pub(super) fn new() -> Self {
        Self {
            ahead: Slots::default(),
            is_wanted: false,
            used: Vec::new(),
            ranges: Vec::new(),
            line: Line::default(),
            room: 0,
            filter: Arc::default(),
            completes_checksums: false,
            is_direct: true,
            expected: 0,
            is_hooked: false,
            epoch: 0,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.ahead.count() == 0
    }

    /// Bytes of the oldest packet, if it is known to be wanted.
    pub(super) fn pending(&self) -> Option<usize> {
        self.ahead.first_len().filter(|_| self.is_wanted)
    }

    /// The first slot holds a packet of `len` bytes that is wanted.
    pub(super) fn keep(&mut self, len: usize) {
        self.ahead.set_first_len(len);
        self.is_wanted = true;
    }

    /// The oldest packet is gone.
    pub(super) fn remove(&mut self) {
        self.ahead.remove_first();
        self.forget();
    }

    /// Whether there are enough packets for a line of chains, none of which anybody has looked at.
    #[inline]
    pub(super) fn holds_line(&self) -> bool {
        self.ahead.count() >= LINE_CHAINS && !self.is_wanted
    }

    /// The packet that was the oldest is not.
    pub(super) fn forget(&mut self) {
        self.epoch += 1;
        self.is_wanted = false;
        self.is_hooked = false;
    }

    /// For a driver that negotiated `features`.
    pub(super) fn set_features(&mut self, features: u64) {
        self.completes_checksums = features & F_GUEST_CSUM == 0;
        self.is_direct = true;
    }

    /// No chain is taken.
    pub(super) fn begin(&mut self) {
        self.used.clear();
        self.ranges.clear();
        self.room = 0;
    }

    /// This chain was taken.
    pub(super) fn add(&mut self, chain: &Chain) {
        self.ranges.extend_from_slice(&chain.writable);
        self.used.push((chain.taken, chain.writable_len));
        self.room += chain.writable_len;
    }

    /// From the next packet on. One that waits for buffers came while the old filter held.
    pub(super) fn set_filter(&mut self, filter: Arc<ReceiveFilter>) {
        self.filter = filter;
    }

    /// Drop the packets that were read ahead; how many that were.
    pub(super) fn clear(&mut self) -> u64 {
        let count = self.ahead.count();
        self.ahead.clear();
        self.forget();
        count as u64
    }

    /// The oldest packet, for a hook, and what [`Self::replace`] wants to know again.
    pub(super) fn copy(&mut self) -> (u64, Vec<u8>) {
        let len = self.pending().unwrap_or(0);
        (self.epoch, self.ahead.first()[..len].to_vec())
    }

    /// Put what a hook has made of the packet in its place; None: it dropped it.
    pub(super) fn replace(&mut self, epoch: u64, packet: Option<&[u8]>) -> Replaced {
        if epoch != self.epoch {
            return Replaced::Gone;
        }
        let Some(packet) = packet else {
            self.remove();
            return Replaced::Dropped;
        };
        self.ahead.first()[..packet.len()].copy_from_slice(packet);
        self.keep(packet.len());
        self.is_hooked = true;
        Replaced::Kept
    }
}

/// What became of a packet that a hook has looked at.
pub(super) enum Replaced {
    /// It waits for buffers.
    Kept,
    Dropped,
    /// It was flushed, and counted, while the hook looked at it.
    Gone,
}
