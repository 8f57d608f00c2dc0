// SPDX-License-Identifier: Apache-2.0
//! As much of a driver of virtio over PCI (virtio 1.3, 4.1) as the bench needs over vfio-user: one split queue that
//! runs, and has nothing in it.

use std::os::unix::net::UnixStream;

use crate::error::Result;
use crate::vfio_user::{dma_map, memory_file, Region};

const FEATURE_SELECT: u64 = 0x08;
const FEATURE: u64 = 0x0c;
const STATUS: u64 = 0x14;
const QUEUE_SELECT: u64 = 0x16;
const QUEUE_SIZE: u64 = 0x18;
const QUEUE_ENABLE: u64 = 0x1c;
const QUEUE_DESC: u64 = 0x20;
const QUEUE_DRIVER: u64 = 0x28;
const QUEUE_DEVICE: u64 = 0x30;

const ACKNOWLEDGE_DRIVER: u8 = 3;
const FEATURES_OK: u8 = 8;
const DRIVER_OK: u8 = 4;
/// VIRTIO_F_VERSION_1, bit 32.
const VERSION_1: u64 = 1 << 32;
const SIZE: u16 = 256;
/// Each of the queue's three areas fits into one.
const AREA_BYTES: u64 = 4096;

/// Start this queue alone; `common` is the device's common configuration.
pub fn start_queue(stream: &mut UnixStream, common: Region, queue: u16) -> Result<()> {
    let memory = memory_file(3 * AREA_BYTES)?;
    dma_map(stream, &memory, 0, 0, 3 * AREA_BYTES)?;
    let mut write = |place: u64, value: &[u8]| common.write(stream, place, value);
    write(STATUS, &[0])?;
    write(STATUS, &[ACKNOWLEDGE_DRIVER])?;
    for half in 0..2u32 {
        write(FEATURE_SELECT, &half.to_le_bytes())?;
        write(FEATURE, &((VERSION_1 >> (32 * half)) as u32).to_le_bytes())?;
    }
    write(STATUS, &[ACKNOWLEDGE_DRIVER | FEATURES_OK])?;
    write(QUEUE_SELECT, &queue.to_le_bytes())?;
    write(QUEUE_SIZE, &SIZE.to_le_bytes())?;
    for (area, place) in [QUEUE_DESC, QUEUE_DRIVER, QUEUE_DEVICE]
        .into_iter()
        .enumerate()
    {
        write(place, &(area as u64 * AREA_BYTES).to_le_bytes())?;
    }
    write(QUEUE_ENABLE, &1u16.to_le_bytes())?;
    write(STATUS, &[ACKNOWLEDGE_DRIVER | FEATURES_OK | DRIVER_OK])
}
