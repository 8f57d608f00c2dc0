# SPDX-License-Identifier: Apache-2.0
"""`vdpa-net lab boot`: a stock guest with the device attached."""

from __future__ import annotations

import argparse

from vdpa_net.cli import options

MIN_MEMORY_MIB = 64


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--iommu", action="store_true", help="put an intel-iommu in front of the device")
    parser.add_argument(
        "--reference", action="store_true", help="boot on QEMU's own virtio-net instead, to compare"
    )
    options.add_machine(parser, min_memory_mib=MIN_MEMORY_MIB)
    options.add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Boot, measure, print; the exit code of the result."""
    from rich.console import Console  # noqa: PLC0415

    from vdpa_net.lab.boot import BootOptions  # noqa: PLC0415
    from vdpa_net.lab.boot import run as boot  # noqa: PLC0415
    from vdpa_net.lab.network import enter_private_network  # noqa: PLC0415
    from vdpa_net.lab.progress import shown_on  # noqa: PLC0415

    console = Console()
    asked = BootOptions(
        iommu=arguments.iommu,
        qemu=arguments.qemu,
        accel=arguments.accel,
        memory_mib=arguments.memory,
        reference=arguments.reference,
        directory=arguments.logs,
    )
    # Before the progress bar brings a thread of its own.
    enter_private_network()
    with shown_on(console) as progress:
        result = boot(asked, progress)
    console.print(result.table())
    if arguments.json is not None:
        options.write_json(arguments.json, result.to_json())
    return result.exit_code
