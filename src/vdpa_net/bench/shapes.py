# SPDX-License-Identifier: Apache-2.0
"""Shapes of traffic through a tap: which way, how long the frames are, and what the rings are like."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

TX, RX, BOTH = "tx", "rx", "both"
DIRECTIONS = {TX: "transmit", RX: "receive", BOTH: "both ways"}
SMALL, MIDDLE, LONG = 64, 512, 1500
GSO_BYTES = 65_000


@dataclass(frozen=True)
class Shape:
    """Traffic of one case. `size_bytes` of GSO_BYTES are segments that are to be cut later on."""

    direction: str
    size_bytes: int
    packed: bool = False
    pairs: int = 1
    logging: bool = False

    @property
    def is_gso(self) -> bool:
        """Whether frames are longer than a wire takes."""
        return self.size_bytes == GSO_BYTES

    @property
    def family(self) -> str:
        """`tap`, or `variant` where the rings are not the plain ones."""
        plain = replace(self, packed=False, pairs=1, logging=False)
        return "tap" if self == plain else "variant"

    @property
    def key(self) -> str:
        """Key of the case."""
        size = "gso" if self.is_gso else str(self.size_bytes)
        variants = [("packed", self.packed), ("pairs", self.pairs > 1), ("log", self.logging)]
        return "-".join((self.family, self.direction, size, *(name for name, on in variants if on)))

    @property
    def title(self) -> str:
        """The case in words."""
        size = f"{self.size_bytes} B GSO" if self.is_gso else f"{self.size_bytes} B"
        variants = [
            ("packed", self.packed),
            (f"{self.pairs} queue pairs", self.pairs > 1),
            ("logging", self.logging),
        ]
        return ", ".join((DIRECTIONS[self.direction], size, *(name for name, on in variants if on)))

    @property
    def unit(self) -> str:
        """Segments are told by their bits, frames by their number."""
        return "Gbit/s" if self.is_gso else "Mframes/s"

    def value(self, mega_frames: float, size_bytes: int | None = None) -> float:
        """Frames of this size (None: its own), in millions a second, in the unit of the shape."""
        return mega_frames * (size_bytes or self.size_bytes) * 8 / 1000 if self.is_gso else mega_frames


def shapes(*, quick: bool) -> Iterator[Shape]:
    """All cases of the native front end on a tap; a quick run has each kind of ring with 64 bytes."""
    for direction in DIRECTIONS:
        for size in quick_sizes(direction) if quick else (SMALL, MIDDLE, LONG, GSO_BYTES):
            yield Shape(direction, size)
    for direction in (TX, RX) if quick else DIRECTIONS:
        for size in (SMALL,) if quick else (SMALL, MIDDLE, LONG, GSO_BYTES):
            yield Shape(direction, size, packed=True)
        for size in (SMALL,) if quick else (SMALL, GSO_BYTES):
            yield Shape(direction, size, logging=True)
        yield Shape(direction, SMALL, pairs=2)
        if not quick:
            yield Shape(direction, SMALL, packed=True, logging=True)
            yield Shape(direction, SMALL, packed=True, pairs=2)


def quick_sizes(direction: str) -> tuple[int, ...]:
    """Sizes of a quick run: of both ways the smallest alone."""
    return (SMALL,) if direction == BOTH else (SMALL, LONG, GSO_BYTES)
