# SPDX-License-Identifier: Apache-2.0
"""The driver's side of a packed virtqueue (virtio 1.3, 2.8), in guest memory.

Descriptors are written by both sides into one ring. What only the device writes (its event suppression
structure) lies on a page of its own.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from vdpa_net.testing.guest_memory import PAGE_BYTES, full_barrier
from vdpa_net.testing.ring import (
    DESC_BYTES,
    DESC_F_INDIRECT,
    DESC_F_NEXT,
    DESC_F_WRITE,
    INDIRECT_SEGMENTS_MAX,
    DriverRing,
    Segment,
    Used,
)

DESC_F_AVAIL = 1 << 7
DESC_F_USED = 1 << 15
EVENT_ENABLE, EVENT_DISABLE, EVENT_DESC = 0, 1, 2
WRAP = 1 << 15

_DESC = struct.Struct("<QIHH")
_FLAGS = 14
_EVENT_BYTES = 4


class PackedRing(DriverRing):
    """A packed virtqueue. Its size need not be a power of two.

    Driver and device begin where a queue stands through which `first_index` descriptors have passed: at
    offset `first_index % size`, with a wrap counter of 1 in even laps.
    """

    is_packed = True

    @staticmethod
    def area_bytes(size: int) -> tuple[int, int]:  # noqa: ARG004
        """Size of either event suppression structure (2.8.10.1)."""
        return _EVENT_BYTES, _EVENT_BYTES

    def _start(self, first_index: int) -> None:
        self._avail = self._last_used = self._published = first_index
        """Descriptors that have passed since the ring was new; offsets and wrap counters derive from them."""
        self._free_slots = self.size
        self._free_ids = list(range(self.size))
        self._unpublished: list[tuple[int, int]] = []
        self._slots: dict[int, int] = {}
        self._avail_index: dict[int, int] = {}
        self._order: list[int] = []

    def _leave_as_used(self, first_index: int) -> None:
        # Every descriptor was used, each with the wrap counter of its lap.
        for offset in range(self.size):
            lap_wrap = self._wrap(first_index) == (offset < self._offset(first_index))
            flags = (DESC_F_AVAIL | DESC_F_USED) if lap_wrap else 0
            self.memory.store_u16(self.desc + DESC_BYTES * offset + _FLAGS, flags)

    # --- places ---------------------------------------------------------------------------------

    def _offset(self, passed: int) -> int:
        return passed % self.size

    def _wrap(self, passed: int) -> bool:
        return passed // self.size % 2 == 0

    def encode(self, passed: int) -> int:
        """The vhost encoding of the place of descriptor number `passed`."""
        return self._offset(passed) | (WRAP if self._wrap(passed) else 0)

    def _place(self, passed: int) -> int:
        return self.desc + DESC_BYTES * self._offset(passed)

    def _is_used(self, passed: int) -> bool:
        flags = self.memory.load_u16(self._place(passed) + _FLAGS)
        wrap = self._wrap(passed)
        return bool(flags & DESC_F_AVAIL) == wrap == bool(flags & DESC_F_USED)

    def _used_until(self) -> tuple[int, int]:
        """How many descriptors the device has passed, and in how many elements, as memory says."""
        passed, elements = self._last_used, 0
        while passed < self._published and self._is_used(passed):
            head = _DESC.unpack(self.memory.read(self._place(passed), DESC_BYTES))[2]
            passed += self._slots.get(head, 1)
            elements += 1
        return passed, elements

    @property
    def free_descriptors(self) -> int:
        """Descriptors that the driver owns. There are as many buffer ids, so one is free for each."""
        return self._free_slots

    @property
    def used_idx(self) -> int:
        """Where the device will write its next used descriptor, as memory says (vhost encoding)."""
        return self.encode(self._used_until()[0])

    @property
    def last_used_idx(self) -> int:
        """Where the driver will look for the next used descriptor (vhost encoding)."""
        return self.encode(self._last_used)

    @property
    def completed(self) -> int:
        """Used elements, as memory says, that were not reaped yet."""
        return self._used_until()[1]

    @property
    def in_flight(self) -> int:
        """Chains that are published and, as memory says, not used yet."""
        return len(self._order) - len(self._unpublished) - self.completed

    @property
    def base(self) -> int:
        """What SET_VRING_BASE says: both indices (vhost-user, "Vring descriptor indices")."""
        return self.state

    def device_pages(self) -> range:
        """Guest pages of the descriptor ring; `event_page` is not among them."""
        return range(self.desc // PAGE_BYTES, (self.desc + DESC_BYTES * self.size - 1) // PAGE_BYTES + 1)

    def pages_of(self, used: Used) -> set[int]:
        """The page of its used descriptor."""
        return {(self.desc + DESC_BYTES * (used.used_index & ~WRAP)) // PAGE_BYTES}

    def event_page(self) -> int:
        """The page of the device event suppression structure."""
        return self.device // PAGE_BYTES

    # --- making available -----------------------------------------------------------------------

    def add(self, segments: Sequence[Segment], *, indirect: bool = False) -> int:
        """Write a chain into the ring, all but the flags of its first descriptor; returns its buffer id."""
        needed = self._check_room(segments, indirect=indirect)
        buffer_id = self._free_ids.pop(0)
        if indirect:
            table = self._indirect + DESC_BYTES * INDIRECT_SEGMENTS_MAX * buffer_id
            for place, segment in enumerate(segments):
                flags = DESC_F_WRITE if segment.writable else 0
                self.memory.write(
                    table + DESC_BYTES * place, _DESC.pack(segment.gpa, segment.length, 0, flags)
                )
            self._write(
                self._avail, table, DESC_BYTES * len(segments), buffer_id, DESC_F_INDIRECT, first=True
            )
        else:
            for place, segment in enumerate(segments):
                flags = DESC_F_WRITE if segment.writable else 0
                flags |= DESC_F_NEXT if place < len(segments) - 1 else 0
                at = self._avail + place
                self._write(at, segment.gpa, segment.length, buffer_id, flags, first=place == 0)
        self._slots[buffer_id] = needed
        self._avail_index[buffer_id] = self.encode(self._avail)
        self._order.append(buffer_id)
        self._free_slots -= needed
        self._avail += needed
        return buffer_id

    def _write(self, at: int, gpa: int, length: int, buffer_id: int, flags: int, *, first: bool) -> None:
        flags |= DESC_F_AVAIL if self._wrap(at) else DESC_F_USED
        place = self._place(at)
        if first:
            self.memory.write(place, _DESC.pack(gpa, length, buffer_id, 0)[:_FLAGS])
            self._unpublished.append((place + _FLAGS, flags))
        else:
            self.memory.write(place, _DESC.pack(gpa, length, buffer_id, flags))

    def publish(self) -> bool:
        """Store the flags of each chain's first descriptor; returns whether the device wants a kick."""
        before, self._published = self._published, self._avail
        if before == self._avail:
            return False
        for place, flags in self._unpublished:
            self.memory.store_u16(place, flags)
        self._unpublished.clear()
        full_barrier()
        return self.needs_kick(before)

    def needs_kick(self, before: int) -> bool:
        """Whether the device asked to be notified of descriptors from number `before` on (2.8.21.3)."""
        word = self.memory.load_u32(self.device)
        place, flags = word & 0xFFFF, word >> 16 & 3
        if flags != EVENT_DESC or not self.event_idx:
            return flags != EVENT_DISABLE
        return any(self.encode(number) == place for number in range(before, self._avail))

    # --- taking back ----------------------------------------------------------------------------

    def reap(self) -> list[Used]:
        """Take every used descriptor in ring order; each skips as many descriptors as its buffer had."""
        taken: list[Used] = []
        while self._last_used < self._published and self._is_used(self._last_used):
            _, written, buffer_id, _ = _DESC.unpack(
                self.memory.read(self._place(self._last_used), DESC_BYTES)
            )
            known = self._avail_index.pop(buffer_id, None)
            element = Used(self.last_used_idx, buffer_id, written, known)
            slots = self._slots.pop(buffer_id, 1)
            if known is None:
                self.unexpected.append(element)
            else:
                self._free_ids.append(buffer_id)
                self._order.remove(buffer_id)
                self._free_slots += slots
            self._last_used += slots
            taken.append(element)
        return taken

    def arm(self) -> bool:
        """Ask for an interrupt at the next used descriptor; returns whether there is one already."""
        self.poke_event(self.last_used_idx | EVENT_DESC << 16 if self.event_idx else EVENT_ENABLE << 16)
        full_barrier()
        return self._last_used < self._published and self._is_used(self._last_used)

    def disarm(self) -> None:
        """Ask for no interrupts."""
        self.poke_event(EVENT_DISABLE << 16)

    def reset(self) -> None:
        """Forget everything, and zero the ring and both event suppression structures."""
        self._start(0)
        self.memory.write(self.desc, bytes(DESC_BYTES * self.size))
        self.memory.write(self.device, bytes(_EVENT_BYTES))
        self.arm()

    # --- what a driver must not do --------------------------------------------------------------

    def poke_event(self, word: int) -> None:
        """Store the driver event suppression structure as given (place in bits 15:0, flags in 31:16)."""
        self.memory.write(self.driver, word.to_bytes(_EVENT_BYTES, "little"))

    def poke_desc(self, offset: int, gpa: int, length: int, buffer_id: int, flags: int) -> None:
        """Store one descriptor as given; its flags last."""
        place = self.desc + DESC_BYTES * offset
        self.memory.write(place, _DESC.pack(gpa, length, buffer_id, flags)[:_FLAGS])
        full_barrier()
        self.memory.store_u16(place + _FLAGS, flags)
