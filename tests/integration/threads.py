# SPDX-License-Identifier: Apache-2.0
"""What threads of this process have done."""

from __future__ import annotations

import os
import time
from pathlib import Path


def switches() -> dict[int, tuple[int, int]]:
    """Voluntary context switches and CPU ticks of each thread of this process."""
    found = {}
    for task in Path("/proc/self/task").iterdir():
        status = (task / "status").read_text()
        count = int(status.split("voluntary_ctxt_switches:")[1].split()[0])
        fields = _stat(task)
        found[int(task.name)] = (count, int(fields[11]) + int(fields[12]))
    return found


def _stat(task: Path) -> list[str]:
    """What follows the name: state, parent, ..."""
    return (task / "stat").read_text().rpartition(")")[2].split()


def names() -> dict[int, str]:
    return {int(task.name): (task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()}


def settle(tasks: set[int]) -> None:
    """Wait until these threads sleep in the kernel and have stayed there between two looks."""
    deadline = time.monotonic() + 30
    last: dict[int, tuple[int, int]] = {}
    while time.monotonic() < deadline:
        now = {task: count for task, count in switches().items() if task in tasks}
        # One that waits for a processor has not moved either.
        if now == last and all(_stat(Path(f"/proc/self/task/{task}"))[0] == "S" for task in tasks):
            return
        last = now
        os.sched_yield()
        time.sleep(0.05)
    raise AssertionError(f"no rest: {last}")
