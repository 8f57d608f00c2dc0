# SPDX-License-Identifier: Apache-2.0
"""A case: contestants that do the same work in turns, and the ratios that are wanted of their medians."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from itertools import count
from typing import Any

from vdpa_net.errors import LabError

SUBJECT = "vdpa-net"

Take = Callable[[], float]
"""Take one sample, in the unit of the case."""


@dataclass(frozen=True)
class Goal:
    """A ratio of the subject's median to that of another contestant: `at_least` or `at_most` so much."""

    versus: str
    at_least: float | None = None
    at_most: float | None = None

    def holds(self, ratio: float) -> bool:
        """Whether a ratio is what was wanted."""
        above = self.at_least is None or ratio >= self.at_least
        return above and (self.at_most is None or ratio <= self.at_most)

    @property
    def short(self) -> str:
        """The ratio that is wanted, without the other's name."""
        return f"<= {self.at_most:g}" if self.at_least is None else f">= {self.at_least:g}"

    def __str__(self) -> str:
        return f"{self.short} of {self.versus}"


@dataclass(frozen=True)
class Bound:
    """A limit in the unit of the case, where the goal is absolute."""

    at_most: float

    def holds(self, value: float) -> bool:
        """Whether a median keeps to it."""
        return value <= self.at_most

    def __str__(self) -> str:
        return f"<= {self.at_most:g}"


class Shared:
    """Samples that several figures are told of. Each figure has each sample once, in the same order."""

    def __init__(self, take: Callable[[], Mapping[str, float]]) -> None:
        self._take = take
        self._taken: list[Mapping[str, float]] = []

    def figure(self, name: str) -> Take:
        """What takes the next sample's figure, and the sample itself if no other figure did so before."""
        turns = count()
        return lambda: self._sample(next(turns))[name]

    def _sample(self, turn: int) -> Mapping[str, float]:
        if turn == len(self._taken):
            self._taken.append(self._take())
        return self._taken[turn]


@dataclass(frozen=True)
class Case:
    """What is measured. `key` names it in the JSON result; contestants are in the order of their turns.

    What is before the first "-" of the key is the case's family: the cases of one picture and one table.
    `subject` is the contestant that the goals are about. `may_be_zero`: nothing is a result (packets lost),
    not a contestant that does not work. `max_rounds`: samples that are enough, where one takes long.
    """

    key: str
    title: str
    unit: str
    contestants: Mapping[str, Take] = field(default_factory=dict)
    goals: tuple[Goal, ...] = ()
    bound: Bound | None = None
    subject: str = SUBJECT
    may_be_zero: bool = False
    max_rounds: int | None = None

    @property
    def family(self) -> str:
        """What is before the first "-" of the key."""
        return self.key.partition("-")[0]


@dataclass
class Series:
    """The samples of one contestant."""

    samples: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """The middle of the samples."""
        return statistics.median(self.samples)

    def to_json(self) -> dict[str, object]:
        """Median, extremes and all samples."""
        return {
            "median": self.median,
            "min": min(self.samples),
            "max": max(self.samples),
            "samples": self.samples,
        }


@dataclass
class CaseResult:
    """A case that was run."""

    case: Case
    series: dict[str, Series]

    def ratio(self, versus: str) -> float:
        """The subject's median by another's. Raises LabError where the other did nothing."""
        own, other = self.series[self.case.subject].median, self.series[versus].median
        if other == 0 and self.case.may_be_zero:
            return math.inf if own else 1.0
        if other == 0:
            raise LabError(f"{self.case.key}: {versus} measured 0 {self.case.unit}; expected more")
        return own / other

    def ratios(self) -> dict[str, float]:
        """The subject's median by that of each other contestant."""
        return {name: self.ratio(name) for name in self.series if name != self.case.subject}

    def goal(self, versus: str) -> Goal | None:
        """What is wanted of the ratio to another."""
        return next((goal for goal in self.case.goals if goal.versus == versus), None)

    def missed(self) -> list[str]:
        """The goals that do not hold, in words."""
        words = [
            f"{self.ratio(goal.versus):.2f}, goal {goal}"
            for goal in self.case.goals
            if not goal.holds(self.ratio(goal.versus))
        ]
        if self.case.bound and not self.case.bound.holds(self.series[self.case.subject].median):
            median = self.series[self.case.subject].median
            words.append(f"{median:.3g} {self.case.unit}, goal {self.case.bound}")
        return words

    def to_json(self) -> dict[str, object]:
        """Everything, for --json."""
        return {
            "key": self.case.key,
            "title": self.case.title,
            "unit": self.case.unit,
            "subject": self.case.subject,
            "series": {name: series.to_json() for name, series in self.series.items()},
            "ratios": self.ratios(),
            "goals": [asdict(goal) for goal in self.case.goals],
            "bound": None if self.case.bound is None else self.case.bound.at_most,
            "may_be_zero": self.case.may_be_zero,
            "missed": self.missed(),
        }

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> CaseResult:
        """What `to_json` gave; its case can't be run again. Raises KeyError, TypeError for other things."""
        case = Case(
            key=told["key"],
            title=told["title"],
            unit=told["unit"],
            goals=tuple(Goal(**goal) for goal in told["goals"]),
            bound=None if told["bound"] is None else Bound(told["bound"]),
            subject=told["subject"],
            may_be_zero=told["may_be_zero"],
        )
        return cls(case, {name: Series(series["samples"]) for name, series in told["series"].items()})


def run_case(case: Case, rounds: int) -> CaseResult:
    """Let the contestants take turns. Raises LabError where a sample can't be taken."""
    series = {name: Series() for name in case.contestants}
    for _ in range(min(rounds, case.max_rounds or rounds)):
        for name, take in case.contestants.items():
            series[name].samples.append(take())
    return CaseResult(case, series)
