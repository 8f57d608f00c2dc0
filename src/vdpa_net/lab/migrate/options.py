# SPDX-License-Identifier: Apache-2.0
"""What `vdpa-net migrate` is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vdpa_net.errors import OptionError
from vdpa_net.lab.ram import GuestRam
from vdpa_net.migration.faults import parse_fault

TRANSPORTS = ("in-process", "vfio-user")
MINIMUM_PAGES = 64


@dataclass(frozen=True)
class MigrateOptions:
    """What to migrate and how.

    `rounds` alternate between two kinds: one compares RAM while both machines stand still, the next times
    the gap. `qemu` is "host", "image", a path, or None for the host's. `minimum_pages` is how many pages the
    device has to write after the first pass for a round to count. `keep` keeps the logs of a run that passed.
    """

    rounds: int = 2
    transport: str = "in-process"
    seed: int = 0
    faults: tuple[str, ...] = ()
    qemu: str | None = None
    accel: str = "auto"
    memory_mib: int = 256
    rate_pps: int = 1000
    minimum_pages: int = MINIMUM_PAGES
    json_path: Path | None = None
    directory: Path | None = None
    keep: bool = False
    cache: Path | None = None

    def check(self) -> None:
        """Raises OptionError, naming the value."""
        if self.rounds < 1:
            raise OptionError(f"rounds {self.rounds}: expected 1 or more")
        if self.transport not in TRANSPORTS:
            raise OptionError(f"transport {self.transport!r}: expected {' or '.join(TRANSPORTS)}")
        if not 128 <= self.memory_mib <= GuestRam.LOW_RAM_BYTES >> 20:
            raise OptionError(f"memory {self.memory_mib} MiB: expected 128..{GuestRam.LOW_RAM_BYTES >> 20}")
        if not 1 <= self.rate_pps <= 100_000:
            raise OptionError(f"rate {self.rate_pps} packets/s: expected 1..100000")
        for text in self.faults:
            parse_fault(text, seed=self.seed)
