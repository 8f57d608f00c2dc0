# SPDX-License-Identifier: Apache-2.0
"""The PCI configuration space: identity, BARs, capabilities, and the two registers in it that act.

Memory and bus-master enable bits are stored and gate nothing: the VMM (or VFIO below a driver) decides
whether a guest's access reaches the device at all, and does so before it sends one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from vdpa_net.device.access import Place
from vdpa_net.device.capabilities import CapabilityList, placed
from vdpa_net.device.registers import RegisterBlock, Storage
from vdpa_net.migration.violations import ViolationLog
from vdpa_net.record import Record
from vdpa_net.wire import page_requests, pci, virtio_pci
from vdpa_net.wire.layout import Register, RegisterMap


class Identity(Record):
    """What the header says about the function.

    `class_code` is base class, subclass, programming interface.
    """

    vendor_id: int
    device_id: int
    revision_id: int
    subsystem_vendor_id: int
    subsystem_id: int
    class_code: int

    def resets(self) -> dict[str, int]:
        """Reset values of the header's registers."""
        return {
            "vendor_id": self.vendor_id,
            "device_id": self.device_id,
            "revision_id": self.revision_id,
            "prog_if": self.class_code & 0xFF,
            "subclass": self.class_code >> 8 & 0xFF,
            "base_class": self.class_code >> 16 & 0xFF,
            "subsystem_vendor_id": self.subsystem_vendor_id,
            "subsystem_id": self.subsystem_id,
        }


class VirtioRegion(Record):
    """A virtio structure in a BAR, told about by a vendor capability (virtio 1.3, 4.1.4)."""

    cfg_type: int
    bar: int
    offset: int
    length: int


class BarAccess(Record):
    """How the PCI_CFG window reaches the BARs."""

    read: Callable[[int, int, int], bytes]
    write: Callable[[int, int, bytes], None]


class FunctionLayout(Record):
    """Everything that the configuration space is built from.

    BAR sizes in bytes, powers of two, by BAR index; those in `narrow` are of 32 bits, the others of 64.
    `page_requests` is where these registers are in the BAR of the virtio structures (None: there are none).
    """

    identity: Identity
    bar_sizes: Mapping[int, int]
    narrow: frozenset[int]
    prefetchable: frozenset[int]
    regions: tuple[VirtioRegion, ...]
    notify_off_multiplier: int
    vectors: int
    msix_bar: int
    pba_offset: int
    ats: bool
    page_requests: int | None = None


class ConfigSpace:
    """The 4096 bytes of configuration space of one function.

    `on_flr` is called when a driver initiates a Function Level Reset; it resets this space too.
    """

    def __init__(
        self, layout: FunctionLayout, bars: BarAccess, violations: ViolationLog, on_flr: Callable[[], None]
    ) -> None:
        self._layout = layout
        self._violations = violations
        self._bars = bars
        self._on_flr = on_flr
        self.capabilities = _capabilities(layout)
        self.table = RegisterMap("config", tuple(_registers(layout, self.capabilities)))
        self._storage = Storage(self.table)
        self._block = RegisterBlock(self.table, self)

    def read(self, offset: int, count: int) -> bytes:
        """Bytes of the space; what is not there reads 0."""
        return self._block.read(offset, count)

    def write(self, offset: int, data: bytes) -> None:
        """Write bytes; read-only bits stay."""
        self._block.write(offset, data)

    def places(self, offset: int, count: int) -> Iterator[Place]:
        """The registers that an access covers."""
        yield from self._block.places(offset, count)

    def value(self, name: str) -> int:
        """A register by name, such as `msix.message_control`."""
        return self._storage.values[name]

    def reset(self) -> None:
        """Every register to its reset value."""
        self._storage.reset()

    def load(self, register: Register) -> int:
        """Value of a register; pci_cfg_data reads through its window."""
        if register.name == "window.pci_cfg_data" and (target := self._window()) is not None:
            return int.from_bytes(self._bars.read(*target), "little")
        return self._storage.load(register)

    def store(self, register: Register, value: int, written: int) -> None:
        """Write a register; pci_cfg_data writes through its window, the FLR bit resets and reads 0."""
        if register.name == "pcie.device_control":
            flr = bool(value & pci.DEVICE_CONTROL_INITIATE_FLR)
            self._storage.store(register, value & ~pci.DEVICE_CONTROL_INITIATE_FLR, written)
            if flr:
                self._on_flr()
        elif register.name == "window.pci_cfg_data":
            if (target := self._window()) is not None:
                bar, offset, length = target
                self._bars.write(bar, offset, value.to_bytes(4, "little")[:length])
        else:
            self._storage.store(register, value, written)

    def _window(self) -> tuple[int, int, int] | None:
        """Where pci_cfg_data leads to; None while it is not set up (length 0)."""
        bar, offset, length = (self.value(f"window.{name}") for name in ("bar", "offset", "length"))
        if length == 0:
            return None
        inside = any(
            region.bar == bar and region.offset <= offset and offset + length <= region.offset + region.length
            for region in self._layout.regions
        )
        if length not in (1, 2, 4) or offset % length or not inside:
            detail = f"{length} bytes at BAR {bar}: expected 1, 2 or 4, aligned, in a virtio structure"
            self._violations.record("config", "bad_pci_cfg_window", offset, "4.1.4.9.2", detail)
            return None
        return bar, offset, length


