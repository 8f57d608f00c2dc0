// SPDX-License-Identifier: Apache-2.0
//! Descriptor chains: what both formats share. How a chain is found is the formats' own business.

use super::{RingFault, RingResult};
use crate::memory::{Memory, Range, LINE_ENTRIES};

/// Size of one descriptor, in bytes (virtio 1.3 2.7.5, 2.8.13).
pub const DESCRIPTOR_BYTES: u64 = 16;

pub(super) const NEXT: u16 = 1;
pub(super) const WRITE: u16 = 2;
pub(super) const INDIRECT: u16 = 4;

const MAX_CHAIN_BYTES: u64 = 1 << 32;

// The specification limits a chain to the queue size, Linux with an indirect table does not keep to it on small
// queues (a frame in 18 fragments on a queue of 16): refusing those would break stock guests for no gain.
const MIN_INDIRECT_LIMIT: u32 = 1024;

/// The longest chain in an indirect table that a queue of this size takes.
pub(super) fn indirect_limit(size: u16) -> u32 {
    u32::from(size).max(MIN_INDIRECT_LIMIT)
}

/// A chain that was taken from a ring: what the ring has to know to use it or to have it back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// Split: index of the chain's first descriptor. Packed: its buffer id.
    pub head: u16,
    /// Places that it takes in the ring: entries of the available ring (always 1), or descriptors of a packed ring.
    pub slots: u16,
}

/// Chains that are taken and used together.
pub const LINE_CHAINS: usize = LINE_ENTRIES;

/// A chain that is one buffer in one place of the ring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Single {
    /// What the ring calls it.
    pub head: u16,
    /// Whether it is for the device to write; else it is for it to read.
    pub is_writable: bool,
    /// Where it is.
    pub buffer: Range,
}

/// Chains of one buffer each that were taken together.
pub type Line = [Single; LINE_CHAINS];

impl Single {
    /// The device-readable buffers of the chain.
    #[inline]
    pub fn readable(&self) -> &[Range] {
        if self.is_writable {
            &[]
        } else {
            std::slice::from_ref(&self.buffer)
        }
    }

    /// As any chain that was taken.
    #[inline]
    pub fn taken(&self) -> Taken {
        Taken {
            head: self.head,
            slots: 1,
        }
    }
}

/// The chains of a line as any that were taken.
#[inline(always)]
pub(crate) fn taken_of(line: &Line) -> [Taken; LINE_CHAINS] {
    std::array::from_fn(|index| line[index].taken())
}

/// One chain of buffers, split by direction. Reused from chain to chain.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Chain {
    /// What the ring calls it.
    pub taken: Taken,
    /// The device-readable buffers, in order.
    pub readable: Vec<Range>,
    /// The device-writable buffers, in order.
    pub writable: Vec<Range>,
    /// Bytes of all device-readable buffers.
    pub readable_len: u64,
    /// Bytes of all device-writable buffers.
    pub writable_len: u64,
    /// Where it begins, for messages.
    first: u16,
}

impl Chain {
    /// Begin anew, at this descriptor.
    #[inline(always)]
    pub(super) fn begin(&mut self, first: u16) {
        self.first = first;
        self.readable.clear();
        self.writable.clear();
        self.readable_len = 0;
        self.writable_len = 0;
    }

    /// Index of its first descriptor.
    pub(super) fn first(&self) -> u16 {
        self.first
    }

    #[inline(always)]
    pub(super) fn add(&mut self, descriptor: &Descriptor) -> RingResult<()> {
        let len = u64::from(descriptor.len);
        if self.readable_len + self.writable_len + len > MAX_CHAIN_BYTES {
            return Err(self.too_long(len));
        }
        let range = Range::new(descriptor.addr, len);
        if descriptor.flags & WRITE != 0 {
            self.writable.push(range);
            self.writable_len += len;
        } else if !self.writable.is_empty() {
            return Err(self.out_of_order(descriptor));
        } else {
            self.readable.push(range);
            self.readable_len += len;
        }
        Ok(())
    }

