# SPDX-License-Identifier: Apache-2.0
"""Rounds: each contestant takes a sample, all at one pace of the processors, in an order that alternates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from vdpa_net.bench.case import Case, CaseResult, Series, Take
from vdpa_net.bench.pace import Evenness, Pace, Probe, unevenness

MOST_UNEVEN = 1.25
"""A round whose slowest probe takes more than this of its fastest is taken again."""
RETAKES = 3
"""So often at most, and all rounds of a case together half as often as it has rounds; then the most even
attempt counts."""

Contestant = TypeVar("Contestant")


@dataclass(frozen=True)
class Round:
    """A sample of each contestant, and the pace before, between and after them."""

    samples: Mapping[str, float]
    paces: tuple[Pace, ...] = ()

    @property
    def unevenness(self) -> float:
        """How much the pace changed within."""
        return unevenness(self.paces)

    @property
    def is_even(self) -> bool:
        """Whether its samples can be compared."""
        return self.unevenness <= MOST_UNEVEN


def run_case(case: Case, rounds: int, probe: Probe | None = None) -> CaseResult:
    """Let the contestants take turns; without a probe whatever the pace. Raises LabError where one fails."""
    series = {name: Series() for name in case.contestants}
    evenness = Evenness()
    wanted = min(rounds, case.max_rounds or rounds)
    for number in range(wanted):
        order = in_turn(case.contestants, number)
        # A lone contestant is compared with nothing.
        if probe is None or not case.is_paced or len(order) == 1:
            kept = Round({name: take() for name, take in order.items()})
            evenness += Evenness(rounds=1)
        else:
            left = (wanted + 1) // 2 - evenness.retaken
            kept, attempts = _even_round(order, probe, min(RETAKES, left))
            evenness += _evenness(kept, attempts)
        for name, samples in series.items():
            samples.samples.append(kept.samples[name])
    return CaseResult(case, series, evenness)


def in_turn(contestants: Mapping[str, Contestant], number: int) -> dict[str, Contestant]:
    """Contestants in the order of a round: A B C, then C B A, so that none is always the later one."""
    names = list(contestants)
    return {name: contestants[name] for name in (reversed(names) if number % 2 else names)}


def _even_round(order: Mapping[str, Take], probe: Probe, retakes: int) -> tuple[Round, int]:
    """The first attempt that is even, else the most even one; and how many there were."""
    attempts: list[Round] = []
    while len(attempts) <= retakes:
        attempts.append(_probed_round(order, probe))
        if attempts[-1].is_even:
            break
    return min(attempts, key=lambda attempt: attempt.unevenness), len(attempts)


def _probed_round(order: Mapping[str, Take], probe: Probe) -> Round:
    samples, paces = {}, [probe()]
    for name, take in order.items():
        samples[name] = take()
        paces.append(probe())
    return Round(samples, tuple(paces))


def _evenness(kept: Round, attempts: int) -> Evenness:
    device = [pace[-1] for pace in kept.paces]
    return Evenness(1, attempts - 1, int(not kept.is_even), min(device), max(device))
