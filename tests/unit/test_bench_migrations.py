# SPDX-License-Identifier: Apache-2.0
"""Figures of the migration cases, from runs that are made up."""

from __future__ import annotations

from pathlib import Path

import pytest

from vdpa_net.bench.case import SUBJECT
from vdpa_net.bench.migrations import REFERENCE, Migration, Runs, marks_per_s, with_marks
from vdpa_net.bench.rounds import run_case


def a_round(gap_ms: float, marked: tuple[int, int] = (0, 0)) -> dict[str, object]:
    logs = {
        f"device_{side}": {"log": {"pages_marked": count}} for side, count in zip("AB", marked, strict=True)
    }
    return {"gap_ms": gap_ms, "total_time_ms": 500, **logs}


def test_each_case_counts_each_round_of_each_run_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[bool] = []

    def migrate(_runs: Runs, is_reference: bool) -> list[Migration]:
        made.append(is_reference)
        return [a_round(10.0 * len(made)), a_round(10.0 * len(made) + 1)]

    monkeypatch.setattr(Runs, "_migrate", migrate)
    runs = Runs(tmp_path, rounds=2, runs=2)
    first, second = (runs.case(key, key, "ms", lambda migration: migration["gap_ms"]) for key in ("a", "b"))
    for case in (first, second):
        assert run_case(case, 9).series[SUBJECT].samples == [10.0, 11.0, 30.0, 31.0]
        assert [str(goal) for goal in case.goals] == [f"<= 1 of {REFERENCE}"]
    assert made == [False, True, False, True]


def test_marks_are_those_of_both_devices_in_each_round() -> None:
    # The counters go on: side A marked 30 pages in round 1, side B 20 in round 2.
    rounds = with_marks([a_round(1, (30, 0)), a_round(1, (30, 20))])
    assert [marks_per_s(migration) for migration in rounds] == [60.0, 40.0]
