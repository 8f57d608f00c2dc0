# SPDX-License-Identifier: Apache-2.0
"""Rounds of the bench: order, pace, and rounds that are taken again, with contestants that are made up."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from vdpa_net.bench.case import SUBJECT, Case
from vdpa_net.bench.pace import Evenness, Pace, unevenness
from vdpa_net.bench.rounds import MOST_UNEVEN, RETAKES, in_turn, run_case

PEER, LIMIT = "peer", "limit"
FAST, SLOW = 35.0, 65.0


class Machine:
    """Its pace changes before the probes of which the numbers are told; samples count up."""

    def __init__(self, changes: set[int]) -> None:
        self.changes = changes
        self.probes = 0
        self.turns: list[str] = []
        self._is_slow = False

    def probe(self) -> Pace:
        self._is_slow ^= self.probes in self.changes
        self.probes += 1
        return (FAST, SLOW if self._is_slow else FAST)

    def case(self, *names: str, is_paced: bool = True, max_rounds: int | None = None) -> Case:
        def take(name: str) -> float:
            self.turns.append(name)
            return float(len(self.turns))

        takes = {name: lambda name=name: take(name) for name in names}
        return Case("key", "title", "us", takes, is_paced=is_paced, max_rounds=max_rounds)


def test_the_order_of_the_turns_alternates_by_round() -> None:
    machine = Machine(set())
    measured = run_case(machine.case(SUBJECT, PEER, LIMIT), 3, machine.probe)
    assert machine.turns == [SUBJECT, PEER, LIMIT, LIMIT, PEER, SUBJECT, SUBJECT, PEER, LIMIT]
    assert measured.series[SUBJECT].samples == [1, 6, 7]
    assert measured.series[LIMIT].samples == [3, 4, 9]
    assert list(in_turn({"a": 1, "b": 2}, 1).items()) == [("b", 2), ("a", 1)]


def test_a_round_in_which_the_pace_changes_is_taken_again() -> None:
    # Three probes a round of two: the pace changes between the samples of the second one.
    machine = Machine({5})
    measured = run_case(machine.case(SUBJECT, PEER), 2, machine.probe)
    assert machine.turns == [SUBJECT, PEER, PEER, SUBJECT, PEER, SUBJECT]
    assert measured.series[SUBJECT].samples == [1, 6]
    assert measured.series[PEER].samples == [2, 5]
    assert measured.evenness == Evenness(rounds=2, retaken=1, uneven=0, fastest_us=FAST, slowest_us=SLOW)


def test_a_pace_that_never_rests_ends_the_retaking_and_is_told() -> None:
    """A round is taken again three times at most, all rounds of a case half as often as it has rounds."""
    machine = Machine(set(range(1000)))
    measured = run_case(machine.case(SUBJECT, PEER), 6, machine.probe)
    assert len(machine.turns) == 2 * (6 + 3)
    assert machine.turns[: 2 * (1 + RETAKES)] == [SUBJECT, PEER] * (1 + RETAKES)
    assert (measured.evenness.retaken, measured.evenness.uneven) == (3, 6)
    assert "3 rounds taken again for it, 6 of 6 uneven" in str(measured.evenness)


def test_the_most_even_attempt_is_kept_where_none_is_even() -> None:
    paces = iter([(1.0, pace) for pace in (10, 20, 10, 10, 14, 10, 10, 15, 10, 10, 16, 10)])
    machine = Machine(set())
    measured = run_case(machine.case(SUBJECT, PEER), 6, lambda: next(paces, (1.0, 10.0)))
    # Of the first round the second attempt.
    assert measured.series[SUBJECT].samples[0] == 3
    assert (measured.evenness.slowest_us, measured.evenness.retaken, measured.evenness.uneven) == (14, 3, 1)


@pytest.mark.parametrize("names", [(SUBJECT,), (SUBJECT, PEER)])
def test_what_is_compared_with_nothing_or_at_any_pace_is_taken_once(names: tuple[str, ...]) -> None:
    machine = Machine(set(range(1000)))
    measured = run_case(machine.case(*names, is_paced=len(names) == 1), 2, machine.probe)
    assert len(machine.turns) == 2 * len(names)
    assert (machine.probes, measured.evenness) == (0, Evenness(rounds=2))
    assert str(measured.evenness) == "pace of the processor not probed"


def test_a_case_that_takes_long_has_no_more_rounds_than_it_wants() -> None:
    machine = Machine(set())
    assert len(run_case(machine.case(SUBJECT, max_rounds=2), 5).series[SUBJECT].samples) == 2
    assert len(run_case(machine.case(SUBJECT, max_rounds=2), 1).series[SUBJECT].samples) == 1


def test_the_pace_is_uneven_by_the_processor_that_changes_most() -> None:
    assert unevenness([(10, 30), (11, 60), (10, 45)]) == 2.0
    assert unevenness([(20, 30), (10, 30)]) == 2.0
    assert unevenness([]) == 1.0
    assert 1.0 < MOST_UNEVEN < SLOW / FAST


def test_the_pace_of_a_run_is_that_of_all_its_cases() -> None:
    def each() -> Iterator[Evenness]:
        yield Evenness(5, 1, 0, 35.0, 40.0)
        yield Evenness(3)
        yield Evenness(5, 2, 1, 36.0, 70.0)

    total = sum(each(), Evenness())
    assert total == Evenness(13, 3, 1, 35.0, 70.0)
    assert str(total) == "pace of the processor 1 to 2.00, 3 rounds taken again for it, 1 of 13 uneven"
