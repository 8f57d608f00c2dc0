// SPDX-License-Identifier: Apache-2.0
//! The walk through the descriptor table of a split virtqueue and its indirect tables (virtio 1.3 2.7.5).

use super::super::chain::{indirect_limit, Chain, Descriptor, Taken, INDIRECT, NEXT};
use super::super::{RingFault, RingResult};
use crate::memory::Memory;

const ONE_LAST_TABLE: &str = "virtio 1.3 2.7.5.3.1: one indirect table per chain, last in it";
const TABLE_LENGTH: &str = "virtio 1.3 2.7.5.3: the table has len / 16 descriptors";

/// A descriptor table, and how far a walk through it may go.
pub(super) struct Table {
    base: u64,
    entries: u32,
    steps_left: u32,
    size: u16,
    is_indirect: bool,
}

impl Table {
    /// The table of a queue.
    pub(super) fn of_queue(base: u64, size: u16) -> Self {
        Self {
            base,
            entries: u32::from(size),
            steps_left: u32::from(size),
            size,
            is_indirect: false,
        }
    }

    fn indirect(&self, descriptor: &Descriptor, head: u16) -> RingResult<Self> {
        if self.is_indirect {
            return Err(descriptor.bad_indirect(
                head,
                ONE_LAST_TABLE,
                "it lies in an indirect table itself",
            ));
        }
        if descriptor.flags & NEXT != 0 {
            return Err(descriptor.bad_indirect(head, ONE_LAST_TABLE, "NEXT is set too"));
        }
        Ok(Self {
            base: descriptor.addr,
            entries: descriptor.table_entries(head, TABLE_LENGTH)?,
            steps_left: indirect_limit(self.size),
            size: self.size,
            is_indirect: true,
        })
    }

    #[inline(always)]
    fn read(&mut self, memory: &Memory<'_>, index: u16, head: u16) -> RingResult<Descriptor> {
        if u32::from(index) >= self.entries || self.steps_left == 0 {
            return Err(self.beyond(index, head));
        }
        self.steps_left -= 1;
        Descriptor::read_split(memory, self.base, u32::from(index))
    }

    #[cold]
    fn beyond(&self, index: u16, head: u16) -> RingFault {
        if u32::from(index) < self.entries {
            return RingFault {
                kind: "chain_loop",
                value: u64::from(head),
                clause: "virtio 1.3 2.7.5.2: loops in the descriptor chain are forbidden",
                detail: format!(
                    "the chain at descriptor {head} is a loop, or longer than the queue"
                ),
            };
        }
        RingFault {
            kind: "descriptor_index",
            value: u64::from(index),
            clause: "virtio 1.3 2.7.5: next is an index into the table",
            detail: format!(
                "the chain at descriptor {head} leads to descriptor {index} of a table of {}",
                self.entries
            ),
        }
    }
}

/// Collect the chain that begins at `head` of `table`, a queue's, into `chain`. Ends after a bounded number of steps.
#[inline(always)]
pub(super) fn walk(
    memory: &Memory<'_>,
    mut table: Table,
    head: u16,
    indirect_negotiated: bool,
    chain: &mut Chain,
) -> RingResult<()> {
    chain.begin(head);
    chain.taken = Taken { head, slots: 1 };
    let first = table.read(memory, head, head)?;
    if first.is_whole() {
        return chain.add(&first);
    }
    follow(memory, table, first, indirect_negotiated, chain)
}

fn follow(
    memory: &Memory<'_>,
    mut table: Table,
    first: Descriptor,
    indirect_negotiated: bool,
    chain: &mut Chain,
) -> RingResult<()> {
    let head = chain.taken.head;
    let mut descriptor = first;
    loop {
        if descriptor.flags & INDIRECT != 0 {
            if !indirect_negotiated {
                return Err(descriptor.bad_indirect(
                    head,
                    "virtio 1.3 2.7.5.3.1: not without VIRTIO_F_INDIRECT_DESC",
                    "INDIRECT_DESC was not negotiated",
                ));
            }
            table = table.indirect(&descriptor, head)?;
            descriptor = table.read(memory, 0, head)?;
            continue;
        }
        chain.add(&descriptor)?;
        if descriptor.flags & NEXT == 0 {
            return Ok(());
        }
        descriptor = table.read(memory, descriptor.link, head)?;
    }
}
