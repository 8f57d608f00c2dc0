# SPDX-License-Identifier: Apache-2.0
"""RAM of a level-2 guest, read by the lab through that of its level-1 guest.

It lies on huge pages of the level-1 guest, whose physical addresses the agent tells; and the level-1 guest's
physical memory is a file of the lab. So the lab sees what the level-2 guest and the device see, without
asking either.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from vdpa_net.errors import LabError
from vdpa_net.lab.ram import GuestRam
from vdpa_net.migration.checks import PAGE_BYTES, differing_pages, filled_pages


@dataclass(frozen=True)
class Level2Ram:
    """`path` is the RAM's file in the level-1 guest `host`; `addresses` are physical there, one per piece."""

    host: GuestRam
    path: Path
    piece_bytes: int
    addresses: Sequence[int]

    def __post_init__(self) -> None:
        for address in self.addresses:
            if address % self.piece_bytes or address + self.piece_bytes > self.host.size_bytes:
                raise LabError(
                    f"{self.path}: a piece at {address:#x} of a guest with {self.host.size_bytes:#x} bytes"
                )

    @property
    def size_bytes(self) -> int:
        """Size of the guest's RAM."""
        return self.piece_bytes * len(self.addresses)

    def u16(self, address: int) -> int:
        """The little-endian 16-bit value at a guest physical address."""
        return int.from_bytes(self.read(address, 2), "little")

    def read(self, address: int, size: int) -> bytes:
        """Bytes at a guest physical address, within a page."""
        piece, offset = divmod(address, self.piece_bytes)
        return self.host.read(self.addresses[piece] + offset, size)

    def pieces(self) -> Iterator[memoryview]:
        """The RAM in order."""
        with memoryview(self.host.view) as view:
            for address in self.addresses:
                with view[address : address + self.piece_bytes] as piece:
                    yield piece

    def differing_pages(self, other: Level2Ram) -> list[int]:
        """Numbers of the pages that are not the same in both."""
        found: list[int] = []
        first = 0
        for left, right in zip(self.pieces(), other.pieces(), strict=True):
            found += differing_pages(left, right, first)
            first += self.piece_bytes // PAGE_BYTES
        return found

    def filled_pages(self) -> int:
        """How many pages hold something else than zeros."""
        return sum(map(filled_pages, self.pieces()))

    def file_pages(self, first: int, end: int) -> list[tuple[int, int]]:
        """Where pages [first, end) lie in the RAM of the level-1 guest, piece by piece."""
        size = self.piece_bytes // PAGE_BYTES
        found: list[tuple[int, int]] = []
        for number in range(first // size, -(-end // size)):
            at, before = self.addresses[number] // PAGE_BYTES, number * size
            found.append((at + max(first - before, 0), at + min(end - before, size)))
        return found
