# SPDX-License-Identifier: Apache-2.0
"""`vdpa-net lab boot`: a guest with the device attached."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from vdpa_net.cli import options

if TYPE_CHECKING:
    from vdpa_net.lab.boot import BootOptions

MIN_MEMORY_MIB = 64
DETAILS = """\
guests:
  linux    Linux' virtio_net: ping, iperf3 both ways
  awkward  Linux that in mid-traffic rebinds its driver, resizes rings and
           channels, is reset and reboots
  testpmd  DPDK's net_virtio over VFIO behind a vIOMMU: every frame has to come
           back as it went
  uefi     OVMF's own driver: it asks for an address and a boot file

example:
  vdpa-net lab boot --queues 2 --packed --device rx_queue_size=1024
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    from vdpa_net.cli.parser import whole_number  # noqa: PLC0415

    parser.add_argument(
        "--guest", choices=("linux", "awkward", "testpmd", "uefi"), default="linux", help="what boots"
    )
    parser.add_argument("--machine", choices=("q35", "pc"), default="q35", help="QEMU's machine type")
    parser.add_argument("--iommu", action="store_true", help="put an intel-iommu in front of the device")
    parser.add_argument(
        "--queues", type=whole_number(1, 16), default=1, metavar="N", help="queue pairs, and CPUs to use them"
    )
    parser.add_argument("--packed", action="store_true", help="packed rings")
    options.add_profile(parser, default="vdpa")
    parser.add_argument(
        "--device", default="", metavar="PROPERTIES", help="more of the device's properties, in QEMU's syntax"
    )
    parser.add_argument(
        "--netdev", default="", metavar="PROPERTIES", help="more of the tap's properties, in QEMU's syntax"
    )
    parser.add_argument(
        "--reference", action="store_true", help="boot on QEMU's own virtio-net instead, to compare"
    )
    parser.add_argument("--shell", action="store_true", help="the guest's console on this terminal")
    options.add_machine(parser, min_memory_mib=MIN_MEMORY_MIB)
    options.add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Boot, measure, print; the exit code of the result."""
    from rich.console import Console  # noqa: PLC0415

    from vdpa_net.lab import boot  # noqa: PLC0415
    from vdpa_net.lab.network import enter_private_network  # noqa: PLC0415
    from vdpa_net.lab.progress import shown_on  # noqa: PLC0415

    console = Console()
    asked = _options(arguments)
    _check_device(asked)
    # Before the progress bar brings a thread of its own.
    enter_private_network()
    if arguments.shell:
        boot.shell(asked)
        return 0
    with shown_on(console) as progress:
        result = boot.run(asked, progress)
    console.print(result.table())
    if arguments.json is not None:
        options.write_json(arguments.json, result.to_json())
    return result.exit_code


def _check_device(asked: BootOptions) -> None:
    """Refuse what the served device would refuse, before anything is started. Raises OptionError."""
    from vdpa_net.options import check_pair, parse_device, parse_netdev  # noqa: PLC0415
    from vdpa_net.profiles import find_profile  # noqa: PLC0415

    find_profile(asked.profile)
    if not asked.reference:
        check_pair(parse_netdev(asked.netdev_words), parse_device(asked.device_words))


def _options(arguments: argparse.Namespace) -> BootOptions:
    from vdpa_net.lab.boot import BootOptions  # noqa: PLC0415

    return BootOptions(
        guest=arguments.guest,
        machine=arguments.machine,
        iommu=arguments.iommu,
        queues=arguments.queues,
        packed=arguments.packed,
        profile=arguments.profile,
        device=arguments.device,
        netdev=arguments.netdev,
        qemu=arguments.qemu,
        accel=arguments.accel,
        memory_mib=arguments.memory,
        reference=arguments.reference,
        directory=arguments.logs,
    )
