# SPDX-License-Identifier: Apache-2.0
"""`vdpa-net serve`: a device on a vfio-user socket."""

from __future__ import annotations

import argparse
from pathlib import Path

from vdpa_net.cli import options

DETAILS = """\
example:
  vdpa-net serve --socket /tmp/vdpa.sock \\
      --netdev tap,id=hostnet1,ifname=vt0,script=no,downscript=no,vhost=off \\
      --device virtio-net-pci,netdev=hostnet1,mac=56:4a:b7:4f:4d:a9,vdpa=on
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "--socket", type=Path, required=True, metavar="PATH", help="Unix socket for the vfio-user client"
    )
    options.add_device(parser)
    options.add_control(parser)


def run(arguments: argparse.Namespace) -> int:
    """Serve until told to end."""
    from vdpa_net.processes import serve_device  # noqa: PLC0415

    serve_device(options.device_request(arguments), arguments.socket, arguments.control)
    return 0
