# SPDX-License-Identifier: Apache-2.0
"""How long what is measured has waited for a processor that other work had.

The pace tells of a neighbour in the same core, not of another process on the same processor: that one shows
in the time that a thread is ready to run and does not (the second number of /proc/PID/schedstat).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class Waits:
    """Adds up what samples tell; `total_ns` only grows."""

    def __init__(self) -> None:
        self.total_ns = 0

    def add(self, nanoseconds: int) -> None:
        """A native end has waited so long, in the time that it measured."""
        self.total_ns += nanoseconds

    @contextmanager
    def of(self, *pids: int) -> Iterator[None]:
        """Meanwhile the thread of each of these processes counts that waits most: the one that does the work.

        One that stands still does not wait.
        """
        before = [run_delays_ns(pid) for pid in pids]
        yield
        for pid, earlier in zip(pids, before, strict=True):
            waits = (waited - earlier.get(thread, 0) for thread, waited in run_delays_ns(pid).items())
            self.total_ns += max(waits, default=0)


def run_delays_ns(pid: int) -> dict[int, int]:
    """What each thread of a process has waited since it began. Those that end meanwhile are left out."""
    told = {}
    for task in Path(f"/proc/{pid}/task").glob("*"):
        try:
            told[int(task.name)] = int((task / "schedstat").read_text().split()[1])
        except OSError:
            continue
    return told
