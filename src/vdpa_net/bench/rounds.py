# SPDX-License-Identifier: Apache-2.0
"""Rounds: each contestant takes a sample, all at one pace of the processors, in an order that alternates."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from vdpa_net.bench.case import Case, CaseResult, Series, Take
from vdpa_net.bench.pace import Evenness, Pace, Probe, unevenness
from vdpa_net.bench.waiting import Waits

MOST_UNEVEN = 1.25
"""A round whose slowest probe takes more than this of its fastest is taken again."""
RETAKES = 3
"""So often at most, and all rounds of a case together half as often as it has rounds; then the most even
attempt counts."""

MOST_WAITED = 0.05
"""Nor may what is measured have waited for other work for more than this share of its sample."""

Contestant = TypeVar("Contestant")


@dataclass(frozen=True)
class Conditions:
    """What tells whether samples can be compared."""

    probe: Probe
    waits: Waits = field(default_factory=Waits)


@dataclass(frozen=True)
class Round:
    """A sample of each contestant, the pace before, between and after them, and the longest share of a sample
    that was spent waiting for other work."""

    samples: Mapping[str, float]
    paces: tuple[Pace, ...] = ()
    waited: float = 0.0

    @property
    def is_even(self) -> bool:
        """Whether one pace held throughout."""
        return unevenness(self.paces) <= MOST_UNEVEN

    @property
    def is_undisturbed(self) -> bool:
        """Whether nothing else took the processors."""
        return self.waited <= MOST_WAITED

    @property
    def is_whole(self) -> bool:
        """Whether every contestant did something. One that had no processor may not have."""
        return 0 not in self.samples.values()

    @property
    def trouble(self) -> float:
        """The larger of both by what is allowed; samples can be compared up to 1."""
        if not self.is_whole:
            return math.inf
        return max(unevenness(self.paces) / MOST_UNEVEN, self.waited / MOST_WAITED)


def run_case(case: Case, rounds: int, conditions: Conditions | None = None) -> CaseResult:
    """Let the contestants take turns; without conditions under any. Raises LabError where one fails."""
    series = {name: Series() for name in case.contestants}
    evenness = Evenness()
    wanted = min(rounds, case.max_rounds or rounds)
    for number in range(wanted):
        order = in_turn(case.contestants, number)
        # A lone contestant is compared with nothing.
        if conditions is None or not case.is_paced or len(order) == 1:
            kept = Round({name: take() for name, take in order.items()})
            evenness += Evenness(rounds=1)
        else:
            left = wanted // 2 - evenness.retaken - evenness.disturbed
            watched = conditions if not case.is_crowded else Conditions(conditions.probe)
            kept, others = _calm_round(order, watched, min(RETAKES, left))
            evenness += _evenness(kept, others)
        for name, samples in series.items():
            samples.samples.append(kept.samples[name])
    return CaseResult(case, series, evenness)


def in_turn(contestants: Mapping[str, Contestant], number: int) -> dict[str, Contestant]:
    """Contestants in the order of a round: A B C, then C B A, so that none is always the later one."""
    names = list(contestants)
    return {name: contestants[name] for name in (reversed(names) if number % 2 else names)}


def _calm_round(
    order: Mapping[str, Take], conditions: Conditions, retakes: int
) -> tuple[Round, Sequence[Round]]:
    """The first attempt without trouble, else the one with the least; and the others.

    One in which a contestant did nothing says nothing, and is taken again whatever is left of the budget.
    """
    attempts: list[Round] = []
    while len(attempts) <= retakes or (len(attempts) <= RETAKES and not attempts[-1].is_whole):
        attempts.append(_watched_round(order, conditions))
        if attempts[-1].trouble <= 1:
            break
    kept = min(attempts, key=lambda attempt: attempt.trouble)
    return kept, [attempt for attempt in attempts if attempt is not kept]


def _watched_round(order: Mapping[str, Take], conditions: Conditions) -> Round:
    samples, paces, waited = {}, [conditions.probe()], 0.0
    for name, take in order.items():
        started, before = time.monotonic_ns(), conditions.waits.total_ns
        samples[name] = take()
        spent = time.monotonic_ns() - started
        waited = max(waited, (conditions.waits.total_ns - before) / spent)
        paces.append(conditions.probe())
    return Round(samples, tuple(paces), waited)


def _evenness(kept: Round, others: Sequence[Round]) -> Evenness:
    device = [pace[-1] for pace in kept.paces]
    disturbed = sum(other.is_even for other in others)
    return Evenness(
        rounds=1,
        retaken=len(others) - disturbed,
        uneven=int(not kept.is_even),
        fastest_us=min(device),
        slowest_us=max(device),
        disturbed=disturbed,
        waited=int(not kept.is_undisturbed),
    )
