// SPDX-License-Identifier: Apache-2.0
//! Guest memory: IOVA ranges on files, and the dirty log.
//!
//! The one rule: guest memory is written only through [`Memory`], and each of its stores is followed by its own mark.
//! No pointer leaves this module, so an unmarked store can't be expressed outside of it.
//!
//! ```text
//!   DmaSpace --lock()--> Memory (one batch) --> access.rs, entries.rs, line.rs, compose.rs, io.rs (stores); burst.rs (loads) --> mark.rs, deferred.rs (bits)
//!      |                    |                        |
//!      | RwLock             | span cache             +--> raw.rs (words and copies that others race with)
//!      v                    v
//!   maps: intervals.rs -> Backing -> file.rs (one mmap per file) -> sigbus.rs (files that shrink)
//!   log:  logging.rs (start, stop, look), log.rs (range, record, counters), fault.rs (marks that go wrong on purpose)
//! ```
//!
//! # Why not rust-vmm's vm-memory
//! It was looked at (0.18) and does not fit. Its collection of regions gives each region an mmap of its own and is
//! replaced as a whole at each change, while a guest behind an IOMMU makes a million maps of 4 KiB, one message each.
//! A reader of the old collection keeps its regions alive, while DMA_UNMAP must be over when it is answered. Its `iommu`
//! module puts an IOTLB in front of guest physical memory and asks on a miss, as vhost-user does; a vfio-user client maps
//! IOVAs straight to files, and there is no miss to ask about. And its bitmaps belong to regions or live in the
//! process, whereas this log lies in memory that is itself mapped at an IOVA, may be unmapped under us, and is harvested
//! by another process.

mod access;
mod burst;
mod compose;
mod deferred;
mod entries;
mod fault;
mod file;
mod intervals;
mod io;
mod last_writes;
mod line;
mod log;
mod logging;
mod mark;
mod misses;
mod places;
mod raw;
mod sigbus;
mod space;
mod transcribe;

pub use access::Memory;
pub(crate) use burst::{Burst, BurstWriter};
pub use compose::Canvas;
pub use fault::MarkFault;
pub use last_writes::LastWrite;
pub use line::{LINE_BYTES, LINE_ENTRIES};
pub use log::LogCounters;
pub use misses::Miss;
pub use places::FilePlace;
pub use space::DmaSpace;
pub use transcribe::Translation;

#[cfg(not(target_pointer_width = "64"))]
compile_error!("guest addresses are 64 bits long, and so must be ours");

/// The unit of maps and of the dirty log, whatever the host's page size.
pub const PAGE_BYTES: u64 = 1 << PAGE_SHIFT;
const PAGE_SHIFT: u32 = 12;

/// The most that is copied out of guest memory in one go: far above the longest packet (65,562 bytes).
pub const MAX_COPY_BYTES: u64 = 1 << 20;

/// Bytes of guest memory: an IOVA and a length. Nothing is known about it until it is checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Range {
    /// First address.
    pub iova: u64,
    /// Bytes.
    pub len: u64,
}

impl Range {
    /// `len` bytes from `iova` on.
    pub fn new(iova: u64, len: impl Into<u64>) -> Self {
        let len = len.into();
        Self { iova, len }
    }
}

/// One entry of a [`DmaSpace`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// First IOVA.
    pub iova: u64,
    /// Bytes.
    pub size: u64,
    /// Offset in the file, in bytes.
    pub offset: u64,
    /// Whether the device may read it.
    pub readable: bool,
    /// Whether the device may write it.
    pub writable: bool,
    /// Where this process sees it: for auditors, never to write. 0 for memory that came without a file.
    pub address: usize,
}
