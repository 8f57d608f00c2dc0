# SPDX-License-Identifier: Apache-2.0
"""What every kind of guest is tried with: the parts of one boot, and what a kind has to offer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from vdpa_net.lab.boot.options import BootOptions
from vdpa_net.lab.boot.result import BootResult
from vdpa_net.lab.guest import Guest
from vdpa_net.lab.image import Image
from vdpa_net.lab.machine import Machine
from vdpa_net.lab.network import LabNetwork
from vdpa_net.lab.progress import ProgressCallback
from vdpa_net.lab.side import SideProcess

LISTEN_SECONDS = 30


@dataclass
class Boot:
    """What a trial works on."""

    options: BootOptions
    image: Image
    directory: Path
    result: BootResult
    progress: ProgressCallback
    network: LabNetwork
    machine: Machine
    device: SideProcess | None
    seen: int = 0
    """Lines of the console before this one belong to what has been dealt with."""

    def wait_listening(self) -> None:
        """The guest's iperf3 stops listening between two clients: each has to wait for its line."""
        self.machine.wait_console("LAB listening iperf3", LISTEN_SECONDS, start=self.seen)
        self.seen = self.machine.console.position


class Trial(Protocol):
    """What is done with one kind of guest; a module of this package for each."""

    def build(self, built: Image, cache: Path | None) -> Guest | None:
        """What the machine boots; None: its firmware alone."""

    def append(self, small: Guest, options: BootOptions, role: str) -> str:
        """The kernel command line."""

    def arguments(self, built: Image, directory: Path) -> tuple[str, ...]:
        """More arguments for QEMU."""

    def before(self, boot: Boot) -> None:
        """The network is there, the machine has been started."""

    def run(self, boot: Boot) -> None:
        """Try the guest's network; what is wrong goes to `boot.result`."""
