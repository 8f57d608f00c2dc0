# SPDX-License-Identifier: Apache-2.0
"""`vdpa-net migrate`: a guest under traffic moves between two devices, and the verdict on it."""

from __future__ import annotations

import argparse

from vdpa_net.cli import options
from vdpa_net.cli.parser import whole_number

MIN_MEMORY_MIB = 128


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "--rounds", type=whole_number(1), default=2, metavar="N", help="migrations, back and forth"
    )
    parser.add_argument(
        "--transport",
        choices=options.TRANSPORTS,
        default="in-process",
        help="how the driver reaches the device",
    )
    parser.add_argument(
        "--rate", type=whole_number(1), default=1000, metavar="PPS", help="packets per second and direction"
    )
    options.add_machine(parser, min_memory_mib=MIN_MEMORY_MIB)
    parser.add_argument("--keep", action="store_true", help="keep logs and evidence of a PASS, too")
    options.add_faults(parser)
    options.add_seed(parser)
    options.add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """The exit code of the verdict."""
    from rich.console import Console  # noqa: PLC0415

    from vdpa_net.lab.migrate.options import MigrateOptions  # noqa: PLC0415
    from vdpa_net.lab.migrate.run import run_migrate  # noqa: PLC0415

    asked = MigrateOptions(
        rounds=arguments.rounds,
        transport=arguments.transport,
        qemu=arguments.qemu,
        accel=arguments.accel,
        memory_mib=arguments.memory,
        rate_pps=arguments.rate,
        faults=tuple(arguments.fault),
        seed=arguments.seed,
        json_path=arguments.json,
        directory=arguments.logs,
        keep=arguments.keep,
    )
    return run_migrate(asked, Console())
