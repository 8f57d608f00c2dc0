# SPDX-License-Identifier: Apache-2.0
"""Which address ranges a client has mapped: an ordered set of disjoint ranges."""

from __future__ import annotations

import bisect

from vdpa_net.errors import DmaError


class MappedRanges:
    """Disjoint ranges [address, address + size), found by address in logarithmic time.

    A guest behind a vIOMMU makes up to a million of them.
    """

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._sizes: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._starts)

    def add(self, address: int, size: int) -> None:
        """Add a range that overlaps no other."""
        bisect.insort(self._starts, address)
        self._sizes[address] = size

    def remove(self, address: int) -> None:
        """Remove the range that starts here."""
        del self._starts[bisect.bisect_left(self._starts, address)]
        del self._sizes[address]

    def clear(self) -> None:
        """Remove all of them."""
        self._starts.clear()
        self._sizes.clear()

    def overlaps(self, address: int, size: int) -> bool:
        """Whether a range touches one that is there."""
        return bool(self._touched(address, size))

    def _touched(self, address: int, size: int) -> list[tuple[int, int]]:
        first = max(0, bisect.bisect_right(self._starts, address) - 1)
        last = bisect.bisect_left(self._starts, address + size)
        ranges = [(start, self._sizes[start]) for start in self._starts[first:last]]
        return [(start, length) for start, length in ranges if start + length > address]

    def within(self, address: int, size: int) -> list[tuple[int, int]]:
        """The ranges inside of [address, address + size). Raises DmaError when one sticks out of it."""
        if self._sizes.get(address) == size:
            return [(address, size)]
        end = address + size
        touched = self._touched(address, size)
        for start, length in touched:
            if start < address or start + length > end:
                raise DmaError(
                    f"DMA_UNMAP of address {address:#x} and size {size:#x} cuts the map of address {start:#x}"
                    f' and size {length:#x}: expected whole maps (vfio-user, "VFIO_USER_DMA_UNMAP")'
                )
        return touched
