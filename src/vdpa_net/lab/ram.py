# SPDX-License-Identifier: Apache-2.0
"""Guest RAM that the lab can see: a memfd that QEMU maps by its /proc path; nothing outlives the lab."""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from typing import Any, Protocol

from vdpa_net.closing import Closing
from vdpa_net.migration.checks import differing_pages, filled_pages


class Ram(Protocol):
    """RAM of a guest, as the lab sees it. Addresses are guest physical."""

    @property
    def size_bytes(self) -> int:
        """Size."""

    def read(self, address: int, size: int) -> bytes:
        """Bytes, within a page."""

    def u16(self, address: int) -> int:
        """The little-endian 16-bit value."""

    def differing_pages(self, other: Any) -> list[int]:
        """Numbers of the pages that are not the same in both, the other being of the same kind."""

    def filled_pages(self) -> int:
        """How many pages hold something else than zeros."""

    def file_pages(self, first: int, end: int) -> list[tuple[int, int]]:
        """Where pages [first, end) lie in the file behind the RAM: ranges of the same kind, in order."""


class GuestRam(Closing):
    """`size_bytes` of RAM for one QEMU, zero at first.

    The q35 machine puts RAM below 2 GiB at guest physical address 0 in one piece, so an address is an offset;
    `LOW_RAM_BYTES` is the limit of that.
    """

    LOW_RAM_BYTES = 2 << 30

    def __init__(self, name: str, size_bytes: int) -> None:
        if not 0 < size_bytes <= self.LOW_RAM_BYTES:
            raise ValueError(
                f"guest RAM of {size_bytes} bytes; the lab compares at most {self.LOW_RAM_BYTES}"
            )
        self.name = name
        self._size_bytes = size_bytes
        self.fd = os.memfd_create(name)
        os.ftruncate(self.fd, size_bytes)
        self.view = mmap.mmap(self.fd, size_bytes, prot=mmap.PROT_READ)

    @property
    def path(self) -> Path:
        """The file, for a process that inherits `fd` under its own number."""
        return Path(f"/proc/self/fd/{self.fd}")

    @property
    def size_bytes(self) -> int:
        """Size."""
        return self._size_bytes

    def u16(self, address: int) -> int:
        """The little-endian 16-bit value at a guest physical address."""
        return int.from_bytes(self.read(address, 2), "little")

    def read(self, address: int, size: int) -> bytes:
        """Bytes at a guest physical address."""
        return self.view[address : address + size]

    def differing_pages(self, other: GuestRam) -> list[int]:
        """Numbers of the pages that are not the same in both."""
        with memoryview(self.view) as left, memoryview(other.view) as right:
            return differing_pages(left, right)

    def filled_pages(self) -> int:
        """How many pages hold something else than zeros."""
        with memoryview(self.view) as view:
            return filled_pages(view)

    def file_pages(self, first: int, end: int) -> list[tuple[int, int]]:
        """Where pages [first, end) lie in the file: an address is an offset."""
        return [(first, end)]

    def close(self) -> None:
        """Give the memory back (QEMU has its own reference while it runs)."""
        if self.fd >= 0:
            self.view.close()
            os.close(self.fd)
            self.fd = -1
