# SPDX-License-Identifier: Apache-2.0
"""`vdpa-net migrate` on our devices and, in turns, on QEMU's own virtio-net: same guest, taps and traffic.

A sample is a run of its own with a few rounds that time the gap; the median of these is what counts.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from vdpa_net.bench.case import SUBJECT, Case, Goal
from vdpa_net.errors import LabError
from vdpa_net.lab.migrate.topology import SIDE_NAMES

REFERENCE = "QEMU virtio-net on a tap"
RUN_SECONDS = 600
MAX_RUNS = 3
LAST_LINES = 15


Rounds = Sequence[Mapping[str, Any]]
Figure = Callable[[Rounds], float]


class Runs:
    """Runs of the migration, each counted once by every case that is made of them."""

    def __init__(self, directory: Path, rounds: int) -> None:
        self._directory = directory
        self._rounds = rounds
        self._runs: dict[str, list[Rounds]] = {SUBJECT: [], REFERENCE: []}

    def case(self, key: str, title: str, unit: str, figure: Figure, **more: Any) -> Case:
        """A case about a figure of both contestants, which ours shall not exceed."""
        contestants = {who: self.taker(who, figure) for who in self._runs}
        goals = (Goal(REFERENCE, at_most=1.0),)
        more = {"max_rounds": MAX_RUNS, **more}
        return Case(f"migration-{key}", f"migration, {title}", unit, contestants, goals, **more)

    def taker(self, who: str, figure: Figure) -> Callable[[], float]:
        """What takes a sample: a figure of this contestant's next run."""
        turns = count()
        return lambda: figure(self._run(who, next(turns)))

    def _run(self, who: str, turn: int) -> Rounds:
        runs = self._runs[who]
        if turn == len(runs):
            runs.append(self._migrate(who == REFERENCE))
        return runs[turn]

    def _migrate(self, is_reference: bool) -> Rounds:
        result = self._directory / "migration.json"
        words = ["migrate", "--qemu", "image", "--gap-only", "--rounds", str(self._rounds)]
        words += ["--json", str(result), *(["--reference"] if is_reference else [])]
        command = [sys.executable, "-m", "vdpa_net", *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=RUN_SECONDS, check=False)
        if done.returncode != 0:
            last = "\n".join((done.stdout + done.stderr).splitlines()[-LAST_LINES:])
            raise LabError(f"vdpa-net {' '.join(words)} ended with {done.returncode}:\n{last}")
        rounds: Rounds = json.loads(result.read_text())["context"]["rounds"]
        return rounds


@contextmanager
def migration_cases(directory: Path, *, quick: bool) -> Iterator[list[Case]]:
    """The gap that traffic sees, QMP's downtime, packets lost, and pages that the device marks meanwhile."""
    # A run sets up the whole lab, so more rounds in fewer runs.
    runs = Runs(directory, 2 if quick else 6)
    yield [
        runs.case("gap", "gap in the guest's packets", "ms", _median("gap_ms")),
        runs.case("downtime", "downtime by QMP", "ms", _median("downtime_ms")),
        runs.case("lost", "packets to the guest lost", "packets", _median("lost_in_gap"), may_be_zero=True),
        Case(
            "migration-marks",
            "migration, pages marked by the device",
            "pages/s",
            {SUBJECT: runs.taker(SUBJECT, marks_per_s)},
            max_rounds=MAX_RUNS,
        ),
    ]


def _median(name: str) -> Figure:
    return lambda rounds: statistics.median(float(item[name]) for item in rounds)


def marks_per_s(rounds: Rounds) -> float:
    """Pages that the devices marked while they logged, by the length of the migrations."""
    # The counters of a device go on from round to round.
    marked: int = sum(rounds[-1][f"device_{side}"]["log"]["pages_marked"] for side in SIDE_NAMES)
    return marked * 1000.0 / sum(float(item["total_time_ms"]) for item in rounds)
