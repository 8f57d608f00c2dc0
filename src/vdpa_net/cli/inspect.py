# SPDX-License-Identifier: Apache-2.0
"""`vdpa-net inspect`: the state of a live device."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

DETAILS = """\
--socket asks the process that serves a device (started with --control), and
disturbs nothing. --device reads the registers of a device that nothing else
drives: a vfio-user server has one client at a time, and resets its device when
the client leaves.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument(
        "--socket", type=Path, metavar="CONTROL", help="the control socket of the device's process"
    )
    where.add_argument("--device", metavar="DEVICE", help="the device itself: vfio-user:PATH or vfio:ADDRESS")
    parser.add_argument("--json", action="store_true", help="print it as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Print the state."""
    from vdpa_net.inspection import by_control, render  # noqa: PLC0415

    if arguments.socket is not None:
        state = by_control(arguments.socket)
    else:
        from vdpa_net.driver.state import read_state  # noqa: PLC0415
        from vdpa_net.processes import open_handle  # noqa: PLC0415

        with open_handle(arguments.device) as handle:
            state = read_state(handle)
    if arguments.json:
        print(json.dumps(state, indent=2))
        return 0
    from rich.console import Console  # noqa: PLC0415

    console = Console(highlight=False)
    for part in render(state):
        console.print(part)
    return 0
