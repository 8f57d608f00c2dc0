// SPDX-License-Identifier: Apache-2.0
//! A packed ring, driver side (virtio 1.3, 2.8). One descriptor a buffer; the buffer id is the buffer's number.

use std::rc::Rc;
use std::sync::atomic::Ordering;

use vhost::VringConfigData;

use crate::memory::Memory;
use crate::ring::{Areas, Buffers, Ring};

const AVAIL: u16 = 1 << 7;
const USED: u16 = 1 << 15;
const RING_EVENT_FLAGS_DISABLE: u16 = 1;
const ID: u64 = 12;
const FLAGS: u64 = 14;
const WRAP: u16 = 1 << 15;

/// The ring.
pub struct PackedRing {
    memory: Rc<Memory>,
    areas: Areas,
    size: u16,
    buffers: Buffers,
    free: Vec<u16>,
    next_avail: u16,
    avail_wrap: bool,
    next_used: u16,
    used_wrap: bool,
}

impl PackedRing {
    /// Nothing is available.
    pub fn new(memory: Rc<Memory>, areas: Areas, size: u16, buffers: Buffers) -> Self {
        memory
            .u16(areas.driver + 2)
            .store(RING_EVENT_FLAGS_DISABLE, Ordering::Relaxed);
        Self {
            memory,
            areas,
            size,
            buffers,
            free: (0..size).collect(),
            next_avail: 0,
            avail_wrap: true,
            next_used: 0,
            used_wrap: true,
        }
    }

    fn slot(&self, index: u16) -> u64 {
        self.areas.desc + 16 * u64::from(index)
    }

    fn is_used(&self) -> bool {
        let flags = self
            .memory
            .u16(self.slot(self.next_used) + FLAGS)
            .load(Ordering::Acquire);
        (flags & AVAIL != 0) == self.used_wrap && (flags & USED != 0) == self.used_wrap
    }
}

impl Ring for PackedRing {
    fn post(&mut self, count: u16) -> u16 {
        let count = usize::from(count).min(self.free.len());
        for id in self.free.drain(..count) {
            let slot = self.areas.desc + 16 * u64::from(self.next_avail);
            let address = self.buffers.start + u64::from(id) * self.buffers.stride;
            self.memory.store(slot, address);
            self.memory.store(slot + 8, self.buffers.bytes);
            self.memory.store(slot + ID, id);
            let available = if self.avail_wrap { AVAIL } else { USED };
            self.memory
                .u16(slot + FLAGS)
                .store(self.buffers.flags | available, Ordering::Release);
            self.next_avail += 1;
            if self.next_avail == self.size {
                self.next_avail = 0;
                self.avail_wrap = !self.avail_wrap;
            }
        }
        count as u16
    }

    fn reap(&mut self) -> u16 {
        let mut count = 0;
        while self.free.len() < usize::from(self.size) && self.is_used() {
            let id: u16 = self.memory.load(self.slot(self.next_used) + ID);
            assert!(id < self.size, "used descriptor with id {id}");
            self.free.push(id);
            count += 1;
            self.next_used += 1;
            if self.next_used == self.size {
                self.next_used = 0;
                self.used_wrap = !self.used_wrap;
            }
        }
        count
    }

    fn wants_kick(&self) -> bool {
        let flags = self
            .memory
            .u16(self.areas.device + 2)
            .load(Ordering::Acquire);
        flags & 3 != RING_EVENT_FLAGS_DISABLE
    }

    fn config(&self) -> VringConfigData {
        self.areas.config(&self.memory, self.size)
    }

    fn base(&self) -> u16 {
        WRAP
    }
}
