# SPDX-License-Identifier: Apache-2.0
"""Figures of the migration cases, from runs that are made up."""

from __future__ import annotations

from pathlib import Path

import pytest

from vdpa_net.bench.case import SUBJECT
from vdpa_net.bench.migrations import REFERENCE, Rounds, Runs, marks_per_s


def a_round(gap_ms: float, marked: tuple[int, int] = (0, 0)) -> dict[str, object]:
    logs = {
        f"device_{side}": {"log": {"pages_marked": count}} for side, count in zip("AB", marked, strict=True)
    }
    return {"gap_ms": gap_ms, "total_time_ms": 500, **logs}


def test_each_case_counts_each_run_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[bool] = []

    def migrate(_runs: Runs, is_reference: bool) -> Rounds:
        made.append(is_reference)
        return [a_round(float(len(made)))]

    monkeypatch.setattr(Runs, "_migrate", migrate)
    runs = Runs(tmp_path, rounds=1)
    first, second = (runs.case(key, key, "ms", lambda rounds: rounds[0]["gap_ms"]) for key in ("a", "b"))
    assert [first.contestants[who]() for who in (SUBJECT, REFERENCE, SUBJECT)] == [1.0, 2.0, 3.0]
    assert [second.contestants[who]() for who in (SUBJECT, REFERENCE, SUBJECT)] == [1.0, 2.0, 3.0]
    assert made == [False, True, False]


def test_marks_are_those_of_both_devices_over_all_rounds() -> None:
    # The counters go on: side A marked 30 pages in round 1, side B 20 in round 2.
    assert marks_per_s([a_round(1, (30, 0)), a_round(1, (30, 20))]) == 50.0
