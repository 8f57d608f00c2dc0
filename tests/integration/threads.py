# SPDX-License-Identifier: Apache-2.0
"""What threads of this process have done."""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass
from pathlib import Path

PATIENCE_S = 60


@dataclass(frozen=True)
class _Look:
    """A thread at one moment: its name, whether it sleeps, its voluntary context switches and CPU ticks."""

    name: str
    sleeps: bool
    switches: int
    ticks: int


def _look() -> dict[int, _Look]:
    found = {}
    for task in Path("/proc/self/task").iterdir():
        # Threads that tests before this one have left may end meanwhile.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            status = (task / "status").read_text()
            head, _, tail = (task / "stat").read_text().rpartition(")")
            fields = tail.split()
            found[int(task.name)] = _Look(
                head.partition("(")[2],
                fields[0] == "S",
                int(status.split("voluntary_ctxt_switches:")[1].split()[0]),
                int(fields[11]) + int(fields[12]),
            )
    return found


def switches() -> dict[int, tuple[int, int]]:
    """Voluntary context switches and CPU ticks of each thread of this process."""
    return {task: (seen.switches, seen.ticks) for task, seen in _look().items()}


def names() -> dict[int, str]:
    return {task: seen.name for task, seen in _look().items()}


def settle(tasks: set[int]) -> None:
    """Wait until these threads sleep in the kernel and have stayed there between two looks.

    A thread that got no processor between the two has not switched either: it does not sleep.
    """
    deadline = time.monotonic() + PATIENCE_S
    last: dict[int, _Look] = {}
    while time.monotonic() < deadline:
        now = {task: seen for task, seen in _look().items() if task in tasks}
        if now == last and all(seen.sleeps for seen in now.values()):
            return
        last = now
        os.sched_yield()
        time.sleep(0.05)
    raise AssertionError(f"no rest: {last}")
