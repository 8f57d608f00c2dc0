# SPDX-License-Identifier: Apache-2.0
"""`vdpa-net libvirt convert`: a domain for stock QEMU, and what serves its devices."""

from __future__ import annotations

import argparse
import shlex
import shutil
from pathlib import Path

DETAILS = """\
It writes into one directory:
  NAME.xml                  the domain: vfio-user-pci, shared memory, a vIOMMU
                            that tells the device of maps
  NAME-ID.sh                per device, the `vdpa-net serve` command
  vdpa-net-NAME-ID.service  per device, a systemd unit for it
"""
SCRIPT = """\
#!/bin/sh
# QEMU, which runs as {user}, has to be able to open the socket, and the tap needs CAP_NET_ADMIN:
# the systemd unit beside this file sees to both.
mkdir -p {directory}
exec {command}
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("domain", type=Path, metavar="IN.xml", help="the domain, as `virsh dumpxml` shows it")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("converted"),
        metavar="DIR",
        help="where to write (default: converted)",
    )
    parser.add_argument("--user", default="libvirt-qemu", metavar="USER", help="whom libvirt's QEMU runs as")


def run(arguments: argparse.Namespace) -> int:
    """Convert, write, say what was written."""
    from vdpa_net.libvirt_domain import convert  # noqa: PLC0415

    converted = convert(arguments.domain.read_text())
    directory: Path = arguments.output
    directory.mkdir(parents=True, exist_ok=True)
    files = {f"{converted.name}.xml": converted.xml}
    executable = shutil.which("vdpa-net") or "/usr/bin/vdpa-net"
    for device in converted.devices:
        files[f"{device.name}.sh"] = SCRIPT.format(
            user=arguments.user,
            directory=shlex.quote(str(Path(device.socket).parent)),
            command=shlex.join(device.command()),
        )
        files[f"vdpa-net-{device.name}.service"] = device.unit(executable, arguments.user)
    for name, text in files.items():
        (directory / name).write_text(text)
        print(f"written: {directory / name}")
    for note in converted.notes:
        print(f"note: {note}")
    return 0
