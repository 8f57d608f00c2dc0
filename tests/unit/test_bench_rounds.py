# SPDX-License-Identifier: Apache-2.0
"""Rounds of the bench: order, pace, and rounds that are taken again, with contestants that are made up."""

from __future__ import annotations

import select
import subprocess
import sys
from collections.abc import Collection, Iterator

import pytest

from vdpa_net.bench.case import SUBJECT, Case, CaseResult
from vdpa_net.bench.pace import Evenness, Pace, unevenness
from vdpa_net.bench.rounds import MOST_UNEVEN, MOST_WAITED, RETAKES, Conditions, in_turn, run_case
from vdpa_net.bench.waiting import RunTime, Waits, busiest, run_times

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
    measured = run_case(machine.case(SUBJECT, PEER, LIMIT), 3, Conditions(machine.probe))
    assert machine.turns == [SUBJECT, PEER, LIMIT, LIMIT, PEER, SUBJECT, SUBJECT, PEER, LIMIT]
    assert measured.series[SUBJECT].samples == [1, 6, 7]
    assert measured.series[LIMIT].samples == [3, 4, 9]
    assert list(in_turn({"a": 1, "b": 2}, 1).items()) == [("b", 2), ("a", 1)]


def test_a_round_in_which_the_pace_changes_is_taken_again() -> None:
    # Three probes a round of two: the pace changes between the samples of the second one.
    machine = Machine({5})
    measured = run_case(machine.case(SUBJECT, PEER), 2, Conditions(machine.probe))
    assert machine.turns == [SUBJECT, PEER, PEER, SUBJECT, PEER, SUBJECT]
    assert measured.series[SUBJECT].samples == [1, 6]
    assert measured.series[PEER].samples == [2, 5]
    assert measured.evenness == Evenness(rounds=2, retaken=1, uneven=0, fastest_us=FAST, slowest_us=SLOW)


def test_a_pace_that_never_rests_ends_the_retaking_and_is_told() -> None:
    """A round is taken again three times at most, all rounds of a case half as often as it has rounds."""
    machine = Machine(set(range(1000)))
    measured = run_case(machine.case(SUBJECT, PEER), 6, Conditions(machine.probe))
    assert len(machine.turns) == 2 * (6 + 3)
    assert machine.turns[: 2 * (1 + RETAKES)] == [SUBJECT, PEER] * (1 + RETAKES)
    assert (measured.evenness.retaken, measured.evenness.uneven) == (3, 6)
    assert str(measured.evenness).endswith(", 3 rounds taken again for it, 6 of 6 uneven")


def test_the_most_even_attempt_is_kept_where_none_is_even() -> None:
    paces = iter([(1.0, pace) for pace in (10, 20, 10, 10, 14, 10, 10, 15, 10, 10, 16, 10)])
    machine = Machine(set())
    measured = run_case(machine.case(SUBJECT, PEER), 6, Conditions(lambda: next(paces, (1.0, 10.0))))
    # Of the first round the second attempt.
    assert measured.series[SUBJECT].samples[0] == 3
    assert (measured.evenness.slowest_us, measured.evenness.retaken, measured.evenness.uneven) == (14, 3, 1)


class Busy:
    """A machine on which samples wait for other work; each takes no time, so any wait is too long."""

    def __init__(self, *disturbed: int) -> None:
        self.waits = Waits()
        self.taken = 0
        self._disturbed = disturbed

    def take(self) -> float:
        if self.taken in self._disturbed:
            self.waits.add(10**9)
        self.taken += 1
        return float(self.taken)

    def run(self, rounds: int, *, is_crowded: bool = False) -> CaseResult:
        takes = {SUBJECT: self.take, PEER: self.take}
        case = Case("key", "title", "us", takes, is_crowded=is_crowded)
        return run_case(case, rounds, Conditions(lambda: (FAST, FAST), self.waits))


def test_a_round_in_which_a_sample_had_to_wait_for_other_work_is_taken_again() -> None:
    busy = Busy(3)
    measured = busy.run(3)
    assert busy.taken == 2 * (3 + 1)
    assert measured.series[SUBJECT].samples == [1, 6, 7]
    assert measured.evenness == Evenness(3, 0, 0, FAST, FAST, disturbed=1, waited=0)
    assert 0 < MOST_WAITED < 1


def test_waiting_and_pace_have_one_budget_of_retakes() -> None:
    busy = Busy(*range(1000))
    measured = busy.run(6)
    assert busy.taken == 2 * (6 + 3)
    assert (measured.evenness.disturbed, measured.evenness.waited, measured.evenness.uneven) == (3, 6, 0)


@pytest.mark.parametrize(("idle", "kept"), [((0, 1), 3.0), (range(8), 0.0)])
def test_a_round_in_which_a_contestant_did_nothing_is_taken_again(idle: Collection[int], kept: float) -> None:
    """Though one round has no budget of retakes; three times at most."""
    busy = Busy()

    def take() -> float:
        value = busy.take()
        return 0.0 if value - 1 in idle else value

    case = Case("key", "title", "us", {SUBJECT: take, PEER: lambda: 1.0})
    measured = run_case(case, 1, Conditions(lambda: (FAST, FAST), busy.waits))
    assert measured.series[SUBJECT].samples == [kept]
    assert busy.taken == (3 if kept else 1 + RETAKES)


def test_contestants_that_share_processors_are_not_judged_by_how_long_they_wait() -> None:
    busy = Busy(*range(1000))
    assert busy.run(6, is_crowded=True).evenness == Evenness(6, 0, 0, FAST, FAST)
    assert busy.taken == 2 * 6


def test_what_threads_of_a_process_have_waited_is_read_from_the_kernel() -> None:
    """Two threads that want one processor: one of them waits while the other one runs."""
    program = "import threading; [threading.Thread(target=sum, args=(iter(int, 1),)).start() for _ in 'ab']"
    processes = [subprocess.Popen(["taskset", "-c", "0", sys.executable, "-c", program]) for _ in "ab"]
    try:
        waits = Waits()
        while waits.total_ns < 1e6:
            with waits.of(processes[0].pid):
                assert processes[0].poll() is None
                select.select([], [], [], 0.01)
        assert max(told.waited_ns for told in run_times(processes[0].pid).values()) >= 1e6
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert run_times(processes[0].pid) == {}


def test_of_a_process_the_thread_that_runs_most_is_asked_how_long_it_waited() -> None:
    before = {1: RunTime(900, 50), 2: RunTime(10, 10)}
    after = {1: RunTime(901, 5000), 2: RunTime(110, 17), 3: RunTime(20, 4000)}
    assert busiest(before, after) == RunTime(100, 7)
    assert busiest({}, {}) == RunTime()


@pytest.mark.parametrize("names", [(SUBJECT,), (SUBJECT, PEER)])
def test_what_is_compared_with_nothing_or_at_any_pace_is_taken_once(names: tuple[str, ...]) -> None:
    machine = Machine(set(range(1000)))
    measured = run_case(machine.case(*names, is_paced=len(names) == 1), 2, Conditions(machine.probe))
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
        yield Evenness(5, 2, 1, 36.0, 70.0, disturbed=2, waited=1)

    total = sum(each(), Evenness())
    assert total == Evenness(13, 3, 1, 35.0, 70.0, 2, 1)
    assert str(total) == (
        "pace of the processor 1 to 2.00, 3 rounds taken again for it, 1 of 13 uneven; "
        "2 taken again for other work, 1 disturbed"
    )
