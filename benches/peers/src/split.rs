// SPDX-License-Identifier: Apache-2.0
//! A split ring, driver side. Descriptor i is buffer i for good, so that a turn touches the rings alone.

use std::rc::Rc;
use std::sync::atomic::Ordering;

use vhost::VringConfigData;

use crate::memory::Memory;
use crate::ring::{Areas, Buffers, Ring};

const IDX: u64 = 2;
const RING: u64 = 4;
const AVAIL_F_NO_INTERRUPT: u16 = 1;
const USED_F_NO_NOTIFY: u16 = 1;

#[repr(C)]
#[derive(Clone, Copy)]
struct Descriptor {
    addr: u64,
    len: u32,
    flags: u16,
    next: u16,
}

/// The ring.
pub struct SplitRing {
    memory: Rc<Memory>,
    areas: Areas,
    size: u16,
    /// Heads that are ours, the oldest first.
    free: Vec<u16>,
    avail_idx: u16,
    used_idx: u16,
}

impl SplitRing {
    /// Every descriptor is written, none is available.
    pub fn new(memory: Rc<Memory>, areas: Areas, size: u16, buffers: Buffers) -> Self {
        for index in 0..size {
            let descriptor = Descriptor {
                addr: buffers.start + u64::from(index) * buffers.stride,
                len: buffers.bytes,
                flags: buffers.flags,
                next: 0,
            };
            memory.store(areas.desc + 16 * u64::from(index), descriptor);
        }
        memory
            .u16(areas.driver)
            .store(AVAIL_F_NO_INTERRUPT, Ordering::Relaxed);
        Self {
            memory,
            areas,
            size,
            free: (0..size).collect(),
            avail_idx: 0,
            used_idx: 0,
        }
    }
}

impl Ring for SplitRing {
    fn post(&mut self, count: u16) -> u16 {
        let count = usize::from(count).min(self.free.len());
        if count == 0 {
            return 0;
        }
        for head in self.free.drain(..count) {
            let slot = u64::from(self.avail_idx % self.size);
            self.memory.store(self.areas.driver + RING + 2 * slot, head);
            self.avail_idx = self.avail_idx.wrapping_add(1);
        }
        self.memory
            .u16(self.areas.driver + IDX)
            .store(self.avail_idx, Ordering::Release);
        count as u16
    }

    fn reap(&mut self) -> u16 {
        let idx = self
            .memory
            .u16(self.areas.device + IDX)
            .load(Ordering::Acquire);
        let count = idx.wrapping_sub(self.used_idx);
        for _ in 0..count {
            let slot = u64::from(self.used_idx % self.size);
            let id: u32 = self.memory.load(self.areas.device + RING + 8 * slot);
            assert!(id < u32::from(self.size), "used element with id {id}");
            self.free.push(id as u16);
            self.used_idx = self.used_idx.wrapping_add(1);
        }
        count
    }

    fn wants_kick(&self) -> bool {
        let flags = self.memory.u16(self.areas.device).load(Ordering::Acquire);
        flags & USED_F_NO_NOTIFY == 0
    }

    fn config(&self) -> VringConfigData {
        self.areas.config(&self.memory, self.size)
    }

    fn base(&self) -> u16 {
        0
    }
}
