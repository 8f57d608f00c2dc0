// SPDX-License-Identifier: Apache-2.0
//! The guest: memory that it writes through its own file, behind the device's back.

use std::fs::File;
use std::os::fd::FromRawFd;
use std::os::unix::fs::FileExt;

use crate::input::{Operation, Setup, MEMORY_BYTES, MEMORY_IOVA};

const DESCRIPTOR_BYTES: u64 = 16;
const FAR: u64 = 1 << 50;
const PACKED_AVAIL: u16 = 1 << 7;
const PACKED_USED: u16 = 1 << 15;

/// Guest memory, and where its driver is.
pub struct Guest {
    /// The memory.
    pub file: File,
    setup: Setup,
    /// What was in memory when the device's last step was checked.
    pub shadow: Vec<u8>,
    /// Split: avail->idx. Packed: descriptors offered.
    offered: u16,
}

impl Guest {
    /// Memory full of zeros; avail->idx is where the setup's state says.
    pub fn new(setup: &Setup) -> Self {
        let mut guest = Self {
            file: memfd(MEMORY_BYTES),
            setup: *setup,
            shadow: vec![0; MEMORY_BYTES as usize],
            offered: setup.config().state.last_avail_idx,
        };
        if !setup.is_packed() {
            guest.store_u16(setup.area(1) + 2, guest.offered);
        }
        guest
    }

    /// Do it, if it is the guest's.
    pub fn act(&mut self, operation: &Operation) -> bool {
        match *operation {
            Operation::Word { index, value } => {
                self.store_u16(MEMORY_IOVA + 2 * u64::from(index), value);
            }
            Operation::Descriptor {
                index,
                addr,
                len,
                flags,
                link,
            } => self.descriptor(index, addr, len, flags, link),
            Operation::Offer { head } if self.setup.is_packed() => self.offer_packed(head),
            Operation::Offer { head } => self.offer_split(head),
            _ => return false,
        }
        true
    }

    /// The memory as it is.
    pub fn contents(&self) -> Vec<u8> {
        let mut bytes = vec![0; MEMORY_BYTES as usize];
        self.file
            .read_exact_at(&mut bytes, 0)
            .expect("the guest's memory is a file");
        bytes
    }

    fn descriptor(&mut self, index: u8, addr: u16, len: u16, flags: u16, link: u16) {
        let place = self.setup.area(0) + DESCRIPTOR_BYTES * u64::from(index);
        let far = if addr >> 15 != 0 { FAR } else { 0 };
        let addr = MEMORY_IOVA + u64::from(addr & 0x7fff) + far;
        let (third, fourth) = if self.setup.is_packed() {
            (link, flags)
        } else {
            (flags, link)
        };
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&addr.to_le_bytes());
        bytes[8..12].copy_from_slice(&u32::from(len).to_le_bytes());
        bytes[12..14].copy_from_slice(&third.to_le_bytes());
        bytes[14..].copy_from_slice(&fourth.to_le_bytes());
        self.store(place, &bytes);
    }

    fn offer_split(&mut self, head: u8) {
        let size = u64::from(self.setup.size.max(1));
        let driver = self.setup.area(1);
        self.store_u16(
            driver + 4 + 2 * (u64::from(self.offered) % size),
            u16::from(head),
        );
        self.offered = self.offered.wrapping_add(1);
        self.store_u16(driver + 2, self.offered);
    }

    /// AVAIL is the driver's wrap counter and USED its inverse (virtio 1.3 2.8.1); the other flags stay.
    fn offer_packed(&mut self, head: u8) {
        let size = self.setup.size.max(1);
        let index = u16::from(head) % size;
        let place = self.setup.area(0) + DESCRIPTOR_BYTES * u64::from(index) + 14;
        let wrap = self.offered >> 15 != 0;
        let flags = self.load_u16(place) & !(PACKED_AVAIL | PACKED_USED);
        let bits = if wrap { PACKED_AVAIL } else { PACKED_USED };
        self.store_u16(place, flags | bits);
        if index == size - 1 {
            self.offered ^= 1 << 15;
        }
    }

    fn load_u16(&self, iova: u64) -> u16 {
        match self.offset(iova, 2) {
            Some(at) => u16::from_le_bytes([self.shadow[at], self.shadow[at + 1]]),
            None => 0,
        }
    }

    fn store_u16(&mut self, iova: u64, value: u16) {
        self.store(iova, &value.to_le_bytes());
    }

    fn store(&mut self, iova: u64, bytes: &[u8]) {
        if let Some(at) = self.offset(iova, bytes.len()) {
            self.file
                .write_all_at(bytes, at as u64)
                .expect("the guest's memory is a file");
            self.shadow[at..at + bytes.len()].copy_from_slice(bytes);
        }
    }

    fn offset(&self, iova: u64, len: usize) -> Option<usize> {
        let at = iova.checked_sub(MEMORY_IOVA)?;
        // The halves of the file lie in memory in reverse order; see Device::map.
        let half = MEMORY_BYTES / 2;
        let in_file = if at < half { at + half } else { at - half };
        let fits = at + len as u64 <= MEMORY_BYTES && (at < half) == (at + len as u64 <= half);
        fits.then_some(in_file as usize)
    }
}

/// A memfd of this many bytes.
pub fn memfd(bytes: u64) -> File {
    // SAFETY: the name is a valid C string.
    let fd = unsafe { libc::memfd_create(b"fuzz\0".as_ptr().cast(), libc::MFD_CLOEXEC) };
    assert!(fd >= 0, "memfd_create");
    // SAFETY: the fd is new and ours.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(bytes).expect("set_len");
    file
}
