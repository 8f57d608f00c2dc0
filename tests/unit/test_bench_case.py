# SPDX-License-Identifier: Apache-2.0
"""Cases of the bench: turns, medians, ratios and goals, with contestants that are made up."""

from __future__ import annotations

import pytest

from vdpa_net.bench.case import SUBJECT, Bound, Case, CaseResult, Goal, Series, Shared, run_case
from vdpa_net.bench.report import Report
from vdpa_net.bench.run import Measured
from vdpa_net.errors import LabError, MissingTool

PEER = "peer"


def result(subject: list[float], peer: list[float], *goals: Goal, bound: Bound | None = None) -> CaseResult:
    case = Case("key", "title", "Mframes/s", {SUBJECT: lambda: 0.0, PEER: lambda: 0.0}, goals, bound)
    return CaseResult(case, {SUBJECT: Series(subject), PEER: Series(peer)})


def test_contestants_take_turns() -> None:
    turns: list[str] = []

    def take(name: str) -> float:
        turns.append(name)
        return float(len(turns))

    case = Case("key", "title", "us", {SUBJECT: lambda: take(SUBJECT), PEER: lambda: take(PEER)})
    measured = run_case(case, rounds=2)
    assert turns == [SUBJECT, PEER, SUBJECT, PEER]
    assert measured.series[PEER].samples == [2.0, 4.0]


def test_a_ratio_is_that_of_the_medians_and_not_of_the_extremes() -> None:
    assert result([1, 100, 2], [4, 4, 400]).ratio(PEER) == 0.5


@pytest.mark.parametrize(
    ("goal", "holds"),
    [
        (Goal(PEER, at_least=0.5), True),
        (Goal(PEER, at_least=0.51), False),
        (Goal(PEER, at_most=0.5), True),
        (Goal(PEER, at_most=0.49), False),
    ],
)
def test_a_goal_that_is_missed_is_told_with_the_ratio(goal: Goal, holds: bool) -> None:
    missed = result([2], [4], goal).missed()
    assert missed == ([] if holds else [f"0.50, goal {goal}"])


def test_a_bound_is_held_against_the_median() -> None:
    assert result([10, 20, 90], [1], bound=Bound(20)).missed() == []
    assert result([10, 21, 22], [1], bound=Bound(20)).missed() == ["21 Mframes/s, goal <= 20"]


def test_a_peer_that_does_nothing_is_an_error_and_no_infinite_ratio() -> None:
    with pytest.raises(LabError, match="peer measured 0"):
        result([1], [0]).ratio(PEER)


def test_the_table_says_medians_ratio_and_goal() -> None:
    measured = result([1, 2, 3], [4, 4, 4], Goal(PEER, at_least=1.0))
    report = Report({"processor": "P", "cores": 2}, 3, 1.0, [measured])
    cells = [list(column.cells) for column in report.table().columns]
    assert cells[1] == [SUBJECT, PEER]
    assert cells[2] == ["2 [1 to 3] Mframes/s", "4 [4 to 4] Mframes/s"]
    assert cells[3] == ["", "0.50"]
    assert cells[4] == ["", "[red]missed: >= 1 of peer[/]"]
    assert report.missed == [measured]


def test_nothing_lost_is_a_result_where_a_case_counts_losses() -> None:
    takes = {SUBJECT: lambda: 0.0, PEER: lambda: 0.0}
    case = Case("lost", "lost", "packets", takes, (Goal(PEER, at_most=1.0),), may_be_zero=True)
    assert CaseResult(case, {SUBJECT: Series([0]), PEER: Series([0])}).missed() == []
    assert CaseResult(case, {SUBJECT: Series([1]), PEER: Series([0])}).missed() == ["inf, goal <= 1 of peer"]


def test_a_sample_that_two_figures_are_told_of_is_taken_once() -> None:
    taken: list[int] = []

    def take() -> dict[str, float]:
        taken.append(len(taken))
        return {"pps": 10.0 * len(taken), "us": 1.0 * len(taken)}

    shared = Shared(take)
    first, second = shared.figure("pps"), shared.figure("us")
    assert [first(), first(), second(), second(), second()] == [10, 20, 1, 2, 3]
    assert len(taken) == 3


def test_a_case_that_takes_long_has_no_more_rounds_than_it_wants() -> None:
    case = Case("key", "title", "us", {SUBJECT: lambda: 1.0}, max_rounds=2)
    assert len(run_case(case, rounds=5).series[SUBJECT].samples) == 2
    assert len(run_case(case, rounds=1).series[SUBJECT].samples) == 1


def test_a_case_that_can_not_be_measured_leaves_the_others_alone() -> None:
    def fail() -> float:
        raise LabError("nobody there")

    measured = Measured()
    for key, take in (("a", lambda: 1.0), ("b", fail), ("c", lambda: 0.0), ("d", lambda: 2.0)):
        measured.add(Case(key, key, "us", {SUBJECT: lambda: 1.0, PEER: take}), rounds=1)
    assert [result.case.key for result in measured.results] == ["a", "d"]
    assert measured.failures == ["b: nobody there", f"c: c: {PEER} measured 0 us; expected more"]


def test_a_missing_peer_ends_the_run() -> None:
    def fail() -> float:
        raise MissingTool("no testpmd: run `vdpa-net lab build`")

    with pytest.raises(MissingTool, match="lab build"):
        Measured().add(Case("a", "a", "us", {SUBJECT: fail}), rounds=1)
