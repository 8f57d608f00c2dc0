# SPDX-License-Identifier: Apache-2.0
"""The front end's memory: which files it is made of, its addresses, and what the device may reach of it.

Without a vIOMMU the device's addresses (IOVA) are guest physical addresses.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from vdpa_net.driver.device_maps import DmaTarget
from vdpa_net.errors import ProtocolError, VdpaNetError
from vdpa_net.wire.vhost_user import MemoryRegion

PAGE_BYTES = 4096
_ADDRESS_LIMIT = 1 << 64


class MappedRegion:
    """One region, with a descriptor of its own.

    It is read by system calls: a front end may shorten its file at any time, and a look at a map of what is
    not there any more would end this process (SIGBUS).
    """

    def __init__(self, region: MemoryRegion, fd: int) -> None:
        """Raises ProtocolError for a region that its file does not have."""
        _check_region(region)
        size = os.fstat(fd).st_size
        if region.mmap_offset + region.size > size:
            raise ProtocolError(
                f"memory region of {region.size:#x} bytes at offset {region.mmap_offset:#x} of a file of "
                f"{size:#x} bytes"
            )
        self.region = region
        self.times_added = 1
        self.fd = os.dup(fd)

    def read(self, address: int, size: int) -> bytes:
        """Bytes at a guest address inside of the region. Raises ProtocolError if its file lacks them."""
        offset = self.region.mmap_offset + address - self.region.guest_address
        try:
            data = os.pread(self.fd, size, offset)
        except OSError as error:
            raise ProtocolError(f"guest memory at {address:#x} can't be read: {error}") from error
        if len(data) < size:
            raise ProtocolError(f"guest memory at {address:#x}: its file has become too short")
        return data

    def guest_address_of(self, user_address: int) -> int:
        """The guest address of a user address inside of the region."""
        return self.region.guest_address + user_address - self.region.user_address

    def file_offset_of(self, user_address: int) -> int:
        """Where a user address inside of the region lies in the file."""
        return self.region.mmap_offset + user_address - self.region.user_address

    def close(self) -> None:
        """Give the descriptor back."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class MemoryTable:
    """All regions. A change is made whole or not at all; what stays the same stays mapped meanwhile.

    `on_close` is called with a region that goes away before its descriptor is given back, `on_remove` before
    the device loses one that `remove` takes away. `at_rest` keeps the device from its memory while addresses
    that it may use change their place.
    """

    def __init__(self, maps: DmaTarget) -> None:
        self._maps = maps
        self._mapped: list[MappedRegion] = []
        self._direct = True
        self.on_close: Callable[[MappedRegion], None] = lambda _region: None
        self.on_remove: Callable[[MemoryRegion], None] = lambda _region: None
        self.at_rest: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext

    def _close(self, item: MappedRegion) -> None:
        self.on_close(item)
        item.close()

    @property
    def regions(self) -> list[MemoryRegion]:
        """The regions in force."""
        return [item.region for item in self._mapped]

    def replace(self, regions: Sequence[MemoryRegion], fds: Sequence[int]) -> None:
        """Make this the table. Raises ProtocolError, DmaError or PeerError; then the old one is in force.

        Raises as well what `at_rest` raises at its end, of rings that can't go on; then the new one is.
        """
        _check_table(regions)
        kept = {item.region: item for item in self._mapped if _same_file(item, regions, fds)}
        dropped = [item for item in self._mapped if item.region not in kept]
        with contextlib.ExitStack() as undo:
            fresh: list[MappedRegion] = []
            for region, fd in zip(regions, fds, strict=True):
                if region not in kept:
                    fresh.append(MappedRegion(region, fd))
                    undo.callback(fresh[-1].close)
            with self.at_rest() if self._direct and _overlap(dropped, fresh) else contextlib.nullcontext():
                self._swap(dropped, fresh)
                # What goes on behind the rest goes on with the new table, whatever becomes of it.
                undo.pop_all()
                self._mapped = [*kept.values(), *fresh]
                for item in self._mapped:
                    item.times_added = 1
                for item in dropped:
                    self._close(item)

    def add(self, region: MemoryRegion, fd: int) -> None:
        """Add one region. Raises as `replace` does.

        One that is there already, the same file and all, is there once more: QEMU 7.2 adds, and removes, each
        region once per queue pair.
        """
        for known in self._mapped:
            if _same_file(known, [region], [fd]):
                known.times_added += 1
                return
        _check_table([*self.regions, region])
        item = MappedRegion(region, fd)
        try:
            self._map(item)
        except BaseException:
            item.close()
            raise
        self._mapped.append(item)

    def remove(self, region: MemoryRegion) -> None:
        """Remove the region with this guest address, user address and size. Raises ProtocolError."""
        for item in self._mapped:
            if _identity(item.region) == _identity(region):
                if item.times_added > 1:
                    item.times_added -= 1
                    return
                if self._direct:
                    self.on_remove(item.region)
                self._unmap(item)
                self._mapped.remove(item)
                self._close(item)
                return
        raise ProtocolError(
            f"REM_MEM_REG: no region of {region.size:#x} bytes at guest address {region.guest_address:#x}, "
            f"user address {region.user_address:#x}"
        )

    def clear(self) -> None:
        """Remove everything; never raises for a device that is gone."""
        for item in self._mapped:
            # A device that is gone has no maps.
            with contextlib.suppress(VdpaNetError):
                self._unmap(item)
            self._close(item)
        self._mapped = []

    def guest_address(self, user_address: int, size: int, what: str) -> int:
        """Translate a user address. Raises ProtocolError if it is outside of every region."""
        return self.region_of(user_address, size, what).guest_address_of(user_address)

    def region_of(self, user_address: int, size: int, what: str) -> MappedRegion:
        """The region with these user addresses. Raises ProtocolError if none has all of them."""
        for item in self._mapped:
            start = user_address - item.region.user_address
            if start >= 0 and start + size <= item.region.size:
                return item
        raise ProtocolError(
            f"{what}: user address {user_address:#x} with {size} bytes is in no memory region"
        )

    def has(self, guest_address: int, size: int) -> bool:
        """Whether each of these guest addresses is in some region."""
        end = guest_address + size
        for region in sorted(self.regions, key=lambda region: region.guest_address):
            if region.guest_address <= guest_address < region.guest_address + region.size:
                guest_address = region.guest_address + region.size
        return guest_address >= end

    def set_direct(self, direct: bool) -> None:
        """Whether the device reaches the guest's memory by guest physical addresses, or by translations only.

        Raises what the device raises; then nothing has changed.
        """
        if direct != self._direct:
            self._swap([] if direct else self._mapped, self._mapped if direct else [], force=True)
            self._direct = direct

    def u16(self, guest_address: int) -> int:
        """The 16-bit value at a guest address. Raises ProtocolError outside of every region."""
        for item in self._mapped:
            if 0 <= guest_address - item.region.guest_address <= item.region.size - 2:
                return int.from_bytes(item.read(guest_address, 2), "little")
        raise ProtocolError(f"guest address {guest_address:#x} is in no memory region")

    def _swap(
        self, dropped: Sequence[MappedRegion], fresh: Sequence[MappedRegion], *, force: bool = False
    ) -> None:
        unmapped: list[MappedRegion] = []
        mapped: list[MappedRegion] = []
        try:
            for item in dropped:
                self._unmap(item, force=force)
                unmapped.append(item)
            for item in fresh:
                self._map(item, force=force)
                mapped.append(item)
        except BaseException:
            for item in mapped:
                self._unmap(item, force=force)
            for item in unmapped:
                self._map(item, force=force)
            raise

    def _map(self, item: MappedRegion, *, force: bool = False) -> None:
        region = item.region
        if self._direct or force:
            self._maps.dma_map(region.guest_address, region.size, item.fd, region.mmap_offset)

    def _unmap(self, item: MappedRegion, *, force: bool = False) -> None:
        if self._direct or force:
            self._maps.dma_unmap(item.region.guest_address, item.region.size)


