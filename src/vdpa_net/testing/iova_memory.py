# SPDX-License-Identifier: Apache-2.0
"""Guest memory as a driver behind an IOMMU uses it: addresses are IOVAs, with a page table of the guest's.

Everything that takes a `GuestMemory` for its rings and buffers takes this, too; consecutive IOVAs lie on
pages of guest memory that are as scattered as the seed decides.
"""

from __future__ import annotations

import random

from vdpa_net.errors import AccessError
from vdpa_net.testing.guest_memory import PAGE_BYTES, GuestMemory


class IovaMemory(GuestMemory):
    """A window of `size_bytes` at IOVA `base` onto the pages of `physical`, which stays the caller's."""

    def __init__(self, physical: GuestMemory, base: int, size_bytes: int, *, seed: int = 0) -> None:
        super().__init__([(base, size_bytes)])
        self.physical = physical
        frames = physical.page_numbers()
        random.Random(seed).shuffle(frames)
        if len(frames) < size_bytes // PAGE_BYTES:
            raise ValueError(f"{size_bytes} bytes do not fit into {len(frames)} pages of guest memory")
        first = base // PAGE_BYTES
        self._frames = {first + n: frames[n] for n in range(size_bytes // PAGE_BYTES)}
        self._spare = frames[size_bytes // PAGE_BYTES :]

    def frame(self, iova: int) -> int | None:
        """The guest page number behind an IOVA; None: not mapped."""
        return self._frames.get(iova // PAGE_BYTES)

    def unmap(self, iova: int) -> None:
        """Take a page out of the page table."""
        self._spare.append(self._frames.pop(iova // PAGE_BYTES))

    def move_page(self, iova: int) -> int:
        """Put a page of IOVAs, with its contents, on another page of guest memory; returns the page left."""
        page = iova // PAGE_BYTES
        old, new = self._frames[page], self._spare.pop()
        self.physical.write(new * PAGE_BYTES, self.physical.read(old * PAGE_BYTES, PAGE_BYTES))
        self._frames[page] = new
        self._spare.insert(0, old)
        return old

    def read(self, gpa: int, size: int) -> bytes:
        """Copy of `size` bytes at an IOVA. Raises AccessError."""
        return b"".join(self.physical.read(at, length) for at, length in self._pieces(gpa, size))

    def write(self, gpa: int, data: bytes) -> None:
        """Store bytes at an IOVA. Raises AccessError."""
        done = 0
        for at, length in self._pieces(gpa, len(data)):
            self.physical.write(at, data[done : done + length])
            done += length

    def load_u16(self, gpa: int) -> int:
        """One 16-bit load."""
        return self.physical.load_u16(self._translate(gpa))

    def store_u16(self, gpa: int, value: int) -> None:
        """One 16-bit store."""
        self.physical.store_u16(self._translate(gpa), value)

    def load_u32(self, gpa: int) -> int:
        """One 32-bit load."""
        return self.physical.load_u32(self._translate(gpa))

    def pages_behind(self, pages: range) -> set[int]:
        """Guest page numbers behind page numbers of IOVAs."""
        return {self._frames[page] for page in pages if page in self._frames}

    def _translate(self, iova: int) -> int:
        frame = self.frame(iova)
        if frame is None:
            raise AccessError(f"IOVA {iova:#x} is not mapped")
        return frame * PAGE_BYTES + iova % PAGE_BYTES

    def _pieces(self, iova: int, size: int) -> list[tuple[int, int]]:
        pieces = []
        while size > 0:
            length = min(size, PAGE_BYTES - iova % PAGE_BYTES)
            pieces.append((self._translate(iova), length))
            iova, size = iova + length, size - length
        return pieces
