// SPDX-License-Identifier: Apache-2.0
//! Maps of single pages over vfio-user and their unmaps, as a VMM in C makes them for a guest behind an IOMMU.

use std::os::unix::net::UnixStream;
use std::time::Instant;

use serde_json::{json, Value};

use crate::arguments::Arguments;
use crate::error::Result;
use crate::vfio_user::{connect, dma_map, memory_file, request};

const COMMAND_DMA_UNMAP: u16 = 3;
const UNMAP_BYTES: u32 = 24;
const PAGE_BYTES: u64 = 4096;

/// Map `--count` pages of one file, then unmap each; microseconds of a map and of an unmap.
pub fn run(arguments: &mut Arguments) -> Result<Value> {
    let count: u64 = arguments.number("count")?;
    let socket = arguments.text("socket")?;
    // Every sample of the bench brings it; here the count is what counts.
    let _: f64 = arguments.number_or("seconds", 0.0)?;
    arguments.end()?;
    let memory = memory_file(count * PAGE_BYTES)?;
    let mut stream = connect(&socket)?;
    let started = Instant::now();
    for page in 0..count {
        dma_map(
            &mut stream,
            &memory,
            page * PAGE_BYTES,
            iova(page),
            PAGE_BYTES,
        )?;
    }
    let mapped_us = started.elapsed().as_secs_f64() * 1e6;
    let started = Instant::now();
    for page in 0..count {
        unmap(&mut stream, page)?;
    }
    let unmapped_us = started.elapsed().as_secs_f64() * 1e6;
    Ok(json!({
        "map_us": mapped_us / count as f64,
        "unmap_us": unmapped_us / count as f64,
    }))
}

/// Neighbours in the file are not neighbours in the address space: nothing can be joined.
fn iova(page: u64) -> u64 {
    2 * page * PAGE_BYTES
}

fn unmap(stream: &mut UnixStream, page: u64) -> Result<()> {
    let mut payload = [0u8; UNMAP_BYTES as usize];
    payload[..4].copy_from_slice(&UNMAP_BYTES.to_le_bytes());
    payload[8..16].copy_from_slice(&iova(page).to_le_bytes());
    payload[16..].copy_from_slice(&PAGE_BYTES.to_le_bytes());
    request(stream, page as u16, COMMAND_DMA_UNMAP, &payload, None)
}
