# SPDX-License-Identifier: Apache-2.0
"""Guest memory in a memfd, as a VMM shares it with its devices.

Addresses are guest physical (GPA) and double as IOVAs. The CPU side of the guest accesses memory through
`GuestMemory` only, which can keep the set of pages that the CPU wrote: a VMM knows them by itself and does
not need the device's log for them.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock

from vdpa_net.closing import Closing
from vdpa_net.errors import AccessError

PAGE_BYTES = 4096


def full_barrier() -> None:
    """Order an earlier store before a later load, as EVENT_IDX asks of drivers (virtio 1.3, 2.7.13).

    Taking and releasing a free lock is an atomic read-modify-write in the C library.
    """
    with _FENCE:
        pass


_FENCE = Lock()


@dataclass(frozen=True, slots=True)
class Region:
    """A range of guest physical addresses; `file_offset` is where it lies in the memfd."""

    gpa: int
    size_bytes: int
    file_offset: int

    @property
    def end(self) -> int:
        """First address behind the region."""
        return self.gpa + self.size_bytes


class GuestMemory(Closing):
    """Guest RAM of one or more regions in one memfd; `fd` may be handed to devices.

    >>> with GuestMemory([(0, 8192), (1 << 32, 4096)]) as memory:
    ...     memory.write((1 << 32) + 8, b"hello")
    ...     memory.read((1 << 32) + 8, 5), [hex(page) for page in memory.page_numbers()]
    (b'hello', ['0x0', '0x1', '0x100000'])
    """

    def __init__(self, regions: Sequence[tuple[int, int]]) -> None:
        """`regions` are (gpa, size in bytes), page-aligned, ascending. Raises ValueError if they are not."""
        self.regions = _lay_out(regions)
        self.size_bytes = sum(region.size_bytes for region in self.regions)
        self.fd = os.memfd_create("guest-memory", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, self.size_bytes)
        self._map = mmap.mmap(self.fd, self.size_bytes)
        self._bytes = memoryview(self._map)
        self._u16 = self._bytes.cast("H")
        self._u32 = self._bytes.cast("I")
        self._next_free = [region.gpa for region in self.regions]
        self._lock = Lock()
        self._written: set[int] | None = None

    def _offset(self, gpa: int, size: int) -> int:
        for region in self.regions:
            if region.gpa <= gpa and gpa + size <= region.end:
                return gpa - region.gpa + region.file_offset
        raise AccessError(f"[{gpa:#x}, {gpa + size:#x}) is not inside one region of guest memory")

    def read(self, gpa: int, size: int) -> bytes:
        """Copy of `size` bytes. Raises AccessError outside of the regions."""
        offset = self._offset(gpa, size)
        return bytes(self._bytes[offset : offset + size])

    def write(self, gpa: int, data: bytes) -> None:
        """Store bytes, and note their pages if CPU writes are tracked. Raises AccessError."""
        offset = self._offset(gpa, len(data))
        with self._lock:
            self._bytes[offset : offset + len(data)] = data
            self._note(gpa, len(data))

    def load_u16(self, gpa: int) -> int:
        """One 16-bit load of an aligned address."""
        return self._u16[self._offset(gpa, 2) >> 1]

    def store_u16(self, gpa: int, value: int) -> None:
        """One 16-bit store to an aligned address: a device never sees half of it."""
        index = self._offset(gpa, 2) >> 1
        with self._lock:
            self._u16[index] = value
            self._note(gpa, 2)

    def load_u32(self, gpa: int) -> int:
        """One 32-bit load of an aligned address."""
        return self._u32[self._offset(gpa, 4) >> 2]

    def _note(self, gpa: int, size: int) -> None:
        if self._written is not None and size:
            self._written.update(range(gpa // PAGE_BYTES, (gpa + size - 1) // PAGE_BYTES + 1))

    def track_cpu_writes(self) -> None:
        """Start to note the pages that the CPU writes."""
        with self._lock:
            self._written = set()

    def take_cpu_writes(self) -> tuple[set[int], bytes]:
        """Pages written since the last call, and all memory (in file order) at this very moment.

        No CPU write falls between the two: it is in both or in neither. Devices go on writing.
        """
        with self._lock:
            written, self._written = self._written or set(), set()
            return written, bytes(self._bytes)

    def snapshot(self) -> bytes:
        """All memory in file order."""
        return bytes(self._bytes)

    def load_pages(self, image: bytes, pages: set[int] | None = None) -> None:
        """Copy guest pages (None: all) from a snapshot of equally laid out memory."""
        for region in self.regions:
            first = region.gpa // PAGE_BYTES
            wanted = range(first, region.end // PAGE_BYTES)
            for page in wanted if pages is None else pages.intersection(wanted):
                at = region.file_offset + (page - first) * PAGE_BYTES
                self._bytes[at : at + PAGE_BYTES] = image[at : at + PAGE_BYTES]

    def page_numbers(self) -> list[int]:
        """Guest page numbers in file order."""
        return [
            page
            for region in self.regions
            for page in range(region.gpa // PAGE_BYTES, region.end // PAGE_BYTES)
        ]

    def allocate(self, size: int, align: int = PAGE_BYTES, *, region: int = 0) -> int:
        """Address of `size` unused bytes in a region; nothing is ever freed. Raises AccessError when full."""
        start = -(-self._next_free[region] // align) * align
        if start + size > self.regions[region].end:
            raise AccessError(
                f"no room for {size} bytes in guest memory region {region} behind {start:#x}"
                f" (it ends at {self.regions[region].end:#x})"
            )
        self._next_free[region] = start + size
        return start

    def close(self) -> None:
        """Unmap and close the memory; devices that mapped it keep theirs."""
        for view in (self._u16, self._u32, self._bytes):
            view.release()
        self._map.close()
        os.close(self.fd)


def _lay_out(regions: Sequence[tuple[int, int]]) -> tuple[Region, ...]:
    laid_out: list[Region] = []
    offset = 0
    for gpa, size in regions:
        if gpa % PAGE_BYTES or size % PAGE_BYTES or size <= 0:
            raise ValueError(f"region at {gpa:#x} of {size:#x} bytes is not made of whole pages")
        if laid_out and gpa < laid_out[-1].end:
            raise ValueError(
                f"region at {gpa:#x} begins before {laid_out[-1].end:#x}, the end of the last one"
            )
        laid_out.append(Region(gpa, size, offset))
        offset += size
    return tuple(laid_out)
