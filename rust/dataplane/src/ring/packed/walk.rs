// SPDX-License-Identifier: Apache-2.0
//! The walk through a chain in a packed ring, or in its indirect table (virtio 1.3 2.8.5 to 2.8.7).

use super::super::chain::{indirect_limit, Chain, Descriptor, Taken, INDIRECT, NEXT};
use super::super::{RingFault, RingResult};
use super::is_available;
use super::position::Position;
use crate::memory::Memory;

const DRIVER_INDIRECT: &str = "virtio 1.3 2.8.19: Driver Requirements: Indirect Descriptors";
const TABLE_LENGTH: &str = "virtio 1.3 2.8.7: the table has len / 16 descriptors";

/// What a walk has to know of the ring.
pub(super) struct Walk<'a, 'm> {
    pub(super) memory: &'a Memory<'m>,
    pub(super) desc: u64,
    pub(super) size: u16,
    pub(super) indirect: bool,
    /// Descriptors that are not taken yet: no chain can have more.
    pub(super) room: u16,
}

impl Walk<'_, '_> {
    /// Collect the chain whose first descriptor, known to be available, is at `start`. Ends after at most `room`
    /// descriptors of the ring.
    #[inline(always)]
    pub(super) fn collect(&self, start: Position, chain: &mut Chain) -> RingResult<()> {
        chain.begin(start.index());
        let mut position = start;
        let mut slots = 0;
        loop {
            if slots == self.room {
                return Err(self.overrun(start));
            }
            let descriptor =
                Descriptor::read_packed(self.memory, self.desc, u32::from(position.index()))?;
            slots += 1;
            if slots > 1 && !is_available(descriptor.flags, position) {
                return Err(unavailable(start, position, descriptor.flags));
            }
            if descriptor.flags & INDIRECT != 0 {
                self.collect_table(&descriptor, slots, chain)?;
            } else {
                chain.add(&descriptor)?;
            }
            if descriptor.flags & NEXT == 0 {
                let head = descriptor.link;
                chain.taken = Taken { head, slots };
                return Ok(());
            }
            position = position.forward(1, self.size);
        }
    }

    /// Flags other than WRITE, and buffer ids, mean nothing in an indirect table; all its descriptors are used.
    fn collect_table(
        &self,
        descriptor: &Descriptor,
        slots: u16,
        chain: &mut Chain,
    ) -> RingResult<()> {
        let first = chain.first();
        let refuse = |reason| Err(descriptor.bad_indirect(first, DRIVER_INDIRECT, reason));
        if !self.indirect {
            return refuse("INDIRECT_DESC was not negotiated");
        }
        if slots > 1 || descriptor.flags & NEXT != 0 {
            return refuse("it is part of a list that is linked by NEXT");
        }
        let entries = descriptor.table_entries(first, TABLE_LENGTH)?;
        if entries > indirect_limit(self.size) {
            return refuse("the table is longer than the queue");
        }
        for index in 0..entries {
            chain.add(&Descriptor::read_packed(
                self.memory,
                descriptor.addr,
                index,
            )?)?;
        }
        Ok(())
    }

    fn overrun(&self, start: Position) -> RingFault {
        RingFault {
            kind: "chain_loop",
            value: u64::from(start.bits()),
            clause: "virtio 1.3 2.8.17: no descriptor list longer than the queue size",
            detail: format!(
                "the chain at descriptor {} goes on beyond the {} descriptors that the driver can have \
                 made available",
                start.index(),
                self.room
            ),
        }
    }
}

fn unavailable(start: Position, position: Position, flags: u16) -> RingFault {
    RingFault {
        kind: "chain_flags",
        value: u64::from(flags),
        clause: "virtio 1.3 2.8.6: AVAIL and USED are set correctly in all descriptors of a list",
        detail: format!(
            "the chain at descriptor {} leads to descriptor {}, whose flags {flags:#x} don't make it available",
            start.index(),
            position.index()
        ),
    }
}
