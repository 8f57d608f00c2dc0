# SPDX-License-Identifier: Apache-2.0
"""Where a stopped ring stands as guest RAM alone tells it, split (virtio 1.3, 2.7) or packed (2.8)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from vdpa_net.lab.ram import Ram
from vdpa_net.migration.checks import PAGE_BYTES
from vdpa_net.wire.lm import PACKED_OFFSET_MASK, PACKED_WRAP

IDX_OFFSET_BYTES: Final = 2
"""Where idx lies in a used or available ring (virtio 1.3, 2.7.6 and 2.7.8)."""

DESCRIPTOR_BYTES: Final = 16
FLAGS_OFFSET_BYTES: Final = 14
AVAIL: Final = 1 << 7
USED: Final = 1 << 15


@dataclass(frozen=True)
class GuestProgress:
    """How far the guest got on the destination, in buffers since the index at which the source stopped.

    A driver can post at most `ring_size` buffers before it has to take completions: one that has `posted`
    more than that went on completing from that index, wherever it keeps its own. In a packed ring both are
    counted in descriptors.
    """

    ring_size: int
    posted: int
    completed: int

    @property
    def is_beyond_the_ring(self) -> bool:
        """The guest took completions that the destination made."""
        return 0 < self.ring_size < self.posted < 1 << 15 and self.completed <= self.posted


class SplitMemory:
    """A split ring: both sides have an index of 16 bits in RAM. `record` is the driver's of the queue."""

    reference = "used->idx in RAM"

    def __init__(self, ram: Ram, record: Mapping[str, Any]) -> None:
        self._ram = ram
        self._record = record
        self._size = int(record["size"])

    def used(self, _reported: int | None) -> int | None:
        """The index at which the device has stopped."""
        return self._ram.u16(int(self._record["device"]) + IDX_OFFSET_BYTES)

    def posted_since(self, index: int) -> int:
        """Buffers that the driver has made available since an index."""
        return (self._available() - index) & 0xFFFF

    def completed_since(self, later: int, earlier: int) -> int:
        """Buffers between two used indices."""
        return (later - earlier) & 0xFFFF

    def look(self, start: int, _before: GuestProgress) -> GuestProgress:
        """How far the guest has got since the index at which the source stopped."""
        used = self._ram.u16(int(self._record["device"]) + IDX_OFFSET_BYTES)
        return GuestProgress(self._size, self.posted_since(start), (used - start) & 0xFFFF)

    @staticmethod
    def show(index: int) -> str:
        """The index, for a person."""
        return str(index)

    def _available(self) -> int:
        return self._ram.u16(int(self._record["driver"]) + IDX_OFFSET_BYTES)


class PackedMemory:
    """A packed ring: no index is in RAM, but the flags of the descriptors tell (virtio 1.3, 2.8.1).

    Before the device's position USED equals the wrap counter of its lap, from there on it does not; AVAIL
    tells the driver's position in the same way. Positions are in the vhost encoding (index in bits 14:0, wrap
    counter in bit 15).
    """

    reference = "the position of the flags in RAM"

    def __init__(self, ram: Ram, record: Mapping[str, Any]) -> None:
        self._ram = ram
        self._address = int(record["descriptor"])
        self._size = int(record["size"])

    def used(self, reported: int | None) -> int | None:
        """The device's position; None if the flags make no sense.

        Where chains of several descriptors leave more than one possible, it is the reported one if that is
        among them.
        """
        return used_position(self._flags(), reported)

    def posted_since(self, index: int) -> int:
        """Descriptors that the driver has made available since a position less than two laps ago."""
        available = flip(self._flags(), AVAIL)
        return 0 if available is None else self.completed_since(available, index)

    def completed_since(self, later: int, earlier: int) -> int:
        """Descriptors between two positions less than two laps apart."""
        return (self._linear(later) - self._linear(earlier)) % (2 * self._size)

    def look(self, start: int, before: GuestProgress) -> GuestProgress:
        """How far the guest has got. Laps that nobody looked at are not counted: never too much."""
        flags = self._flags()
        available, used = flip(flags, AVAIL), flip(flags, USED)
        if available is None or used is None:
            # The guest went on while its flags were read.
            return before
        known = before.posted % (2 * self._size)
        posted = before.posted + (self.completed_since(available, start) - known) % (2 * self._size)
        outstanding = self.completed_since(available, used)
        return GuestProgress(self._size, posted, posted - outstanding)

    @staticmethod
    def show(index: int) -> str:
        """Index and wrap counter, for a person."""
        return f"index {index & PACKED_OFFSET_MASK} wrap {index >> 15}"

    def _linear(self, position: int) -> int:
        return (position & PACKED_OFFSET_MASK) + (0 if position & PACKED_WRAP else self._size)

    def _flags(self) -> list[int]:
        end = self._address + self._size * DESCRIPTOR_BYTES
        ring, address = b"", self._address
        while address < end:
            size = min(end, (address // PAGE_BYTES + 1) * PAGE_BYTES) - address
            ring += self._ram.read(address, size)
            address += size
        return [
            int.from_bytes(ring[at : at + 2], "little")
            for at in range(FLAGS_OFFSET_BYTES, len(ring), DESCRIPTOR_BYTES)
        ]


RingMemory = SplitMemory | PackedMemory


def flip(flags: Sequence[int], bit: int) -> int | None:
    """The position from which on a flag is not the wrap counter; None if there is not exactly one."""
    wrap = bool(flags[0] & bit)
    index = next((at for at, word in enumerate(flags) if bool(word & bit) != wrap), len(flags))
    if any(bool(word & bit) == wrap for word in flags[index:]):
        return None
    if index == len(flags):
        # A lap that is done: the next one begins with the other wrap counter.
        return _position(0, not wrap)
    return _position(index, wrap)


def used_position(flags: Sequence[int], reported: int | None) -> int | None:
    """The device's position in a packed ring with these flags; see `PackedMemory.used`."""
    exact = flip(flags, USED)
    if exact is not None:
        return exact
    size = len(flags)
    every = [_position(index, wrap) for wrap in (True, False) for index in range(size)]
    possible = [position for position in every if _may_be_at(flags, position)]
    return reported if reported in possible else next(iter(possible), None)


def _may_be_at(flags: Sequence[int], position: int) -> bool:
    """Whether the descriptor at the position is not used in this lap, and the last chain before it is.

    The device writes the first descriptor of a chain only: the others keep the flags that made them
    available.
    """
    index, wrap = position & PACKED_OFFSET_MASK, bool(position & PACKED_WRAP)
    if (bool(flags[index] & AVAIL), bool(flags[index] & USED)) == (wrap, wrap):
        return False
    for back in range(1, len(flags)):
        lap = wrap if back <= index else not wrap
        word = flags[index - back]
        if bool(word & USED) == lap:
            return True
        if bool(word & AVAIL) != lap:
            return False
    return False


def _position(index: int, wrap: bool) -> int:
    return index | (PACKED_WRAP if wrap else 0)