def _registers(layout: FunctionLayout, capabilities: CapabilityList) -> list[Register]:
    resets = {**layout.identity.resets(), "capabilities_pointer": capabilities.first}
    registers = placed("pci", pci.HEADER, 0, resets)
    registers += [_bar(layout, index) for index in sorted(layout.bar_sizes)]
    registers += capabilities.registers
    if layout.ats:
        registers += placed("ats", pci.ATS_CAPABILITY, pci.FIRST_EXTENDED_CAPABILITY)
    return registers


def _bar(layout: FunctionLayout, index: int) -> Register:
    # The size is what sizing finds: address bits below it are hardwired to 0 (PCIe 7.5.1.2.1).
    width = 4 if index in layout.narrow else 8
    kind = pci.BAR_TYPE_64 if width == 8 else 0
    if index in layout.prefetchable:
        kind |= pci.BAR_PREFETCHABLE
    mask = ((1 << 8 * width) - 1) & ~(layout.bar_sizes[index] - 1) & ~0xF
    return Register(
        f"pci.bar{index}",
        pci.BAR_BASE + 4 * index,
        width,
        reset=kind,
        clause="PCIe 7.5.1.2.1",
        writable_mask=mask,
    )


def _capabilities(layout: FunctionLayout) -> CapabilityList:
    capabilities = CapabilityList()
    capabilities.add("pcie", pci.PCIE_CAPABILITY)
    capabilities.add(
        "msix",
        pci.MSIX_CAPABILITY,
        {
            "message_control": layout.vectors - 1,
            "table": layout.msix_bar,
            "pba": layout.pba_offset | layout.msix_bar,
        },
    )
    for region in layout.regions:
        _add_virtio(capabilities, region, layout.notify_off_multiplier)
    capabilities.add("window", virtio_pci.PCI_CFG_CAPABILITY, {"cfg_type": virtio_pci.CAP_PCI_CFG})
    if layout.page_requests is not None:
        place = {"bar": layout.regions[0].bar, "offset": layout.page_requests}
        vendor = {"vendor_id": layout.identity.subsystem_vendor_id}
        capabilities.add("page_requests", page_requests.CAPABILITY, place | vendor)
    return capabilities


def _add_virtio(capabilities: CapabilityList, region: VirtioRegion, multiplier: int) -> None:
    notify = region.cfg_type == virtio_pci.CAP_NOTIFY_CFG
    resets = {
        "cfg_type": region.cfg_type,
        "bar": region.bar,
        "offset": region.offset,
        "length": region.length,
        "notify_off_multiplier": multiplier,
    }
    table = virtio_pci.NOTIFY_CAPABILITY if notify else virtio_pci.VIRTIO_CAPABILITY
    capabilities.add(f"virtio{region.cfg_type}", table, resets)
