# SPDX-License-Identifier: Apache-2.0
"""`vdpa-net vhost`: device and vDPA driver in one process."""

from __future__ import annotations

import argparse

from vdpa_net.cli import options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    options.add_vhost_socket(parser)
    options.add_device(parser)
    options.add_control(parser)


def run(arguments: argparse.Namespace) -> int:
    """Serve until told to end."""
    from vdpa_net.processes import serve_vhost  # noqa: PLC0415

    serve_vhost(options.device_request(arguments), options.vhost_socket(arguments), arguments.control)
    return 0
