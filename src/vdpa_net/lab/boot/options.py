# SPDX-License-Identifier: Apache-2.0
"""What `vdpa-net lab boot` boots: the guest, the machine, the device."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vdpa_net.errors import OptionError

GUESTS: Final = {
    "linux": "Linux' virtio_net: ping, iperf3 both ways",
    "awkward": "Linux that rebinds, resizes and reboots in mid-traffic",
    "testpmd": "DPDK's net_virtio over VFIO behind the vIOMMU: frames come back as they went",
    "uefi": "OVMF's own driver: it asks for an address and a boot file",
}
MACHINES: Final = ("q35", "pc")

TAP: Final = "vt0"
MAC: Final = "56:4a:b7:4f:4d:a9"


@dataclass(frozen=True)
class BootOptions:
    """What to boot.

    `device` and `netdev` are more properties, in QEMU's syntax, which count before the others. `qemu` is
    "host", "image", a path, or None for the host's if it knows vfio-user, else the image's. `accel` is auto,
    kvm or tcg. `reference` boots on QEMU's own virtio-net instead, to compare with. `directory` takes the
    logs (None: a temporary one, kept only on failure). Raises OptionError for what does not go together.
    """

    guest: str = "linux"
    machine: str = "q35"
    iommu: bool = False
    queues: int = 1
    packed: bool = False
    profile: str = "vdpa"
    device: str = ""
    netdev: str = ""
    qemu: str | None = None
    accel: str = "auto"
    memory_mib: int = 256
    iperf_seconds: int = 3
    reference: bool = False
    directory: Path | None = None
    cache: Path | None = None

    def __post_init__(self) -> None:
        if self.machine == "pc" and self.needs_iommu:
            raise OptionError("a vIOMMU needs the machine q35, and --machine is pc")
        if self.reference and self.guest != "linux":
            raise OptionError(f"--reference is for the guest linux, and --guest is {self.guest}")

    @property
    def needs_iommu(self) -> bool:
        """VFIO in the guest needs a vIOMMU."""
        return self.iommu or self.guest == "testpmd"

    @property
    def cpus(self) -> int:
        """One per queue pair, so that Linux uses all of them; testpmd forwards on a second one."""
        return max(self.queues, 2 if self.guest == "testpmd" else 1)

    @property
    def netdev_words(self) -> str:
        """The `--netdev` of the device."""
        queues = f",queues={self.queues}" if self.queues > 1 else ""
        more = f",{self.netdev}" if self.netdev else ""
        return f"tap,id=hostnet1,ifname={TAP},script=no,downscript=no,vhost=off{queues}{more}"

    @property
    def device_words(self) -> str:
        """The `--device` of the device: the source document's line, and what was asked for."""
        return (
            f"virtio-net-pci,netdev=hostnet1,id=net1,mac={MAC},bus=pci.6,addr=0x0,{self._properties},vdpa=on"
        )

    @property
    def reference_words(self) -> str:
        """The `-device` of QEMU's own device, of the same kind."""
        return f"virtio-net-pci,netdev=hostnet1,mac={MAC},bus=rp0,{self._properties}"

    @property
    def _properties(self) -> str:
        words = ["iommu_platform=on", "ats=on"]
        words += ["mq=on"] if self.queues > 1 else []
        words += ["packed=on"] if self.packed else []
        words += [self.device] if self.device else []
        return ",".join(words)
