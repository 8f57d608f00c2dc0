# SPDX-License-Identifier: Apache-2.0
"""The registers of a virtio device as a guest's driver reaches them.

They are found by the PCI capabilities, as virtio 1.3, 4.1.4 asks; the LM registers lie behind the notify
region.
"""

from __future__ import annotations

from dataclasses import dataclass

from vdpa_net.driver.handle import DeviceHandle
from vdpa_net.wire import pci, virtio_pci
from vdpa_net.wire.virtio_pci import COMMON_CFG, Status

LM_LOGGING_CTRL, LM_BASE_ADDR, LM_END_ADDR, LM_RING_STATE = 0x00, 0x10, 0x18, 0x20


@dataclass(frozen=True)
class Capability:
    """A virtio structure: region (BAR), offset and length in it, and the notify multiplier."""

    region: int
    offset: int
    length: int
    multiplier: int = 0


class GuestRegisters:
    """Reads and writes the registers of the device behind `handle`."""

    def __init__(self, handle: DeviceHandle) -> None:
        self.use(handle)

    def use(self, handle: DeviceHandle) -> None:
        """Find the registers of this device and work on them from now on."""
        self.handle = handle
        self.capabilities = self._find_capabilities()

    def _find_capabilities(self) -> dict[int, Capability]:
        found: dict[int, Capability] = {}
        at = self._config(pci.HEADER["capabilities_pointer"].offset, 1)
        seen: set[int] = set()
        while at and at not in seen:
            seen.add(at)
            if self._config(at, 1) == pci.CAP_ID_VENDOR:
                kind, multiplier = self._config(at + 3, 1), 0
                if kind == virtio_pci.CAP_NOTIFY_CFG:
                    multiplier = self._config(at + 16, 4)
                # The first of a kind is the one to use (virtio 1.3, 4.1.4.1).
                found.setdefault(
                    kind,
                    Capability(
                        self._config(at + 4, 1),
                        self._config(at + 8, 4),
                        self._config(at + 12, 4),
                        multiplier,
                    ),
                )
            at = self._config(at + 1, 1) & 0xFC
        return found

    def _config(self, offset: int, size: int) -> int:
        return int.from_bytes(self.handle.read(pci.CONFIG_REGION, offset, size), "little")

    def read_common(self, name: str) -> int:
        """A field of the common configuration; 64-bit fields as two accesses (virtio 1.3, 4.1.3.1)."""
        place, register = self.capabilities[virtio_pci.CAP_COMMON_CFG], COMMON_CFG[name]
        width = min(register.width, 4)
        parts = (
            self.handle.read(place.region, place.offset + register.offset + at, width)
            for at in range(0, register.width, width)
        )
        return int.from_bytes(b"".join(parts), "little")

    def write_common(self, name: str, value: int) -> None:
        """Write a field of the common configuration; 64-bit fields as two accesses."""
        place, register = self.capabilities[virtio_pci.CAP_COMMON_CFG], COMMON_CFG[name]
        data = value.to_bytes(register.width, "little")
        for at in range(0, register.width, 4):
            self.handle.write(place.region, place.offset + register.offset + at, data[at : at + 4])

    def read_device_config(self, offset: int, size: int) -> bytes:
        """Bytes of the device configuration (virtio 1.3, 5.1.4)."""
        place = self.capabilities[virtio_pci.CAP_DEVICE_CFG]
        return self.handle.read(place.region, place.offset + offset, size)

    @property
    def status(self) -> Status:
        """device_status."""
        return Status(self.read_common("device_status"))

    @property
    def lm_place(self) -> tuple[int, int]:
        """Region and offset of the LM block: right behind the notify region."""
        notify = self.capabilities[virtio_pci.CAP_NOTIFY_CFG]
        return notify.region, notify.offset + notify.length

    def read_lm(self, offset: int) -> int:
        """A 32-bit LM register."""
        region, base = self.lm_place
        return int.from_bytes(self.handle.read(region, base + offset, 4), "little")

    def write_lm(self, offset: int, value: int) -> None:
        """Write a 32-bit LM register."""
        region, base = self.lm_place
        self.handle.write(region, base + offset, value.to_bytes(4, "little"))

    def start_logging(self, base: int, end: int) -> bool:
        """Log to the IOVA range [base, end); whether LM_LOGGING_CTRL reads 1 afterwards."""
        for register, value in ((LM_BASE_ADDR, base), (LM_END_ADDR, end)):
            self.write_lm(register, value & 0xFFFF_FFFF)
            self.write_lm(register + 4, value >> 32)
        self.write_lm(LM_LOGGING_CTRL, 1)
        return self.read_lm(LM_LOGGING_CTRL) == 1

    def ring_state(self, queue: int) -> tuple[int, int]:
        """(last_avail_idx, used_idx) as LM_RING_STATE says."""
        value = self.read_lm(LM_RING_STATE + 4 * queue)
        return value & 0xFFFF, value >> 16
