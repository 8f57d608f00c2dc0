# SPDX-License-Identifier: Apache-2.0
"""`vdpa-net driver`: a vDPA driver for a device in another process."""

from __future__ import annotations

import argparse

from vdpa_net.cli import options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "--device",
        required=True,
        metavar="DEVICE",
        help="the device to drive: vfio-user:PATH, or vfio:ADDRESS of a PCI function",
    )
    options.add_profile(parser, default=None)
    options.add_vhost_socket(parser)
    options.add_control(parser)


def run(arguments: argparse.Namespace) -> int:
    """Drive until told to end. Raises OptionError."""
    from vdpa_net.processes import serve_driver  # noqa: PLC0415
    from vdpa_net.profiles import find_profile  # noqa: PLC0415

    profile = find_profile(arguments.profile) if arguments.profile else None
    serve_driver(arguments.device, options.vhost_socket(arguments), arguments.control, profile)
    return 0
