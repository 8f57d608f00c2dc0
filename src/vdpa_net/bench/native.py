# SPDX-License-Identifier: Apache-2.0
"""The native ends of the bench: bare tap loops and a front end that drives rings (benches/peers)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vdpa_net.bench.waiting import Waits
from vdpa_net.errors import LabError, MissingTool

NAME = "vdpa-net-bench-peers"
VARIABLE = "VDPA_NET_BENCH_PEERS"
FRONT_END_CPU = 0
DEVICE_CPU = 1
GRACE_SECONDS = 30


def find() -> Path:
    """The program: $VDPA_NET_BENCH_PEERS, one in PATH, or the one that `make bench` builds in a checkout.

    Raises MissingTool.
    """
    built = Path(__file__).parents[3] / "target/release" / NAME
    for candidate in (os.environ.get(VARIABLE), shutil.which(NAME), built):
        if candidate and Path(candidate).is_file():
            return Path(candidate)
    raise MissingTool(f"{NAME} is not there; `make bench` in a checkout builds it, or set {VARIABLE}")


def require_processors() -> None:
    """Raises LabError where this process may not run on both processors of the bench."""
    usable = os.sched_getaffinity(0)
    if missing := {FRONT_END_CPU, DEVICE_CPU} - usable:
        raise LabError(
            f"the bench pins its ends to processors {FRONT_END_CPU} and {DEVICE_CPU}, and may not use "
            f"{min(missing)}; run it where it may (taskset -p tells, {sorted(usable)} now)"
        )


class Peers:
    """Runs one sample at a time, of `seconds`, and adds up how long the measured threads had to wait."""

    def __init__(self, seconds: float) -> None:
        self._program = find()
        self.seconds = seconds
        self.waits = Waits()

    def sample(self, command: str, cpu: int = FRONT_END_CPU, /, **options: object) -> dict[str, Any]:
        """Run one on a processor; True as a value makes a switch. Raises LabError with its complaint."""
        words = [str(self._program), command, "--seconds", str(self.seconds)]
        for name, value in options.items():
            if value is True:
                words.append(f"--{name}")
            elif value is not False and value is not None:
                words += [f"--{name}", str(value)]
        try:
            done = subprocess.run(
                ["taskset", "-c", str(cpu), *words],
                capture_output=True,
                text=True,
                timeout=10 * self.seconds + GRACE_SECONDS,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise LabError(f"{' '.join(words)}: {error}") from error
        if done.returncode != 0:
            raise LabError(f"{' '.join(words)}: {done.stderr.strip()}")
        told = dict(json.loads(done.stdout))
        if not options.get("lossy"):
            # Other threads of testpmd, which get a signal for each frame that comes to a tap, share the front
            # end's processor: it waits for what it measures, not for other work.
            self.waits.add(told.get("waited_ns", 0))
        return told

    def mega_frames(self, command: str, cpu: int = FRONT_END_CPU, /, **options: object) -> float:
        """Frames of one sample, in millions a second."""
        return float(self.sample(command, cpu, **options)["frames_per_s"]) / 1e6

    @contextmanager
    def company(self) -> Iterator[None]:
        """A thread polls on the front end's processor meanwhile, as that of a device does."""
        words = [str(self._program), "spin", "--cpu", str(FRONT_END_CPU)]
        process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        try:
            yield
        finally:
            # It ends with its standard input.
            process.communicate()
