# SPDX-License-Identifier: Apache-2.0
"""`vdpa-net log-test`: a migration between two devices without a virtual machine, and its verdict."""

from __future__ import annotations

import argparse

from vdpa_net.cli import options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    options.add_faults(parser)
    options.add_seed(parser)
    options.add_json(parser)
    parser.add_argument(
        "--packed", action="store_true", help="packed rings (virtio 1.3, 2.8) instead of split ones"
    )


def run(arguments: argparse.Namespace) -> int:
    """The exit code of the verdict."""
    from rich.console import Console  # noqa: PLC0415

    from vdpa_net.testing.log_test import run_log_test  # noqa: PLC0415

    return run_log_test(
        seed=arguments.seed,
        faults=arguments.fault,
        json_path=arguments.json,
        console=Console(),
        packed=arguments.packed,
    )
