# SPDX-License-Identifier: Apache-2.0
"""OVMF in the guest: its virtio-net driver asks for an address and a boot file, and is answered."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Final

from vdpa_net.errors import LabError
from vdpa_net.lab.boot.dhcp import DhcpServer
from vdpa_net.lab.boot.options import MAC, BootOptions
from vdpa_net.lab.boot.trial import Boot
from vdpa_net.lab.guest import Guest
from vdpa_net.lab.image import Image
from vdpa_net.lab.network import GUEST_ADDRESS

FIRMWARE_SECONDS: Final = 180
CODE: Final = "usr/share/OVMF/OVMF_CODE_4M.fd"
VARIABLES: Final = "usr/share/OVMF/OVMF_VARS_4M.fd"


class Uefi:
    """No operating system: the firmware's network boot."""

    def build(self, built: Image, cache: Path | None) -> Guest | None:  # noqa: ARG002
        """Nothing to boot but the firmware."""
        return None

    def append(self, small: Guest, options: BootOptions, role: str) -> str:  # noqa: ARG002
        """There is no kernel."""
        return ""

    def arguments(self, built: Image, directory: Path) -> tuple[str, ...]:
        """The firmware, and a copy of its variables that it may write. Raises LabError."""
        code, variables = built.root / CODE, directory / "variables.fd"
        if not code.is_file():
            raise LabError(f"the image in {built.root} has no {CODE}")
        shutil.copy(built.root / VARIABLES, variables)
        flash = "if=pflash,format=raw"
        return (
            "-drive",
            f"{flash},unit=0,readonly=on,file={code}",
            "-drive",
            f"{flash},unit=1,file={variables}",
        )

    def before(self, boot: Boot) -> None:
        """Nothing tells that it is up but what it sends."""

    def run(self, boot: Boot) -> None:
        """See it discover, request what it is offered, and ask for its boot file."""
        started_ns = time.monotonic_ns()
        boot.progress("waiting for the firmware's DHCPDISCOVER", None)
        with DhcpServer(boot.network.bridge, boot.network.address, GUEST_ADDRESS, boot.network.mac) as server:
            seen = server.serve(MAC, FIRMWARE_SECONDS)
        boot.result.ready_ms = (time.monotonic_ns() - started_ns) / 1e6
        for message in ("DHCPDISCOVER", "DHCPREQUEST"):
            boot.result.steps[message] = f"from {MAC}" if message in seen else "none"
            boot.result.expect(message in seen, f"a {message} of the firmware, got none")
