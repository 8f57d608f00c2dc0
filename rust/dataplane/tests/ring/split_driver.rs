// SPDX-License-Identifier: Apache-2.0
//! A driver of split rings (virtio 1.3 2.7).

use std::collections::HashMap;

use crate::support::{descriptor, Driver, Guest, Piece, INDIRECT, NEXT, WRITE};

pub struct SplitDriver {
    size: u16,
    desc: u64,
    driver: u64,
    device: u64,
    event_idx: bool,
    tables: u64,
    avail: u64,
    used: u64,
    free: Vec<u16>,
    owned: HashMap<u16, Vec<u16>>,
}

const TABLE_DESCRIPTORS: u64 = 16;
/// Indirect tables, used in turn: no test has as many under way.
const TABLES: u64 = 256;

impl SplitDriver {
    /// A ring through which `passed` entries have gone.
    pub fn new(guest: &Guest, size: u16, event_idx: bool, passed: u64) -> Self {
        let entries = u64::from(size);
        let driver = Self {
            size,
            desc: guest.allocate(16 * entries, 16),
            driver: guest.allocate(6 + 2 * entries, 2),
            device: guest.allocate(6 + 8 * entries, 4),
            event_idx,
            tables: guest.allocate(16 * TABLE_DESCRIPTORS * entries.min(TABLES), 16),
            avail: passed,
            used: passed,
            free: (0..size).collect(),
            owned: HashMap::new(),
        };
        guest.set_u16(driver.driver + 2, passed as u16);
        guest.set_u16(driver.device + 2, passed as u16);
        driver
    }

    fn write_chain(&self, guest: &Guest, table: u64, slots: &[u16], pieces: &[Piece]) {
        for (place, (slot, piece)) in slots.iter().zip(pieces).enumerate() {
            let next = slots.get(place + 1);
            let flags =
                if piece.writable { WRITE } else { 0 } | if next.is_some() { NEXT } else { 0 };
            let bytes = descriptor(piece.iova, piece.len, flags, next.copied().unwrap_or(0));
            guest.write(table + 16 * u64::from(*slot), &bytes);
        }
    }

    fn entry(&self, number: u64) -> u64 {
        number % u64::from(self.size)
    }
}

impl Driver for SplitDriver {
    fn areas(&self) -> (u64, u64, u64) {
        (self.desc, self.driver, self.device)
    }

    fn size(&self) -> u16 {
        self.size
    }

    fn encode(&self, passed: u64) -> u16 {
        passed as u16
    }

    fn slots_needed(&self, pieces: usize, indirect: bool) -> u64 {
        if indirect {
            1
        } else {
            pieces as u64
        }
    }

    fn free_slots(&self) -> u64 {
        self.free.len() as u64
    }

    fn add(&mut self, guest: &Guest, pieces: &[Piece], indirect: bool) -> u16 {
        let needed = self.slots_needed(pieces.len(), indirect) as usize;
        let slots: Vec<u16> = self.free.drain(..needed).collect();
        let head = slots[0];
        if indirect {
            let table = self.tables + 16 * TABLE_DESCRIPTORS * (u64::from(head) % TABLES);
            let inner: Vec<u16> = (0..pieces.len() as u16).collect();
            self.write_chain(guest, table, &inner, pieces);
            let bytes = descriptor(table, 16 * pieces.len() as u32, INDIRECT, 0);
            guest.write(self.desc + 16 * u64::from(head), &bytes);
        } else {
            self.write_chain(guest, self.desc, &slots, pieces);
        }
        guest.set_u16(self.driver + 4 + 2 * self.entry(self.avail), head);
        self.avail += 1;
        guest.set_u16(self.driver + 2, self.avail as u16);
        self.owned.insert(head, slots);
        head
    }

    fn made_available(&self) -> u64 {
        self.avail
    }

    fn needs_kick(&self, guest: &Guest, before: u64) -> bool {
        if !self.event_idx {
            return guest.u16(self.device) & 1 == 0;
        }
        let event = guest.u16(self.device + 4 + 8 * u64::from(self.size));
        (before..self.avail).any(|number| number as u16 == event)
    }

    fn reap(&mut self, guest: &Guest) -> Vec<(u16, u32)> {
        let mut taken = Vec::new();
        while self.used as u16 != guest.u16(self.device + 2) {
            let place = self.device + 4 + 8 * self.entry(self.used);
            let head = u32::from_le_bytes(guest.read(place)) as u16;
            let len = u32::from_le_bytes(guest.read(place + 4));
            let slots = self.owned.remove(&head).expect("a head that is ours");
            self.free.extend(slots);
            self.used += 1;
            taken.push((head, len));
        }
        taken
    }

    fn set_event(&self, guest: &Guest, event: Option<u64>) {
        if self.event_idx {
            let event = event.unwrap_or(self.used.wrapping_sub(1));
            guest.set_u16(self.driver + 4 + 2 * u64::from(self.size), event as u16);
        } else {
            guest.set_u16(self.driver, u16::from(event.is_none()));
        }
    }
}
