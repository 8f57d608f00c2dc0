# SPDX-License-Identifier: Apache-2.0
"""The driver's side of a virtqueue, whatever its format: what guest drivers, front ends and tests work with.

`SplitRing` and `PackedRing` are written from virtio 1.3, 2.7 and 2.8. The well-behaved operations are `add`,
`publish`, `needs_kick`, `reap` and `arm`; the `poke_*` methods of the formats store whatever a broken or
hostile driver might store.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple, Self

from vdpa_net.errors import StateError
from vdpa_net.testing.guest_memory import GuestMemory

DESC_F_NEXT = 1
DESC_F_WRITE = 2
DESC_F_INDIRECT = 4

DESC_BYTES = 16

INDIRECT_SEGMENTS_MAX = 8
"""Segments that an indirect table of these drivers holds."""


class Segment(NamedTuple):
    """One piece of a buffer: guest physical address, bytes, and whether the device writes it."""

    gpa: int
    length: int
    writable: bool = False


class Used(NamedTuple):
    """A used element: its place in the used ring, its head (packed: its buffer id), the bytes written, and
    where the head had been made available (None: the device returned a head that it did not own).

    Places in a packed ring are in the vhost encoding: offset in bits 14:0, wrap counter in bit 15.
    """

    used_index: int
    head: int
    written: int
    avail_index: int | None


class DriverRing(ABC):
    """A virtqueue of `size` entries whose areas lie at `desc`, `driver` and `device`.

    `unexpected` holds the elements that the device had no right to return.
    """

    is_packed: bool

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
        """`first_index` entries have passed through the ring before."""
        self.memory = memory
        self.size = size
        self.desc, self.driver, self.device = desc, driver, device
        self.event_idx = event_idx
        self.unexpected: list[Used] = []
        self._indirect = indirect
        self._start(first_index)
        if first_index:
            self._leave_as_used(first_index)
        self.arm()

    @classmethod
    def allocate(
        cls, memory: GuestMemory, size: int, *, event_idx: bool = True, first_index: int = 0, region: int = 0
    ) -> Self:
        """A ring in unused guest memory, each area on pages of its own."""
        driver_bytes, device_bytes = cls.area_bytes(size)
        desc = memory.allocate(DESC_BYTES * size, region=region)
        driver = memory.allocate(driver_bytes, region=region)
        indirect = memory.allocate(DESC_BYTES * INDIRECT_SEGMENTS_MAX * size, region=region)
        device = memory.allocate(device_bytes, region=region)
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

    @staticmethod
    @abstractmethod
    def area_bytes(size: int) -> tuple[int, int]:
        """Sizes of the driver and of the device area."""

    @abstractmethod
    def _start(self, first_index: int) -> None:
        """Forget every buffer, and stand here."""

    @abstractmethod
    def _leave_as_used(self, first_index: int) -> None:
        """Write to memory what a ring holds through which so many entries have passed."""

    def move_to(self, memory: GuestMemory) -> None:
        """Go on in other memory that holds the same bytes: the guest has migrated."""
        self.memory = memory

    @property
    @abstractmethod
    def free_descriptors(self) -> int:
        """Descriptors that the driver owns."""

    @property
    @abstractmethod
    def used_idx(self) -> int:
        """Where the device will write its next used element, as memory says."""

    @property
    @abstractmethod
    def last_used_idx(self) -> int:
        """Where the driver will look for the next used element."""

    @property
    @abstractmethod
    def completed(self) -> int:
        """Used elements, as memory says, that were not reaped yet."""

    @property
    @abstractmethod
    def in_flight(self) -> int:
        """Chains that are published and, as memory says, not used yet."""

    @property
    def state(self) -> int:
        """LM_RING_STATE of a device that has used all that it took, as memory says."""
        return self.used_idx << 16 | self.used_idx

    @property
    @abstractmethod
    def base(self) -> int:
        """What SET_VRING_BASE says of that state."""

    @abstractmethod
    def device_pages(self) -> range:
        """Guest pages of the areas that the device writes."""

    @abstractmethod
    def pages_of(self, used: Used) -> set[int]:
        """Guest pages that the device wrote to return this element, packet buffers aside."""

    @abstractmethod
    def event_page(self) -> int:
        """Guest page in which the device says which kicks it wants."""

    @abstractmethod
    def add(self, segments: Sequence[Segment], *, indirect: bool = False) -> int:
        """Prepare a chain (not yet visible); returns its head (packed: its buffer id).

        Raises StateError if the descriptors do not suffice or an indirect table would overflow.
        """

    @abstractmethod
    def publish(self) -> bool:
        """Make what was added visible to the device; returns whether the device wants a kick for it."""

    @abstractmethod
    def reap(self) -> list[Used]:
        """Take every used element; their descriptors are free again."""

    @abstractmethod
    def arm(self) -> bool:
        """Ask for an interrupt at the next used element; returns whether there is one already."""

    @abstractmethod
    def disarm(self) -> None:
        """Ask for no interrupts."""

    @abstractmethod
    def reset(self) -> None:
        """Forget everything, and zero the areas: the queue was reset (virtio 1.3, 2.6.1)."""

    def _check_room(self, segments: Sequence[Segment], *, indirect: bool) -> int:
        """Descriptors that a chain takes. Raises StateError."""
        needed = 1 if indirect else len(segments)
        if not segments or needed > self.free_descriptors:
            raise StateError(
                f"a chain of {needed} descriptors does not fit, {self.free_descriptors} are free"
            )
        if indirect and len(segments) > INDIRECT_SEGMENTS_MAX:
            raise StateError(f"{len(segments)} segments, an indirect table holds {INDIRECT_SEGMENTS_MAX}")
        return needed
