# SPDX-License-Identifier: Apache-2.0
"""Where everything of the function lies: BARs, virtio regions, LM block; and access to a BAR by offset."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Protocol

from vdpa_net.device.access import Place
from vdpa_net.device.msix import PAGE, Msix, power_of_two
from vdpa_net.device.options import NetOptions
from vdpa_net.device.pci import FunctionLayout, Identity, VirtioRegion
from vdpa_net.device.registers import RegisterBlock, Storage
from vdpa_net.migration.violations import ViolationLog
from vdpa_net.record import Record, replace
from vdpa_net.wire import virtio_net, virtio_pci
from vdpa_net.wire.layout import RegisterMap
from vdpa_net.wire.lm import Profile
from vdpa_net.wire.page_requests import PAGE_REQUESTS

CLASS_ETHERNET: Final = 0x020000
REVISION: Final = 1

REGION_BYTES: Final = 0x1000
NOTIFY_OFF_MULTIPLIER: Final = 4
NOTIFY_BYTES: Final = NOTIFY_OFF_MULTIPLIER * 1024
"""Doorbells of 1024 queues, as QEMU has them, so that the LM block is where the contract puts it."""

COMMON_OFFSET: Final = 0x0
ISR_OFFSET: Final = 0x1000
DEVICE_CFG_OFFSET: Final = 0x2000
NOTIFY_OFFSET: Final = 0x3000
LM_OFFSET: Final = NOTIFY_OFFSET + NOTIFY_BYTES


class RegionInfo(Record):
    """A region as VFIO describes it; `size` in bytes."""

    size: int
    readable: bool = True
    writable: bool = True


class Doorbell(Record):
    """A notification register and the eventfd (borrowed) that does the same."""

    region: int
    offset: int
    size_bytes: int
    queue: int
    fd: int


class Window(Protocol):
    """Something that answers accesses, at offsets from its own beginning."""

    def read(self, offset: int, count: int) -> bytes:
        """`count` bytes."""

    def write(self, offset: int, data: bytes) -> None:
        """Write bytes."""

    def places(self, offset: int, count: int) -> Iterator[Place]:
        """The registers that an access covers."""


class Bar:
    """A BAR made of windows. Between them reads give 0 and writes are violations."""

    def __init__(self, name: str, size: int, violations: ViolationLog) -> None:
        self.size = size
        table = RegisterMap(name, ())
        self._nothing = RegisterBlock(table, Storage(table), violations)
        self._windows: list[tuple[int, int, Window]] = []

    def add(self, offset: int, length: int, window: Window) -> None:
        """Put a window at [offset, offset + length), behind those that are there."""
        self._windows.append((offset, offset + length, window))

    def read(self, offset: int, count: int) -> bytes:
        """`count` bytes, which may span windows."""
        pieces = self._pieces(offset, count)
        return b"".join(window.read(start - base, end - start) for base, start, end, window in pieces)

    def write(self, offset: int, data: bytes) -> None:
        """Write bytes, which may span windows."""
        for base, start, end, window in self._pieces(offset, len(data)):
            window.write(start - base, data[start - offset : end - offset])

    def places(self, offset: int, count: int) -> Iterator[Place]:
        """The registers that an access covers."""
        for base, start, end, window in self._pieces(offset, count):
            for place in window.places(start - base, end - start):
                yield replace(place, offset=place.offset + start - offset)

    def _pieces(self, offset: int, count: int) -> Iterator[tuple[int, int, int, Window]]:
        position, end = offset, offset + count
        for begin, behind, window in self._windows:
            if behind <= position or begin >= end:
                continue
            if begin > position:
                yield 0, position, begin, self._nothing
                position = begin
            yield begin, position, min(behind, end), window
            position = min(behind, end)
        if position < end:
            yield 0, position, end, self._nothing


def lm_place(profile: Profile) -> tuple[int, int]:
    """BAR and offset of the LM block."""
    return (profile.virtio_bar, LM_OFFSET) if profile.lm_bar is None else (profile.lm_bar, 0)


def page_requests_offset(options: NetOptions) -> int | None:
    """Where in the virtio BAR the page request registers are, if there are any."""
    profile = options.profile
    if not (options.vdpa and profile.page_requests):
        return None
    bar, offset = lm_place(profile)
    end = offset + profile.registers.size if bar == profile.virtio_bar else LM_OFFSET
    return (end + PAGE - 1) // PAGE * PAGE


def bar_sizes(options: NetOptions, msix_bytes: int) -> dict[int, int]:
    """Size of each BAR, a power of two and at least a page, so that it can be mapped alone."""
    profile = options.profile
    ends = {profile.virtio_bar: LM_OFFSET, profile.msix_bar: msix_bytes}
    if options.vdpa:
        bar, offset = lm_place(profile)
        ends[bar] = offset + profile.registers.size
    if (requests := page_requests_offset(options)) is not None:
        ends[profile.virtio_bar] = requests + PAGE_REQUESTS.size
    return {bar: power_of_two(max(PAGE, end)) for bar, end in sorted(ends.items())}


def function_layout(options: NetOptions, msix: Msix) -> FunctionLayout:
    """What the configuration space says about this device."""
    profile = options.profile
    regions = (
        (virtio_pci.CAP_COMMON_CFG, COMMON_OFFSET, REGION_BYTES),
        (virtio_pci.CAP_ISR_CFG, ISR_OFFSET, REGION_BYTES),
        (virtio_pci.CAP_DEVICE_CFG, DEVICE_CFG_OFFSET, REGION_BYTES),
        (virtio_pci.CAP_NOTIFY_CFG, NOTIFY_OFFSET, NOTIFY_BYTES),
    )
    return FunctionLayout(
        identity=Identity(
            vendor_id=virtio_pci.VENDOR_ID,
            device_id=virtio_pci.DEVICE_ID_BASE + virtio_net.DEVICE_ID,
            revision_id=REVISION,
            subsystem_vendor_id=profile.subsystem_vendor_id,
            subsystem_id=profile.subsystem_id,
            class_code=CLASS_ETHERNET,
        ),
        bar_sizes=bar_sizes(options, msix.bar_size),
        narrow=frozenset({profile.msix_bar}),
        prefetchable=frozenset({profile.virtio_bar}),
        regions=tuple(
            VirtioRegion(kind, profile.virtio_bar, start, length) for kind, start, length in regions
        ),
        notify_off_multiplier=NOTIFY_OFF_MULTIPLIER,
        vectors=options.vectors,
        msix_bar=profile.msix_bar,
        pba_offset=msix.pba_offset,
        ats=options.ats,
        page_requests=page_requests_offset(options),
    )
