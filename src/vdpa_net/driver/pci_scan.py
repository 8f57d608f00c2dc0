# SPDX-License-Identifier: Apache-2.0
"""Where a virtio PCI function keeps its structures, found from its capability list (virtio 1.3, 4.1.4).

A driver trusts nothing here: lists that loop, regions outside of their BAR and missing structures are
ProtocolErrors that name the value.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from vdpa_net.driver.handle import DeviceHandle
from vdpa_net.errors import ProtocolError
from vdpa_net.wire import page_requests, pci, virtio_pci
from vdpa_net.wire.layout import Register, RegisterMap
from vdpa_net.wire.lm import Profile, profile_by_subsystem

_HEADER_END = 0x100
_TABLE_SIZE_MASK = 0x7FF


@dataclass(frozen=True)
class Window:
    """A structure of the device: `length` bytes at `offset` of a region."""

    region: int
    offset: int
    length: int


@dataclass(frozen=True)
class VirtioFunction:
    """The structures of a function; `lm` is the live-migration register block, laid out as `profile` says.
    `page_requests` are its page request registers, if it has some."""

    common: Window
    notify: Window
    notify_off_multiplier: int
    isr: Window
    device: Window
    lm: Window
    profile: Profile
    num_vectors: int
    msix_control_offset: int
    page_requests: Window | None = None


def scan(handle: DeviceHandle, profile: Profile | None = None) -> VirtioFunction:
    """Find everything. Without a profile the subsystem id tells it.

    Raises ProtocolError for what is missing or impossible, OptionError for a subsystem id of no profile.
    """
    profile = profile or _profile(handle)
    found: dict[int, Window] = {}
    multiplier = 0
    msix: tuple[int, int] | None = None
    requests: Window | None = None
    for offset, identifier in _capabilities(handle):
        if identifier == pci.CAP_ID_MSIX:
            control = _config(handle, offset + 2, 2)
            msix = (offset + 2, (control & _TABLE_SIZE_MASK) + 1)
        elif identifier == pci.CAP_ID_VENDOR:
            kind = _field(handle, offset, virtio_pci.VIRTIO_CAPABILITY, "cfg_type")
            # The first of each type is the one to use (4.1.4.2).
            if kind == virtio_pci.CAP_VENDOR_CFG:
                requests = requests or _page_requests(handle, offset)
            elif kind not in found and kind != virtio_pci.CAP_PCI_CFG:
                found[kind] = _window(handle, offset)
                if kind == virtio_pci.CAP_NOTIFY_CFG:
                    notify = virtio_pci.NOTIFY_CAPABILITY
                    multiplier = _field(handle, offset, notify, "notify_off_multiplier")
    if msix is None:
        raise ProtocolError("the function has no MSI-X capability: the driver has no other interrupts")
    notify_window = _need(found, virtio_pci.CAP_NOTIFY_CFG, "notify")
    return VirtioFunction(
        common=_need(found, virtio_pci.CAP_COMMON_CFG, "common configuration"),
        notify=notify_window,
        notify_off_multiplier=multiplier,
        isr=_need(found, virtio_pci.CAP_ISR_CFG, "ISR"),
        device=_need(found, virtio_pci.CAP_DEVICE_CFG, "device configuration"),
        lm=_lm_window(handle, profile, notify_window),
        profile=profile,
        num_vectors=msix[1],
        msix_control_offset=msix[0],
        page_requests=requests,
    )


def _profile(handle: DeviceHandle) -> Profile:
    vendor, device = (
        _config(handle, pci.HEADER[name].offset, 2) for name in ("subsystem_vendor_id", "subsystem_id")
    )
    return profile_by_subsystem(vendor, device)


def _lm_window(handle: DeviceHandle, profile: Profile, notify: Window) -> Window:
    size = profile.registers.size
    region, offset = (notify.region, notify.offset + notify.length)
    if profile.lm_bar is not None:
        region, offset = profile.lm_bar, 0
    available = handle.region_size(region)
    if available < offset + size:
        raise ProtocolError(
            f"profile {profile.name}: the LM registers would end at {offset + size:#x} of BAR {region}, "
            f"which has {available:#x} bytes: this device has none (vdpa=off?), or has another profile"
        )
    return Window(region, offset, size)


def _capabilities(handle: DeviceHandle) -> Iterator[tuple[int, int]]:
    offset = _config(handle, pci.HEADER["capabilities_pointer"].offset, 1) & ~3
    seen: set[int] = set()
    while offset:
        if offset in seen or not pci.FIRST_CAPABILITY <= offset < _HEADER_END:
            raise ProtocolError(f"the capability list leads to {offset:#x}: a loop, or outside of the list")
        seen.add(offset)
        yield offset, _config(handle, offset, 1)
        offset = _config(handle, offset + 1, 1) & ~3


def _page_requests(handle: DeviceHandle, capability: int) -> Window | None:
    """The registers that a vendor data capability tells about, if it is one of that kind."""
    table = page_requests.CAPABILITY
    vendor = _config(handle, pci.HEADER["subsystem_vendor_id"].offset, 2)
    kind = _field(handle, capability, table, "kind")
    if (_field(handle, capability, table, "vendor_id"), kind) != (vendor, page_requests.DATA_KIND):
        return None
    bar, offset = (_field(handle, capability, table, name) for name in ("bar", "offset"))
    length = page_requests.PAGE_REQUESTS.size
    size = handle.region_size(bar) if bar < pci.BAR_COUNT else 0
    if offset + length > size:
        raise ProtocolError(
            f"the vendor data capability at {capability:#x} names [{offset:#x}, {offset + length:#x}) of BAR "
            f"{bar}, which has {size:#x} bytes"
        )
    return Window(bar, offset, length)


def _window(handle: DeviceHandle, capability: int) -> Window:
    table = virtio_pci.VIRTIO_CAPABILITY
    bar = _field(handle, capability, table, "bar")
    offset = _field(handle, capability, table, "offset")
    length = _field(handle, capability, table, "length")
    size = handle.region_size(bar) if bar < pci.BAR_COUNT else 0
    if offset + length > size:
        raise ProtocolError(
            f"the virtio capability at {capability:#x} names [{offset:#x}, {offset + length:#x}) of BAR "
            f"{bar}, which has {size:#x} bytes (virtio 1.3, 4.1.4)"
        )
    return Window(bar, offset, length)


def _need(found: dict[int, Window], kind: int, name: str) -> Window:
    if kind not in found:
        raise ProtocolError(f"the function has no virtio capability {kind} ({name}) (virtio 1.3, 4.1.4)")
    return found[kind]


def _field(handle: DeviceHandle, capability: int, table: RegisterMap, name: str) -> int:
    register: Register = table[name]
    return _config(handle, capability + register.offset, register.width)


def _config(handle: DeviceHandle, offset: int, size: int) -> int:
    return int.from_bytes(handle.read(pci.CONFIG_REGION, offset, size), "little")
