# SPDX-License-Identifier: Apache-2.0
"""Cases of the bench: turns, medians, ratios and goals, with contestants that are made up."""

from __future__ import annotations

import pytest

from vdpa_net.bench.case import SUBJECT, Bound, Case, CaseResult, Goal, Series, Shared
from vdpa_net.errors import LabError

PEER = "peer"


def result(subject: list[float], peer: list[float], *goals: Goal, bound: Bound | None = None) -> CaseResult:
    case = Case("key", "title", "Mframes/s", {SUBJECT: lambda: 0.0, PEER: lambda: 0.0}, goals, bound)
    return CaseResult(case, {SUBJECT: Series(subject), PEER: Series(peer)})


def test_a_ratio_is_the_median_of_those_of_the_rounds() -> None:
    # The second half of the run was at half of the pace: the ratio of the medians would be 1.0.
    ratio = result([8, 8, 3, 4], [10, 4, 4, 5]).ratio(PEER)
    assert (ratio.median, ratio.min, ratio.max) == (0.8, 0.75, 2.0)


def test_a_ratio_of_one_round_has_no_spread_to_tell() -> None:
    assert str(result([1], [4]).ratio(PEER)) == "0.25"
    assert str(result([1, 2], [4, 4]).ratio(PEER)) == "0.38 [0.25 to 0.50]"


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


def test_a_miss_is_told_in_digits_that_show_it() -> None:
    assert result([10, 20.02, 22], [1], bound=Bound(20)).missed() == ["20.02 Mframes/s, goal <= 20"]
    missed = result([0.9496], [1], Goal(PEER, at_least=0.95)).missed()
    assert missed == ["0.9496, goal >= 0.95 of peer"]


def test_a_peer_that_does_nothing_is_an_error_and_no_infinite_ratio() -> None:
    with pytest.raises(LabError, match="peer measured 0"):
        result([1, 1], [1, 0]).ratio(PEER)


def test_a_figure_has_three_digits_or_all_before_the_point() -> None:
    assert str(Series([12345.6, 0.012345, 99.95])) == "100 [0.0123 to 12346]"


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
