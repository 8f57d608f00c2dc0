// SPDX-License-Identifier: Apache-2.0
//! Descriptor chains: the walk through the descriptor table and its indirect tables.

use super::{RingFault, RingResult};
use crate::memory::{Memory, Range};

/// Size of one descriptor, in bytes (virtio 1.3 2.7.5).
pub const DESCRIPTOR_BYTES: u64 = 16;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

const MAX_CHAIN_BYTES: u64 = 1 << 32;

// The specification limits a chain to the queue size, Linux with an indirect table does not keep to it on small
// queues (a frame in 18 fragments on a queue of 16): refusing those would break stock guests for no gain.
const MIN_INDIRECT_LIMIT: u32 = 1024;

/// One chain of buffers, split by direction. Reused from chain to chain.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Chain {
    /// Index of its first descriptor.
    pub head: u16,
    /// The device-readable buffers, in order.
    pub readable: Vec<Range>,
    /// The device-writable buffers, in order.
    pub writable: Vec<Range>,
    /// Bytes of all device-readable buffers.
    pub readable_len: u64,
    /// Bytes of all device-writable buffers.
    pub writable_len: u64,
}

impl Chain {
    fn clear(&mut self, head: u16) {
        self.head = head;
        self.readable.clear();
        self.writable.clear();
        self.readable_len = 0;
        self.writable_len = 0;
    }

    fn add(&mut self, descriptor: &Descriptor) -> RingResult<()> {
        let len = u64::from(descriptor.len);
        if self.readable_len + self.writable_len + len > MAX_CHAIN_BYTES {
            return Err(RingFault {
                kind: "chain_length",
                value: self.readable_len + self.writable_len + len,
                clause: "virtio 1.3 2.7.5.2: no chain longer than 2^32 bytes in total",
                detail: format!("the chain at head {} is longer than 4 GiB", self.head),
            });
        }
        let range = Range {
            iova: descriptor.addr,
            len,
        };
        if descriptor.flags & WRITE != 0 {
            self.writable.push(range);
            self.writable_len += len;
        } else if !self.writable.is_empty() {
            return Err(RingFault {
                kind: "chain_order",
                value: descriptor.addr,
                clause: "virtio 1.3 2.7.4.2: device-writable elements after device-readable ones",
                detail: format!(
                    "the chain at head {} has a device-readable buffer after a device-writable one",
                    self.head
                ),
            });
        } else {
            self.readable.push(range);
            self.readable_len += len;
        }
        Ok(())
    }
}

struct Descriptor {
    addr: u64,
    len: u32,
    flags: u16,
    next: u16,
}

impl From<[u8; 16]> for Descriptor {
    fn from(raw: [u8; 16]) -> Self {
        let [a0, a1, a2, a3, a4, a5, a6, a7, l0, l1, l2, l3, f0, f1, n0, n1] = raw;
        Self {
            addr: u64::from_le_bytes([a0, a1, a2, a3, a4, a5, a6, a7]),
            len: u32::from_le_bytes([l0, l1, l2, l3]),
            flags: u16::from_le_bytes([f0, f1]),
            next: u16::from_le_bytes([n0, n1]),
        }
    }
}

/// A descriptor table, and how far a walk through it may go.
pub(super) struct Table {
    base: u64,
    entries: u32,
    steps_left: u32,
    is_indirect: bool,
}

impl Table {
    /// The table of a queue.
    pub(super) fn of_queue(base: u64, size: u16) -> Self {
        Self {
            base,
            entries: u32::from(size),
            steps_left: u32::from(size),
            is_indirect: false,
        }
    }

    fn indirect(&self, descriptor: &Descriptor, head: u16) -> RingResult<Self> {
        let fault = |clause, reason: &str| {
            RingFault {
            kind: "indirect",
            value: u64::from(descriptor.flags) << 32 | u64::from(descriptor.len),
            clause,
            detail: format!(
                "indirect descriptor of {} bytes, flags {:#x}, in the chain at head {head}: {reason}",
                descriptor.len, descriptor.flags
            ),
        }
        };
        const DRIVER: &str = "virtio 1.3 2.7.5.3.1: one indirect table per chain, last in it";
        if self.is_indirect {
            return Err(fault(DRIVER, "it lies in an indirect table itself"));
        }
        if descriptor.flags & NEXT != 0 {
            return Err(fault(DRIVER, "NEXT is set too"));
        }
        if descriptor.len == 0 || u64::from(descriptor.len) % DESCRIPTOR_BYTES != 0 {
            return Err(fault(
                "virtio 1.3 2.7.5.3: the table has len / 16 descriptors",
                "expected a multiple of 16, and not 0",
            ));
        }
        Ok(Self {
            base: descriptor.addr,
            entries: descriptor.len / DESCRIPTOR_BYTES as u32,
            steps_left: self.entries.max(MIN_INDIRECT_LIMIT),
            is_indirect: true,
        })
    }

    fn read(&mut self, memory: &Memory<'_>, index: u16, head: u16) -> RingResult<Descriptor> {
        if u32::from(index) >= self.entries {
            return Err(RingFault {
                kind: "descriptor_index",
                value: u64::from(index),
                clause: "virtio 1.3 2.7.5: next is an index into the table",
                detail: format!(
                    "the chain at head {head} leads to descriptor {index} of a table of {}",
                    self.entries
                ),
            });
        }
        if self.steps_left == 0 {
            return Err(RingFault {
                kind: "chain_loop",
                value: u64::from(head),
                clause: "virtio 1.3 2.7.5.2: loops in the descriptor chain are forbidden",
                detail: format!("the chain at head {head} is a loop, or longer than the queue"),
            });
        }
        self.steps_left -= 1;
        let offset = u64::from(index) * DESCRIPTOR_BYTES;
        let Some(address) = self.base.checked_add(offset) else {
            return Err(RingFault {
                kind: "dma",
                value: self.base,
                clause: "virtio 1.3 2.7.5.3: addr is the address of the table",
                detail: format!("descriptor table at {:#x} wraps around", self.base),
            });
        };
        Ok(Descriptor::from(memory.read_array::<16>(address)?))
    }
}

/// Collect the chain that begins at `head` of `table` into `chain`. Ends after a bounded number of steps.
pub(super) fn walk(
    memory: &Memory<'_>,
    mut table: Table,
    head: u16,
    indirect_negotiated: bool,
    chain: &mut Chain,
) -> RingResult<()> {
    chain.clear(head);
    let mut index = head;
    loop {
        let descriptor = table.read(memory, index, head)?;
        if descriptor.flags & INDIRECT != 0 {
            if !indirect_negotiated {
                return Err(RingFault {
                    kind: "indirect",
                    value: u64::from(descriptor.flags),
                    clause: "virtio 1.3 2.7.5.3.1: not without VIRTIO_F_INDIRECT_DESC",
                    detail: format!(
                        "descriptor {index} is indirect, but INDIRECT_DESC was not negotiated"
                    ),
                });
            }
            table = table.indirect(&descriptor, head)?;
            index = 0;
            continue;
        }
        chain.add(&descriptor)?;
        if descriptor.flags & NEXT == 0 {
            return Ok(());
        }
        index = descriptor.next;
    }
}
