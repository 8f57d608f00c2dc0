// SPDX-License-Identifier: Apache-2.0
//! What split and packed rings have in common, driver side: their areas, their buffers, what can be done with them.

use vhost::VringConfigData;

use crate::error::Result;
use crate::memory::Memory;

/// What both ring formats do.
pub trait Ring {
    /// Make up to `count` buffers that the device gave back available again; how many.
    fn post(&mut self, count: u16) -> u16;
    /// Take what the device gave back; how many buffers.
    fn reap(&mut self) -> u16;
    /// Whether the device wants a kick for what was posted last.
    fn wants_kick(&self) -> bool;
    /// Addresses as the vhost-user front end hands them over (user addresses).
    fn config(&self) -> VringConfigData;
    /// last_avail_idx of a new ring, as SET_VRING_BASE codes it.
    fn base(&self) -> u16;
}

/// Place of the buffers, one for each descriptor.
pub struct Buffers {
    /// Offset of the first.
    pub start: u64,
    /// Bytes from one to the next.
    pub stride: u64,
    /// Bytes that the device is told.
    pub bytes: u32,
    /// VIRTQ_DESC_F_WRITE, or 0.
    pub flags: u16,
}

/// Offsets of the three areas of a ring.
pub struct Areas {
    /// Descriptor area.
    pub desc: u64,
    /// Driver area.
    pub driver: u64,
    /// Device area.
    pub device: u64,
}

impl Areas {
    /// For so many descriptors.
    pub fn new(memory: &Memory, size: u16, is_packed: bool) -> Result<Self> {
        let size = usize::from(size);
        let (driver, device) = if is_packed {
            (4, 4)
        } else {
            (6 + 2 * size, 6 + 8 * size)
        };
        Ok(Self {
            desc: memory.allocate(16 * size, 4096)?,
            driver: memory.allocate(driver, 64)?,
            device: memory.allocate(device, 4096)?,
        })
    }

    /// As SET_VRING_ADDR tells them.
    pub fn config(&self, memory: &Memory, size: u16) -> VringConfigData {
        VringConfigData {
            queue_max_size: size,
            queue_size: size,
            flags: 0,
            desc_table_addr: memory.address(self.desc),
            used_ring_addr: memory.address(self.device),
            avail_ring_addr: memory.address(self.driver),
            log_addr: None,
        }
    }
}
