# SPDX-License-Identifier: Apache-2.0
"""The driver's side of a split virtqueue (virtio 1.3, 2.7), in guest memory.

What the driver writes and what the device writes lies on different pages, so that memory can tell who wrote.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from vdpa_net.testing.guest_memory import PAGE_BYTES, full_barrier
from vdpa_net.testing.ring import (
    DESC_F_INDIRECT,
    DESC_F_NEXT,
    DESC_F_WRITE,
    INDIRECT_SEGMENTS_MAX,
    DriverRing,
    Segment,
    Used,
)

AVAIL_F_NO_INTERRUPT = 1
USED_F_NO_NOTIFY = 1

_DESC = struct.Struct("<QIHH")
_USED_ELEM = struct.Struct("<II")
_WRAP = 1 << 16


class SplitRing(DriverRing):
    """A split virtqueue. Both indices begin at `first_index`, as those of a queue that has been in use."""

    is_packed = False

    @staticmethod
    def area_bytes(size: int) -> tuple[int, int]:
        """Sizes of the available and of the used ring, events included (2.7)."""
        return 6 + 2 * size, 6 + 8 * size

    def _start(self, first_index: int) -> None:
        self.avail_idx = self._published = self._last_used_idx = first_index % _WRAP
        self._free = list(range(self.size))
        self._owned: dict[int, list[int]] = {}
        self._avail_index: dict[int, int] = {}

    def _leave_as_used(self, first_index: int) -> None:
        self.memory.store_u16(self.driver + 2, first_index % _WRAP)
        self.memory.store_u16(self.device + 2, first_index % _WRAP)

    @property
    def used_idx(self) -> int:
        """used->idx as it stands in memory."""
        return self.memory.load_u16(self.device + 2)

    @property
    def last_used_idx(self) -> int:
        """The next used element that the driver will take."""
        return self._last_used_idx

    @property
    def completed(self) -> int:
        """Used elements, as memory says, that were not reaped yet."""
        return (self.used_idx - self._last_used_idx) % _WRAP

    @property
    def in_flight(self) -> int:
        """Chains that are published and, as memory says, not used yet."""
        return (self._published - self.used_idx) % _WRAP

    @property
    def free_descriptors(self) -> int:
        """Entries of the descriptor table that the driver owns."""
        return len(self._free)

    @property
    def base(self) -> int:
        """What SET_VRING_BASE says: last_avail_idx."""
        return self.used_idx

    def device_pages(self) -> range:
        """Guest pages of the used ring, which only the device writes."""
        return range(self.device // PAGE_BYTES, (self.device + 6 + 8 * self.size - 1) // PAGE_BYTES + 1)

    def pages_of(self, used: Used) -> set[int]:
        """The pages of its used element and of used->idx."""
        element = self.device + 4 + 8 * (used.used_index % self.size)
        return {self.device // PAGE_BYTES, element // PAGE_BYTES, (element + 7) // PAGE_BYTES}

    def event_page(self) -> int:
        """The page of avail_event, or of the flags where EVENT_IDX was not negotiated."""
        return (self.device + (4 + 8 * self.size if self.event_idx else 0)) // PAGE_BYTES

    def add(self, segments: Sequence[Segment], *, indirect: bool = False) -> int:
        """Put a chain into the available ring (not yet visible); returns its head."""
        needed = self._check_room(segments, indirect=indirect)
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
        """Take every used element; their descriptors are free again."""
        until = self.used_idx
        taken: list[Used] = []
        while self._last_used_idx != until:
            place = self.device + 4 + 8 * (self._last_used_idx % self.size)
            head, written = _USED_ELEM.unpack(self.memory.read(place, 8))
            element = Used(self._last_used_idx, head, written, self._avail_index.pop(head, None))
            if element.avail_index is None:
                self.unexpected.append(element)
            self._free += self._owned.pop(head, [])
            taken.append(element)
            self._last_used_idx = (self._last_used_idx + 1) % _WRAP
        return taken

    def arm(self) -> bool:
        """Ask for an interrupt at the next used element; returns whether there is one already."""
        if self.event_idx:
            self.memory.store_u16(self.driver + 4 + 2 * self.size, self._last_used_idx)
        else:
            self.memory.store_u16(self.driver, 0)
        full_barrier()
        return self.used_idx != self._last_used_idx

    def disarm(self) -> None:
        """Ask for no interrupts (with EVENT_IDX: none before the index has gone all the way round)."""
        if self.event_idx:
            self.memory.store_u16(self.driver + 4 + 2 * self.size, (self._last_used_idx - 1) % _WRAP)
        else:
            self.memory.store_u16(self.driver, AVAIL_F_NO_INTERRUPT)

    def reset(self) -> None:
        """Forget everything, and zero the available and the used ring."""
        self._start(0)
        driver_bytes, device_bytes = self.area_bytes(self.size)
        self.memory.write(self.driver, bytes(driver_bytes))
        self.memory.write(self.device, bytes(device_bytes))
        self.arm()

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