    #[cold]
    fn too_long(&self, more: u64) -> RingFault {
        RingFault {
            kind: "chain_length",
            value: self.readable_len + self.writable_len + more,
            clause: "virtio 1.3 2.7.5.2, 2.8.18: no chain longer than 2^32 bytes in total",
            detail: format!(
                "the chain at descriptor {} is longer than 4 GiB",
                self.first
            ),
        }
    }

    #[cold]
    fn out_of_order(&self, descriptor: &Descriptor) -> RingFault {
        RingFault {
            kind: "chain_order",
            value: descriptor.addr,
            clause: "virtio 1.3 2.7.4.2, 2.8.17: device-writable elements after device-readable ones",
            detail: format!(
                "the chain at descriptor {} has a device-readable buffer after a device-writable one",
                self.first
            ),
        }
    }
}

/// One descriptor of either format: they differ in what the third field means.
#[derive(Clone, Copy, Debug)]
pub(super) struct Descriptor {
    pub(super) addr: u64,
    pub(super) len: u32,
    pub(super) flags: u16,
    /// Split: next. Packed: id.
    pub(super) link: u16,
}

impl Descriptor {
    /// Number `index` of the table at `base`, in a split layout (flags before next).
    #[inline(always)]
    pub(super) fn read_split(memory: &Memory<'_>, base: u64, index: u32) -> RingResult<Self> {
        let (addr, len, flags, link) = read(memory, base, index)?;
        Ok(Self {
            addr,
            len,
            flags,
            link,
        })
    }

    /// Number `index` of the ring or table at `base`, in a packed layout (id before flags).
    #[inline(always)]
    pub(super) fn read_packed(memory: &Memory<'_>, base: u64, index: u32) -> RingResult<Self> {
        let (addr, len, link, flags) = read(memory, base, index)?;
        Ok(Self {
            addr,
            len,
            flags,
            link,
        })
    }

    /// Whether it is a chain by itself, as most are.
    #[inline(always)]
    pub(super) fn is_whole(&self) -> bool {
        self.flags & (NEXT | INDIRECT) == 0
    }

    /// Descriptors in the indirect table that this one refers to. `clause` says where the format wants that.
    pub(super) fn table_entries(&self, first: u16, clause: &'static str) -> RingResult<u32> {
        if self.len == 0 || u64::from(self.len) % DESCRIPTOR_BYTES != 0 {
            return Err(self.bad_indirect(
                first,
                clause,
                "expected a length that is a multiple of 16, and not 0",
            ));
        }
        Ok(self.len / DESCRIPTOR_BYTES as u32)
    }

    /// The fault of an indirect descriptor in the chain that begins at `first`.
    pub(super) fn bad_indirect(&self, first: u16, clause: &'static str, reason: &str) -> RingFault {
        RingFault {
            kind: "indirect",
            value: u64::from(self.flags) << 32 | u64::from(self.len),
            clause,
            detail: format!(
                "indirect descriptor of {} bytes, flags {:#x}, in the chain at descriptor {first}: {reason}",
                self.len, self.flags
            ),
        }
    }
}

#[cold]
fn wraps_around(base: u64) -> RingFault {
    RingFault {
        kind: "dma",
        value: base,
        clause: "virtio 1.3 2.7.5.3, 2.8.7: addr is the address of the table",
        detail: format!("descriptor table at {base:#x} wraps around"),
    }
}

#[inline(always)]
fn read(memory: &Memory<'_>, base: u64, index: u32) -> RingResult<(u64, u32, u16, u16)> {
    let address = base.checked_add(u64::from(index) * DESCRIPTOR_BYTES);
    let address = address.ok_or_else(|| wraps_around(base))?;
    let raw = memory.read_array::<16>(address)?;
    let [a0, a1, a2, a3, a4, a5, a6, a7, l0, l1, l2, l3, x0, x1, y0, y1] = raw;
    Ok((
        u64::from_le_bytes([a0, a1, a2, a3, a4, a5, a6, a7]),
        u32::from_le_bytes([l0, l1, l2, l3]),
        u16::from_le_bytes([x0, x1]),
        u16::from_le_bytes([y0, y1]),
    ))
}
