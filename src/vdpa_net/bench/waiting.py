# SPDX-License-Identifier: Apache-2.0
"""How long what is measured has waited for a processor that other work had.

The pace tells of a neighbour in the same core, not of another process on the same processor: that one shows
in the time that a thread is ready to run and does not (the second number of /proc/PID/schedstat).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
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
        """Meanwhile the thread of each of these processes counts that runs most: the one that does the work.

        Others wait by themselves: those of testpmd get a signal for each frame that comes to a tap, on the
        processor on which the front end polls. One that stands still does not wait.
        """
        before = [run_times(pid) for pid in pids]
        yield
        for pid, earlier in zip(pids, before, strict=True):
            self.total_ns += busiest(earlier, run_times(pid)).waited_ns


@dataclass(frozen=True, order=True)
class RunTime:
    """How long a thread has run, and has waited to."""

    ran_ns: int = 0
    waited_ns: int = 0


def busiest(before: Mapping[int, RunTime], after: Mapping[int, RunTime]) -> RunTime:
    """What the thread that ran most did between two looks; one that is new began with nothing."""
    spent = []
    for thread, late in after.items():
        early = before.get(thread, RunTime())
        spent.append(RunTime(late.ran_ns - early.ran_ns, late.waited_ns - early.waited_ns))
    return max(spent, default=RunTime())


def run_times(pid: int) -> dict[int, RunTime]:
    """Each thread of a process since it began. Those that end meanwhile are left out."""
    told = {}
    for task in Path(f"/proc/{pid}/task").glob("*"):
        try:
            ran, waited, _turns = map(int, (task / "schedstat").read_text().split())
        except OSError:
            continue
        told[int(task.name)] = RunTime(ran, waited)
    return told
