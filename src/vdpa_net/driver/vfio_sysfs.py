# SPDX-License-Identifier: Apache-2.0
"""Where a PCI function stands in sysfs on its way to VFIO, and what to do next where it is not there yet."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from vdpa_net.errors import OptionError, PeerGone

SYSFS = Path("/sys")
VFIO_DRIVER = "vfio-pci"
_ADDRESS = re.compile(r"(?:([0-9a-f]{4}):)?([0-9a-f]{2}):([0-9a-f]{2})\.([0-7])")


@dataclass(frozen=True)
class PciAddress:
    """A function's address, `0000:01:00.0`."""

    text: str

    @classmethod
    def parse(cls, text: str) -> PciAddress:
        """An address with or without its domain. Raises OptionError."""
        match = _ADDRESS.fullmatch(text.lower())
        if match is None:
            raise OptionError(f"PCI address {text!r}: expected one like 0000:01:00.0")
        domain, bus, slot, function = match.groups()
        return cls(f"{domain or '0000'}:{bus}:{slot}.{function}")

    def __str__(self) -> str:
        return self.text


class PciFunction:
    """What sysfs tells about a function. Raises PeerGone if there is none at the address."""

    def __init__(self, address: PciAddress, sysfs: Path = SYSFS) -> None:
        self.address = address
        self._sysfs = sysfs
        self.directory = sysfs / "bus/pci/devices" / address.text
        if not self.directory.exists():
            raise PeerGone(f"there is no PCI function {address} ({self.directory}): `lspci -D` lists them")

    @property
    def driver(self) -> str | None:
        """The kernel driver that it is bound to."""
        return _target_name(self.directory / "driver")

    @property
    def iommu_group(self) -> str | None:
        """Number of its IOMMU group."""
        return _target_name(self.directory / "iommu_group")

    def require_vfio(self) -> str:
        """Its IOMMU group, if it is bound to vfio-pci.

        Raises OptionError that says what to do next: switch the IOMMU on, or bind the function.
        """
        group = self.iommu_group
        if group is None:
            raise OptionError(
                f"{self.address} has no IOMMU group, and VFIO is nothing without an IOMMU: boot with "
                "intel_iommu=on (Intel; in a guest: on a machine with -device intel-iommu,intremap=on,"
                "caching-mode=on) or with the firmware's IOMMU option on (AMD, Arm)"
            )
        if self.driver != VFIO_DRIVER:
            bound = f"is bound to {self.driver}" if self.driver else "is bound to no driver"
            raise OptionError(
                f"{self.address} {bound}, expected {VFIO_DRIVER}; as root: {'; '.join(self.bind_commands())}"
            )
        return group

    def bind_commands(self) -> list[str]:
        """Shell commands that bind the function to vfio-pci, for good until the next boot."""
        unbind = [f"echo {self.address} > {self.directory}/driver/unbind"] if self.driver else []
        return [
            f"modprobe {VFIO_DRIVER}",
            f"echo {VFIO_DRIVER} > {self.directory}/driver_override",
            *unbind,
            f"echo {self.address} > {self._sysfs}/bus/pci/drivers_probe",
        ]

    def bind(self) -> None:
        """Bind it to vfio-pci as `bind_commands` does, the module being loaded. Raises OSError."""
        if self.driver == VFIO_DRIVER:
            return
        (self.directory / "driver_override").write_text(VFIO_DRIVER)
        if self.driver is not None:
            (self.directory / "driver/unbind").write_text(self.address.text)
        (self._sysfs / "bus/pci/drivers_probe").write_text(self.address.text)

    def unready_neighbours(self) -> list[str]:
        """Functions of its group that keep the group from VFIO: bound to other drivers than VFIO's."""
        found: list[str] = []
        for entry in sorted((self.directory / "iommu_group/devices").glob("*")):
            driver = _target_name(entry / "driver")
            if driver not in (None, VFIO_DRIVER, "pci-stub", "pcieport"):
                found.append(f"{entry.name} ({driver})")
        return found


def _target_name(link: Path) -> str | None:
    return link.resolve().name if link.exists() else None
