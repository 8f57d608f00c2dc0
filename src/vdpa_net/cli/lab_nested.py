# SPDX-License-Identifier: Apache-2.0
"""`vdpa-net lab nested`: the guest of a guest moves between two level-1 guests, and the verdict on it."""

from __future__ import annotations

import argparse

from vdpa_net.cli import options
from vdpa_net.cli.parser import whole_number

MIN_MEMORY_MIB = 128
DETAILS = """\
Two level-1 guests on one bridge, each with a served device behind a vIOMMU. In
each run a vDPA driver on the kernel's VFIO and a QEMU with the level-2 guest,
which migrates over the manager network (docs/nested.md)."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "--driver",
        choices=("vdpa-net", "dpdk"),
        default="vdpa-net",
        help="the vDPA driver in the level-1 guests: ours, or DPDK's stock vdpa/ifc",
    )
    parser.add_argument(
        "--sw-live-migration", action="store_true", help="let DPDK's driver log instead of the device"
    )
    options.add_rounds(parser, default=1)
    options.add_cancel(parser)
    parser.add_argument("--packed", action="store_true", help="packed virtqueues")
    parser.add_argument("--iommu", action="store_true", help="put a vIOMMU into the level-2 machine")
    parser.add_argument(
        "--rate",
        type=whole_number(1),
        metavar="PPS",
        help="packets/s per direction, by the guest's clock (default: 100, with --iommu 10)",
    )
    options.add_run(parser, min_memory_mib=MIN_MEMORY_MIB)
    parser.set_defaults(memory=MIN_MEMORY_MIB)
    parser.add_argument(
        "--kill",
        choices=("l1-dst", "l2-dst", "device-dst"),
        help="kill this part of the destination in pre-copy: the guest has to go on where it is",
    )


def run(arguments: argparse.Namespace) -> int:
    """The exit code of the verdict."""
    from rich.console import Console  # noqa: PLC0415

    from vdpa_net.lab.nested.run import (  # noqa: PLC0415
        IOMMU_RATE_PPS,
        RATE_PPS,
        NestedOptions,
        run_nested,
    )

    asked = NestedOptions(
        **options.run_options(arguments),
        driver=arguments.driver,
        software_live_migration=arguments.sw_live_migration,
        rate_pps=arguments.rate or (IOMMU_RATE_PPS if arguments.iommu else RATE_PPS),
        cancel_at=arguments.cancel_at,
        kill=arguments.kill,
    )
    return run_nested(asked, Console())
