// SPDX-License-Identifier: Apache-2.0
//! A driver of packed rings (virtio 1.3 2.8).

use std::collections::HashMap;

use crate::support::{descriptor, Driver, Guest, Piece, INDIRECT, NEXT, WRITE};

pub const AVAIL: u16 = 1 << 7;
pub const USED: u16 = 1 << 15;
const DISABLE: u16 = 1;
const DESC: u16 = 2;
const TABLE_DESCRIPTORS: u64 = 16;
/// Indirect tables, used in turn: no test has as many under way.
const TABLES: u64 = 256;

pub struct PackedDriver {
    size: u16,
    pub desc: u64,
    driver: u64,
    device: u64,
    event_idx: bool,
    tables: u64,
    avail: u64,
    used: u64,
    free_ids: Vec<u16>,
    slots: HashMap<u16, u64>,
}

impl PackedDriver {
    /// A ring through which `passed` descriptors have gone.
    pub fn new(guest: &Guest, size: u16, event_idx: bool, passed: u64) -> Self {
        let entries = u64::from(size);
        let driver = Self {
            size,
            desc: guest.allocate(16 * entries, 16),
            driver: guest.allocate(4, 4),
            device: guest.allocate(4, 4),
            event_idx,
            tables: guest.allocate(16 * TABLE_DESCRIPTORS * entries.min(TABLES), 16),
            avail: passed,
            used: passed,
            // Ids are the driver's own business: these have nothing to do with places in the ring.
            free_ids: (0..size)
                .map(|number| 0xff00u16.wrapping_sub(number.wrapping_mul(7)))
                .collect(),
            slots: HashMap::new(),
        };
        // Each descriptor was used last in this lap or in the one before.
        for offset in 0..entries {
            let lap = passed / entries + u64::from(offset < passed % entries);
            let flags = if lap % 2 == 1 { AVAIL | USED } else { 0 };
            guest.set_u16(driver.desc + 16 * offset + 14, flags);
        }
        driver
    }

    fn wrap(&self, number: u64) -> bool {
        number / u64::from(self.size) % 2 == 0
    }

    pub fn place(&self, number: u64) -> u64 {
        self.desc + 16 * (number % u64::from(self.size))
    }

    pub fn available_flags(&self, number: u64) -> u16 {
        if self.wrap(number) {
            AVAIL
        } else {
            USED
        }
    }

    fn is_used(&self, guest: &Guest, number: u64) -> bool {
        let flags = guest.u16(self.place(number) + 14);
        let both = if self.wrap(number) { AVAIL | USED } else { 0 };
        flags & (AVAIL | USED) == both
    }
}

impl Driver for PackedDriver {
    fn areas(&self) -> (u64, u64, u64) {
        (self.desc, self.driver, self.device)
    }

    fn size(&self) -> u16 {
        self.size
    }

    fn encode(&self, passed: u64) -> u16 {
        (passed % u64::from(self.size)) as u16 | u16::from(self.wrap(passed)) << 15
    }

    fn slots_needed(&self, pieces: usize, indirect: bool) -> u64 {
        if indirect {
            1
        } else {
            pieces as u64
        }
    }

    fn free_slots(&self) -> u64 {
        u64::from(self.size) - (self.avail - self.used)
    }

    fn add(&mut self, guest: &Guest, pieces: &[Piece], indirect: bool) -> u16 {
        let id = self.free_ids.remove(0);
        let table =
            self.tables + 16 * TABLE_DESCRIPTORS * (self.avail % u64::from(self.size).min(TABLES));
        if indirect {
            for (index, piece) in pieces.iter().enumerate() {
                let flags = if piece.writable { WRITE } else { 0 };
                // Ids and the other flags are reserved and ignored here (2.8.7).
                let bytes = descriptor(piece.iova, piece.len, 0xdead, flags | NEXT);
                guest.write(table + 16 * index as u64, &bytes);
            }
        }
        let needed = self.slots_needed(pieces.len(), indirect);
        for at in (0..needed).rev() {
            let last = at + 1 == needed;
            let flags = self.available_flags(self.avail + at) | if last { 0 } else { NEXT };
            let bytes = if indirect {
                descriptor(table, 16 * pieces.len() as u32, id, flags | INDIRECT)
            } else {
                let piece = pieces[at as usize];
                let flags = flags | if piece.writable { WRITE } else { 0 };
                // The id counts in the last descriptor only (2.8.6).
                let id = if last { id } else { !id };
                descriptor(piece.iova, piece.len, id, flags)
            };
            guest.write(self.place(self.avail + at), &bytes);
        }
        self.avail += needed;
        self.slots.insert(id, needed);
        id
    }

    fn made_available(&self) -> u64 {
        self.avail
    }

    fn needs_kick(&self, guest: &Guest, before: u64) -> bool {
        match guest.u16(self.device + 2) & 3 {
            DISABLE => false,
            DESC if self.event_idx => {
                let event = guest.u16(self.device);
                (before..self.avail).any(|number| self.encode(number) == event)
            }
            _ => true,
        }
    }

    fn reap(&mut self, guest: &Guest) -> Vec<(u16, u32)> {
        let mut taken = Vec::new();
        while self.used < self.avail && self.is_used(guest, self.used) {
            let place = self.place(self.used);
            let len = u32::from_le_bytes(guest.read(place + 8));
            let id = guest.u16(place + 12);
            self.used += self.slots.remove(&id).expect("an id that is ours");
            self.free_ids.push(id);
            taken.push((id, len));
        }
        taken
    }

    fn set_event(&self, guest: &Guest, event: Option<u64>) {
        let (place, flags) = match event {
            None => (0, DISABLE),
            Some(number) if self.event_idx => (self.encode(number), DESC),
            Some(_) => (0, 0),
        };
        guest.set_u16(self.driver, place);
        guest.set_u16(self.driver + 2, flags);
    }
}