def _identity(region: MemoryRegion) -> tuple[int, int, int]:
    return region.guest_address, region.user_address, region.size


def _overlap(some: Sequence[MappedRegion], others: Sequence[MappedRegion]) -> bool:
    """Whether a guest address is in a region of both."""
    pairs = itertools.product((item.region for item in some), (item.region for item in others))
    return any(
        one.guest_address < other.guest_address + other.size
        and other.guest_address < one.guest_address + one.size
        for one, other in pairs
    )


def _same_file(item: MappedRegion, regions: Sequence[MemoryRegion], fds: Sequence[int]) -> bool:
    ours = os.fstat(item.fd)
    for region, fd in zip(regions, fds, strict=True):
        theirs = os.fstat(fd)
        if region == item.region and (ours.st_dev, ours.st_ino) == (theirs.st_dev, theirs.st_ino):
            return True
    return False


def _check_region(region: MemoryRegion) -> None:
    for name in ("guest_address", "size", "mmap_offset"):
        value = getattr(region, name)
        if value % PAGE_BYTES:
            raise ProtocolError(f"memory region: {name} {value:#x} is not a multiple of {PAGE_BYTES}")
    if region.size == 0:
        raise ProtocolError(f"memory region at {region.guest_address:#x} has no size")
    for name in ("guest_address", "user_address", "mmap_offset"):
        if getattr(region, name) + region.size > _ADDRESS_LIMIT:
            raise ProtocolError(f"memory region: {name} {getattr(region, name):#x} + {region.size:#x} wraps")


def _check_table(regions: Sequence[MemoryRegion]) -> None:
    for region in regions:
        _check_region(region)
    for name in ("guest_address", "user_address"):
        ordered = sorted(regions, key=lambda region: int(getattr(region, name)))
        for low, high in itertools.pairwise(ordered):
            if getattr(low, name) + low.size > getattr(high, name):
                raise ProtocolError(
                    f"memory regions overlap: {name} {getattr(low, name):#x} + {low.size:#x} reaches into "
                    f"{getattr(high, name):#x}"
                )
