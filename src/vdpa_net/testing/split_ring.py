# SPDX-License-Identifier: Apache-2.0
"""The driver's side of a split virtqueue (virtio 1.3, 2.7), in guest memory.

The well-behaved operations are `add`, `publish`, `needs_kick`, `reap` and `arm`. The `poke_*` functions store
whatever a broken or hostile driver might store. What the driver writes and what the device writes lies on
different pages, so that memory can tell who wrote.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

from vdpa_net.errors import StateError
from vdpa_net.testing.guest_memory import GuestMemory, full_barrier

DESC_F_NEXT = 1
DESC_F_WRITE = 2
DESC_F_INDIRECT = 4
AVAIL_F_NO_INTERRUPT = 1
USED_F_NO_NOTIFY = 1

INDIRECT_SEGMENTS_MAX = 8
"""Segments that an indirect table of this driver holds."""

_DESC = struct.Struct("<QIHH")
_USED_ELEM = struct.Struct("<II")
_WRAP = 1 << 16


class Segment(NamedTuple):
    """One piece of a buffer: guest physical address, bytes, and whether the device writes it."""

    gpa: int
    length: int
    writable: bool = False


class Used(NamedTuple):
    """A used element: its place in the used ring, its head, the bytes written, and where the head had been
    made available (None: the device returned a head that it did not own)."""

    used_index: int
    head: int
    written: int
    avail_index: int | None


class SplitRing:
    """A split virtqueue of `size` entries whose three areas lie at `desc`, `driver` and `device`.

    Both indices begin at `first_index`, as those of a queue that has been in use.
    """

    def __init__(
        self,
        memory: GuestMemory,
        size: int,
        desc: int,
        driver: int,
        device: int,
        *,
        indirect: int,
        event_idx: bool = True,
        first_index: int = 0,
    ) -> None:
        self.memory = memory
        self.size = size
        self.desc, self.driver, self.device = desc, driver, device
        self.event_idx = event_idx
        self.avail_idx = first_index % _WRAP
        self.last_used_idx = first_index % _WRAP
        self.unexpected: list[Used] = []
        self._indirect = indirect
        self._published = self.avail_idx
        self._free = list(range(size))
        self._owned: dict[int, list[int]] = {}
        self._avail_index: dict[int, int] = {}
        if first_index:
            memory.store_u16(driver + 2, self.avail_idx)
            memory.store_u16(device + 2, self.last_used_idx)
        self.arm()

    @classmethod
    def allocate(
        cls, memory: GuestMemory, size: int, *, event_idx: bool = True, first_index: int = 0, region: int = 0
    ) -> SplitRing:
        """A ring in unused guest memory, each area on pages of its own."""
        desc = memory.allocate(16 * size, region=region)
        driver = memory.allocate(6 + 2 * size, region=region)
        indirect = memory.allocate(16 * INDIRECT_SEGMENTS_MAX * size, region=region)
        device = memory.allocate(6 + 8 * size, region=region)
        memory.allocate(0, region=region)
        return cls(
            memory,
            size,
            desc,
            driver,
            device,
            indirect=indirect,
            event_idx=event_idx,
            first_index=first_index,
        )

    @property
    def used_idx(self) -> int:
        """used->idx as it stands in memory."""
        return self.memory.load_u16(self.device + 2)

    @property
    def in_flight(self) -> int:
        """Chains that are published and, as memory says, not used yet."""
        return (self._published - self.used_idx) % _WRAP

    @property
    def free_descriptors(self) -> int:
        """Entries of the descriptor table that the driver owns."""
        return len(self._free)

    def device_pages(self) -> range:
        """Guest pages of the used ring, which only the device writes."""
        return range(self.device // 4096, (self.device + 6 + 8 * self.size - 1) // 4096 + 1)

    def move_to(self, memory: GuestMemory) -> None:
        """Go on in other memory that holds the same bytes: the guest has migrated."""
        self.memory = memory

    def add(self, segments: Sequence[Segment], *, indirect: bool = False) -> int:
        """Put a chain into the available ring (not yet visible); returns its head.

        Raises StateError if the descriptors do not suffice or an indirect table would overflow.
        """
        needed = 1 if indirect else len(segments)
        if not segments or needed > len(self._free):
            raise StateError(f"a chain of {needed} descriptors does not fit, {len(self._free)} are free")
        if indirect and len(segments) > INDIRECT_SEGMENTS_MAX:
            raise StateError(f"{len(segments)} segments, an indirect table holds {INDIRECT_SEGMENTS_MAX}")
        taken, self._free = self._free[:needed], self._free[needed:]
        head = taken[0]
        if indirect:
            table = self._indirect + 16 * INDIRECT_SEGMENTS_MAX * head
            self._write_chain(table, list(range(len(segments))), segments)
            self.poke_desc(head, table, 16 * len(segments), DESC_F_INDIRECT, 0)
        else:
            self._write_chain(self.desc, taken, segments)
        self.memory.write(self.driver + 4 + 2 * (self.avail_idx % self.size), struct.pack("<H", head))
        self._owned[head] = taken
        self._avail_index[head] = self.avail_idx
        self.avail_idx = (self.avail_idx + 1) % _WRAP
        return head

    def _write_chain(self, table: int, slots: list[int], segments: Sequence[Segment]) -> None:
        for place, (slot, segment) in enumerate(zip(slots, segments, strict=True)):
            last = place == len(slots) - 1
            flags = (DESC_F_WRITE if segment.writable else 0) | (0 if last else DESC_F_NEXT)
            following = 0 if last else slots[place + 1]
            self.memory.write(table + 16 * slot, _DESC.pack(segment.gpa, segment.length, flags, following))

    def publish(self) -> bool:
        """Make what was added visible to the device; returns whether the device wants a kick for it."""
        before, self._published = self._published, self.avail_idx
        if before == self.avail_idx:
            return False
        self.memory.store_u16(self.driver + 2, self.avail_idx)
        full_barrier()
        return self.needs_kick(before)

    def needs_kick(self, before: int) -> bool:
        """Whether the device asked to be notified of the entries from `before` on (virtio 1.3, 2.7.10)."""
        if not self.event_idx:
            return not self.memory.load_u16(self.device) & USED_F_NO_NOTIFY
        event = self.memory.load_u16(self.device + 4 + 8 * self.size)
        return (self.avail_idx - event - 1) % _WRAP < (self.avail_idx - before) % _WRAP

    def reap(self) -> list[Used]:
        """Take every used element; their descriptors are free again.

        Elements that the device had no right to return are in `unexpected` as well.
        """
        until = self.used_idx
        taken: list[Used] = []
        while self.last_used_idx != until:
            place = self.device + 4 + 8 * (self.last_used_idx % self.size)
            head, written = _USED_ELEM.unpack(self.memory.read(place, 8))
            element = Used(self.last_used_idx, head, written, self._avail_index.pop(head, None))
            if element.avail_index is None:
                self.unexpected.append(element)
            self._free += self._owned.pop(head, [])
            taken.append(element)
            self.last_used_idx = (self.last_used_idx + 1) % _WRAP
        return taken

    def arm(self) -> bool:
        """Ask for an interrupt at the next used element; returns whether there is one already."""
        if self.event_idx:
            self.memory.store_u16(self.driver + 4 + 2 * self.size, self.last_used_idx)
        else:
            self.memory.store_u16(self.driver, 0)
        full_barrier()
        return self.used_idx != self.last_used_idx

    def disarm(self) -> None:
        """Ask for no interrupts (with EVENT_IDX: none before the index has gone all the way round)."""
        if self.event_idx:
            self.memory.store_u16(self.driver + 4 + 2 * self.size, (self.last_used_idx - 1) % _WRAP)
        else:
            self.memory.store_u16(self.driver, AVAIL_F_NO_INTERRUPT)

    def poke_desc(self, slot: int, gpa: int, length: int, flags: int, following: int) -> None:
        """Store one descriptor as given."""
        self.memory.write(self.desc + 16 * slot, _DESC.pack(gpa, length, flags, following))

    def poke_avail(self, place: int, head: int) -> None:
        """Store one entry of the available ring as given."""
        self.memory.write(self.driver + 4 + 2 * (place % self.size), struct.pack("<H", head))

    def poke_avail_idx(self, value: int) -> None:
        """Store avail->idx as given."""
        self.memory.store_u16(self.driver + 2, value)

    def poke_used_idx(self, value: int) -> None:
        """Store used->idx, which is the device's, as given."""
        self.memory.store_u16(self.device + 2, value)
