# SPDX-License-Identifier: Apache-2.0
"""`vdpa-net log-test`: a migration between two devices without a virtual machine, and its verdict."""

from __future__ import annotations

import argparse
from pathlib import Path

from vdpa_net.cli import options
from vdpa_net.cli.parser import whole_number
from vdpa_net.errors import OptionError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    options.add_faults(parser)
    options.add_seed(parser)
    options.add_json(parser)
    options.add_junit(parser)
    parser.add_argument(
        "--rounds", type=whole_number(1), default=1, metavar="N", help="migrations, back and forth"
    )
    parser.add_argument(
        "--packed", action="store_true", help="packed rings (virtio 1.3, 2.8) instead of split ones"
    )
    parser.add_argument(
        "--queue-pairs", type=whole_number(1, 16), default=1, metavar="N", help="queue pairs of the device"
    )
    parser.add_argument(
        "--transport", choices=options.TRANSPORTS, default="in-process", help="how drivers reach the devices"
    )
    parser.add_argument(
        "--backend-socket",
        metavar="SRC,DST",
        help="test the vhost-user back ends that listen at these sockets and send back what they are sent",
    )


def run(arguments: argparse.Namespace) -> int:
    """The exit code of the verdict."""
    from rich.console import Console  # noqa: PLC0415

    from vdpa_net.testing.log_test import LogTestOptions, run_log_test  # noqa: PLC0415

    test = LogTestOptions(
        seed=arguments.seed,
        rounds=arguments.rounds,
        faults=tuple(arguments.fault),
        packed=arguments.packed,
        queue_pairs=arguments.queue_pairs,
        over_vfio_user=arguments.transport == "vfio-user",
        backend_sockets=_backend_sockets(arguments.backend_socket),
    )
    return run_log_test(test, Console(), json_path=arguments.json, junit_path=arguments.junit)


def _backend_sockets(text: str | None) -> tuple[Path, Path] | None:
    if text is None:
        return None
    source, comma, destination = text.partition(",")
    if not (source and comma and destination):
        raise OptionError(f"--backend-socket takes SRC,DST, got {text!r}")
    return Path(source), Path(destination)
