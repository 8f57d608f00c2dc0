# SPDX-License-Identifier: Apache-2.0
"""The translations of a guest's IOMMU that the front end has given us ("IOMMU support").

Each of them is a map of the device: the device speaks IOVA, and what it has no map for, it can't reach.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from vdpa_net.driver.device_maps import DeviceMaps
from vdpa_net.driver.front_log import Translation
from vdpa_net.driver.memory_table import PAGE_BYTES, MappedRegion, MemoryTable
from vdpa_net.driver.vhost_log import VhostLog
from vdpa_net.errors import ProtocolError
from vdpa_net.wire.vhost_user import IOTLB_READ, IOTLB_READ_WRITE, IOTLB_WRITE

_ADDRESS_LIMIT: Final = 1 << 64


@dataclass(frozen=True)
class Entry:
    """[iova, iova + size) is the guest's memory from `guest_address` on."""

    iova: int
    size: int
    guest_address: int
    permissions: int
    region: MappedRegion

    @property
    def end(self) -> int:
        """First IOVA behind the entry."""
        return self.iova + self.size


class Iotlb:
    """All translations in force. The caller holds the back end's lock.

    Before one is given up, what the device marked under it is in the front end's log.
    """

    def __init__(self, memory: MemoryTable, maps: DeviceMaps, log: VhostLog) -> None:
        self._memory = memory
        self._maps = maps
        self._log = log
        self._starts: list[int] = []
        self._entries: dict[int, Entry] = {}

    def update(self, iova: int, size: int, user_address: int, permissions: int) -> None:
        """Take a translation, instead of those that it overlaps. Raises ProtocolError, and what the device
        raises; then there is none for these addresses."""
        _check_range("update", iova, size)
        if user_address % PAGE_BYTES:
            raise ProtocolError(
                f"IOTLB_MSG update: user address {user_address:#x}, expected a multiple of {PAGE_BYTES}"
            )
        if not 0 < permissions <= IOTLB_READ_WRITE:
            raise ProtocolError(
                f"IOTLB_MSG update: permissions {permissions}, expected 1 (read), 2 (write) or 3 (both)"
            )
        region = self._memory.region_of(user_address, size, "IOTLB_MSG update")
        self.invalidate(iova, size)
        guest_address = region.guest_address_of(user_address)
        self._log.cover(iova + size)
        self._maps.dma_map(
            iova,
            size,
            region.fd,
            region.file_offset_of(user_address),
            readable=bool(permissions & IOTLB_READ),
            writable=bool(permissions & IOTLB_WRITE),
        )
        bisect.insort(self._starts, iova)
        self._entries[iova] = Entry(iova, size, guest_address, permissions, region)

    def invalidate(self, iova: int, size: int) -> None:
        """Give up every translation of these addresses, whole. On return the device does not use them.

        A size of 0 stands for all that is left: QEMU sends the address mask of an IOMMU's notification + 1,
        which is too large for 64 bits where everything is invalidated.
        """
        end = min(iova + size, _ADDRESS_LIMIT) if size else _ADDRESS_LIMIT
        self._drop(list(self._overlapping(iova, end)))

    def forget_region(self, region: MappedRegion) -> None:
        """Give up what leads to a region that goes away."""
        self._drop([entry for entry in self._entries.values() if entry.region is region])

    def clear(self) -> None:
        """Give up everything."""
        self._drop(list(self._entries.values()))

    def missing(self, iova: int, size: int, *, write: bool) -> int | None:
        """The first page of these addresses for which there is no translation with this permission."""
        permission = IOTLB_WRITE if write else IOTLB_READ
        at = iova
        while at < iova + size:
            entry = self._at(at)
            if entry is None or not entry.permissions & permission:
                return at // PAGE_BYTES * PAGE_BYTES
            at = entry.end
        return None

    def guest_address(self, iova: int, what: str) -> int:
        """The guest physical address behind an IOVA. Raises ProtocolError."""
        entry = self._at(iova)
        if entry is None:
            raise ProtocolError(f"{what}: there is no translation of {iova:#x}")
        return entry.guest_address + iova - entry.iova

    def translations(self) -> list[Translation]:
        """What the marks of the device mean."""
        return [(entry.iova, entry.size, entry.guest_address) for entry in self._entries.values()]

    def __len__(self) -> int:
        return len(self._entries)

    def _drop(self, entries: list[Entry]) -> None:
        if not entries:
            return
        for entry in entries:
            self._maps.dma_unmap(entry.iova, entry.size)
            del self._entries[entry.iova]
            del self._starts[bisect.bisect_left(self._starts, entry.iova)]
        # Not earlier: as long as it was mapped, the device could write and mark.
        self._log.carry_over([(entry.iova, entry.size, entry.guest_address) for entry in entries])

    def _at(self, iova: int) -> Entry | None:
        index = bisect.bisect_right(self._starts, iova) - 1
        entry = self._entries[self._starts[index]] if index >= 0 else None
        return entry if entry is not None and iova < entry.end else None

    def _overlapping(self, first: int, end: int) -> Iterator[Entry]:
        index = max(0, bisect.bisect_right(self._starts, first) - 1)
        while index < len(self._starts) and self._starts[index] < end:
            entry = self._entries[self._starts[index]]
            if entry.end > first:
                yield entry
            index += 1


def _check_range(what: str, iova: int, size: int) -> None:
    if size == 0 or iova % PAGE_BYTES or size % PAGE_BYTES or iova + size > _ADDRESS_LIMIT:
        raise ProtocolError(
            f"IOTLB_MSG {what}: {size:#x} bytes at {iova:#x}, expected whole pages of {PAGE_BYTES} bytes"
        )
