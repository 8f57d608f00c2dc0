# SPDX-License-Identifier: Apache-2.0
"""`vdpa-net lab build`: the lab image."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "--mirror", metavar="URL", help="Debian mirror; default is that of this machine's apt"
    )


def run(arguments: argparse.Namespace) -> int:
    """Build it, or find that it is there."""
    from rich.console import Console  # noqa: PLC0415

    from vdpa_net.lab.image import build  # noqa: PLC0415
    from vdpa_net.lab.progress import shown_on  # noqa: PLC0415

    with shown_on(Console()) as progress:
        image = build(arguments.mirror, progress=progress)
    print(f"lab image: {image.root} (Linux {image.kernel_release})")
    return 0
