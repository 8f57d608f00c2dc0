# SPDX-License-Identifier: Apache-2.0
"""Programs to run: the host's own, and those of a root file system that is not the host's.

A program of the image runs without chroot: its own dynamic loader is called with the program and the
directory of its libraries, so it sees the host's files, devices and network.
"""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from vdpa_net.errors import LabError

LOADERS = {
    "x86_64": ("lib64/ld-linux-x86-64.so.2", "usr/lib/x86_64-linux-gnu"),
    "aarch64": ("lib/ld-linux-aarch64.so.1", "usr/lib/aarch64-linux-gnu"),
}


@dataclass(frozen=True)
class Program:
    """A program: the beginning of its command line, and what its environment needs besides the caller's.

    `name` is what messages call it.
    """

    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    name: str = ""

    def __post_init__(self) -> None:
        if not self.name:
            object.__setattr__(self, "name", Path(self.command[0]).name)

    def argv(self, *arguments: str) -> list[str]:
        """The whole command line."""
        return [*self.command, *arguments]

    def env(self) -> dict[str, str]:
        """The whole environment."""
        return {**os.environ, **self.environment}

    def run(self, *arguments: str, timeout_s: float = 60) -> str:
        """Standard output of a short run. Raises LabError with its complaint."""
        try:
            done = subprocess.run(
                self.argv(*arguments),
                env=self.env(),
                capture_output=True,
                text=True,
                timeout=timeout_s,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise LabError(f"{self.name} {' '.join(arguments)}: {error}") from error
        if done.returncode != 0:
            complaint = (done.stderr or done.stdout).strip()[-2000:]
            raise LabError(
                f"{self.name} {' '.join(arguments)} ended with {done.returncode}, expected 0: {complaint}"
            )
        return done.stdout


def machine_name() -> str:
    """The host's architecture as the kernel spells it. Raises LabError if the lab does not know it."""
    name = platform.machine()
    if name not in LOADERS:
        raise LabError(f"the lab runs on {' and '.join(LOADERS)}, this machine is {name}")
    return name


def program_in(root: Path, path: str) -> Program:
    """The program at `path` (relative) of another root file system."""
    loader, libraries = LOADERS[machine_name()]
    command = (str(root / loader), "--library-path", str(root / libraries), str(root / path))
    return Program(command, name=Path(path).name)


def libraries_of(root: Path, path: str) -> list[Path]:
    """Shared libraries, the loader included, that a program of a root file system needs, as paths in it."""
    loader, libraries = LOADERS[machine_name()]
    lister = Program((str(root / loader), "--library-path", str(root / libraries), "--list"))
    found = [root / loader]
    for line in lister.run(str(root / path)).splitlines():
        _, arrow, target = line.strip().partition(" => ")
        if arrow and "not found" in target:
            raise LabError(f"{path} of the image needs a library that is not there: {line.strip()}")
        if arrow and target.startswith("/"):
            found.append(Path(target.split(" (")[0]))
    # The C library loads it by name when a thread is cancelled, so no program says that it needs it.
    unwinder = root / libraries / "libgcc_s.so.1"
    if unwinder.is_file() and unwinder not in found:
        found.append(unwinder)
    return found
