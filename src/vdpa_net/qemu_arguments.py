# SPDX-License-Identifier: Apache-2.0
"""The QEMU arguments that attach a served device, as a user would paste them into a shell."""

from __future__ import annotations

import json
import shlex

from vdpa_net.options import NicDevice

DEFAULT_BUS = "rp0"
VIOMMU = "-device intel-iommu,intremap=on,caching-mode=on,device-iotlb=on,aw-bits=48"


def attach_arguments(device: NicDevice, socket: str, memory: str = "1G") -> list[str]:
    """One string per argument and its value.

    Guest RAM has to be shared memory, or the device can't reach it. The socket goes into JSON because its
    address is a structure, which QEMU's key=value syntax can't express.
    """
    bus = device.bus or DEFAULT_BUS
    properties = attach_properties(device, socket, bus=bus)
    return [
        "-machine q35,kernel-irqchip=split",
        f"-m {memory}",
        f"-object memory-backend-memfd,id=mem,size={memory},share=on",
        "-numa node,memdev=mem",
        f"-device pcie-root-port,id={shlex.quote(bus)},slot=1",
        f"-device {shlex.quote(json.dumps(properties, separators=(',', ':')))}",
    ]


def attach_properties(device: NicDevice, socket: str, *, bus: str | None) -> dict[str, object]:
    """The properties of QEMU's device that attaches this one."""
    properties: dict[str, object] = {"driver": "vfio-user-pci"}
    if bus:
        properties["bus"] = bus
    if device.id:
        properties["id"] = device.id
    if device.addr:
        properties["addr"] = device.addr
    properties |= device.vmm_side
    properties["socket"] = {"type": "unix", "path": socket}
    return properties


def attach_help(device: NicDevice, socket: str) -> str:
    """What `vdpa-net serve` prints: the arguments, one per line, and how to add a vIOMMU."""
    arguments = " \\\n".join(f"    {argument}" for argument in attach_arguments(device, socket))
    return (
        f"QEMU (10.1 or newer) attaches it with\n{arguments}\n"
        f"and, for a guest with an IOMMU, before the root port (caching-mode=on is needed)\n    {VIOMMU}"
    )
