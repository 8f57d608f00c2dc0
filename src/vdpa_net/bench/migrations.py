# SPDX-License-Identifier: Apache-2.0
"""`vdpa-net migrate` on our devices and, in turns, on QEMU's own virtio-net: same guest, taps and traffic.

A sample is a round of such a run, which times the gap. A run sets up the whole lab, so it has several.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from vdpa_net.bench.case import SUBJECT, Case, Goal, Take
from vdpa_net.errors import LabError
from vdpa_net.lab.migrate.topology import SIDE_NAMES

REFERENCE = "QEMU virtio-net on a tap"
RUN_SECONDS = 600
LAST_LINES = 15


Migration = Mapping[str, Any]
"""What `vdpa-net migrate --json` tells of a round."""
Figure = Callable[[Migration], float]


class Runs:
    """Rounds of migrations, each counted once by every case that is made of them.

    Runs of `rounds` rounds each: those of the device and of the reference follow each other, so the rounds
    that are compared are as far apart as a run takes.
    """

    def __init__(self, directory: Path, rounds: int, runs: int) -> None:
        self._directory = directory
        self._rounds = rounds
        self._max_rounds = rounds * runs
        self._migrations: dict[str, list[Migration]] = {SUBJECT: [], REFERENCE: []}

    def case(self, key: str, title: str, unit: str, figure: Figure, **more: Any) -> Case:
        """A case about a figure of both contestants, which ours shall not exceed."""
        contestants = {who: self.taker(who, figure) for who in self._migrations}
        more = {"goals": (Goal(REFERENCE, at_most=1.0),), **more}
        return self._case(key, title, unit, contestants, **more)

    def lone_case(self, key: str, title: str, unit: str, figure: Figure) -> Case:
        """A case about a figure that only the device has."""
        return self._case(key, title, unit, {SUBJECT: self.taker(SUBJECT, figure)})

    def _case(self, key: str, title: str, unit: str, contestants: Mapping[str, Take], **more: Any) -> Case:
        more = {"max_rounds": self._max_rounds, "is_paced": False, **more}
        return Case(f"migration-{key}", f"migration, {title}", unit, contestants, **more)

    def taker(self, who: str, figure: Figure) -> Callable[[], float]:
        """What takes a sample: a figure of this contestant's next round."""
        turns = count()
        return lambda: figure(self._migration(who, next(turns)))

    def _migration(self, who: str, turn: int) -> Migration:
        migrations = self._migrations[who]
        if turn == len(migrations):
            migrations += self._migrate(who == REFERENCE)
        return migrations[turn]

    def _migrate(self, is_reference: bool) -> list[Migration]:
        result = self._directory / "migration.json"
        words = ["migrate", "--qemu", "image", "--gap-only", "--rounds", str(self._rounds)]
        words += ["--json", str(result), *(["--reference"] if is_reference else [])]
        command = [sys.executable, "-m", "vdpa_net", *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=RUN_SECONDS, check=False)
        if done.returncode != 0:
            last = "\n".join((done.stdout + done.stderr).splitlines()[-LAST_LINES:])
            raise LabError(f"vdpa-net {' '.join(words)} ended with {done.returncode}:\n{last}")
        rounds: list[Migration] = json.loads(result.read_text())["context"]["rounds"]
        return rounds if is_reference else with_marks(rounds)


def with_marks(rounds: Sequence[Migration]) -> list[Migration]:
    """Rounds with the pages that our devices marked in each: the counters of a device go on."""
    told: list[Migration] = []
    before = 0
    for migration in rounds:
        marked = sum(migration[f"device_{side}"]["log"]["pages_marked"] for side in SIDE_NAMES)
        told.append({**migration, "pages_marked": marked - before})
        before = marked
    return told


@contextmanager
def migration_cases(directory: Path, *, quick: bool) -> Iterator[list[Case]]:
    """The gap that traffic sees, QMP's downtime, packets lost, and pages that the device marks meanwhile."""
    runs = Runs(directory, rounds=3, runs=1 if quick else 3)
    yield [
        runs.case("gap", "gap in the guest's packets", "ms", _number("gap_ms")),
        runs.case("downtime", "downtime by QMP", "ms", _number("downtime_ms")),
        runs.case("lost", "packets to the guest lost", "packets", _number("lost_in_gap"), may_be_zero=True),
        runs.lone_case("marks", "pages marked by the device", "pages/s", marks_per_s),
    ]


def _number(name: str) -> Figure:
    return lambda migration: float(migration[name])


def marks_per_s(migration: Migration) -> float:
    """Pages that the devices marked while they logged, by the length of the migration."""
    return float(migration["pages_marked"]) * 1000.0 / float(migration["total_time_ms"])
