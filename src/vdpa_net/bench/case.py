# SPDX-License-Identifier: Apache-2.0
"""A case: contestants that do the same work in turns, and the ratios that are wanted of them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import count
from typing import Any

from vdpa_net.bench.pace import Evenness
from vdpa_net.errors import LabError

SUBJECT = "vdpa-net"

MOST_DECIMALS = 6

Take = Callable[[], float]
"""Take one sample, in the unit of the case."""


@dataclass(frozen=True)
class Goal:
    """A ratio of the subject to another contestant: `at_least` or `at_most` so much."""

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

    def words(self, ratio: float) -> str:
        """A ratio in digits that do not belie the verdict: 0.948 where at least 0.95 is wanted."""
        return _told(ratio, f"{ratio:.2f}", self.holds)

    def __str__(self) -> str:
        return f"{self.short} of {self.versus}"


@dataclass(frozen=True)
class Bound:
    """A limit in the unit of the case, where the goal is absolute."""

    at_most: float

    def holds(self, value: float) -> bool:
        """Whether a median keeps to it."""
        return value <= self.at_most

    def words(self, value: float) -> str:
        """A value in digits that do not belie the verdict."""
        return _told(value, _digits(value), self.holds)

    def __str__(self) -> str:
        return f"<= {self.at_most:g}"


class Shared:
    """Samples that several figures are told of. Each figure has each sample once, in the same order."""

    def __init__(self, take: Callable[[], Mapping[Any, float]]) -> None:
        self._take = take
        self._taken: list[Mapping[Any, float]] = []

    def figure(self, name: Hashable) -> Take:
        """What takes the next sample's figure, and the sample itself if no other figure did so before."""
        turns = count()
        return lambda: self._sample(next(turns))[name]

    def _sample(self, turn: int) -> Mapping[Any, float]:
        if turn == len(self._taken):
            self._taken.append(self._take())
        return self._taken[turn]


@dataclass(frozen=True)
class Case:
    """What is measured. `key` names it in the JSON result; contestants are in the order of their turns.

    What is before the first "-" of the key is the case's family: the cases of one picture and one table.
    `subject` is the contestant that the goals are about. `may_be_zero`: nothing is a result (packets lost),
    not a contestant that does not work. `max_rounds`: samples that are enough, where one takes long.
    `is_paced`: a round is taken again where the processors' pace changed within it. Not for samples of a
    second and more, in which it always does, and not for those that come out of `Shared`. `is_crowded`: the
    contestants have more threads than processors, so that these wait for each other by themselves.
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
    is_paced: bool = True
    is_crowded: bool = False

    @property
    def family(self) -> str:
        """What is before the first "-" of the key."""
        return self.key.partition("-")[0]


def _told(value: float, short: str, holds: Callable[[float], bool]) -> str:
    """The short form, or with as many decimals as it takes to see whether it holds."""
    decimals = len(short.partition(".")[2])
    forms = (f"{value:.{more}f}" for more in range(decimals + 1, MOST_DECIMALS))
    return next((form for form in (short, *forms) if holds(float(form)) == holds(value)), repr(value))


def _digits(value: float) -> str:
    """Three of them, or all before the point."""
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


@dataclass
class Series:
    """The samples of one contestant."""

    samples: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """The middle of the samples."""
        return statistics.median(self.samples)

    @property
    def middle(self) -> str:
        """The median in three digits."""
        return _digits(self.median)

    @property
    def range(self) -> str:
        """The smallest and the largest sample; nothing where all are the same."""
        low, high = min(self.samples), max(self.samples)
        return "" if low == high else f"{_digits(low)}-{_digits(high)}"

    def __str__(self) -> str:
        low, high = min(self.samples), max(self.samples)
        spread = "" if low == high else f" [{_digits(low)} to {_digits(high)}]"
        return f"{self.middle}{spread}"

    def to_json(self) -> dict[str, object]:
        """Median, extremes and all samples."""
        return {
            "median": self.median,
            "min": min(self.samples),
            "max": max(self.samples),
            "samples": self.samples,
        }


@dataclass(frozen=True)
class Ratio:
    """The subject by another: the median of the rounds' ratios, the smallest and the largest."""

    median: float
    min: float
    max: float

    @classmethod
    def of(cls, ratios: Sequence[float]) -> Ratio:
        """Of the ratios of all rounds."""
        return cls(statistics.median(ratios), min(ratios), max(ratios))

    @property
    def middle(self) -> str:
        """The median in two decimals."""
        return f"{self.median:.2f}"

    @property
    def range(self) -> str:
        """The smallest and the largest ratio; nothing where all are the same."""
        low, high = (f"{value:.2f}" if value < 10 else f"{value:.1f}" for value in (self.min, self.max))
        return "" if self.min == self.max else f"{low}-{high}"

    def __str__(self) -> str:
        spread = "" if self.min == self.max else f" [{self.min:.2f} to {self.max:.2f}]"
        return f"{self.middle}{spread}"


@dataclass
class CaseResult:
    """A case that was run. Samples at the same place of two series are of the same round."""

    case: Case
    series: dict[str, Series]
    evenness: Evenness = field(default_factory=Evenness)

    def ratio(self, versus: str) -> Ratio:
        """The subject by another, of each round. Raises LabError where the other did nothing."""
        own, other = self.series[self.case.subject].samples, self.series[versus].samples
        return Ratio.of([self._divided(*pair, versus) for pair in zip(own, other, strict=True)])

    def _divided(self, own: float, other: float, versus: str) -> float:
        if other == 0 and self.case.may_be_zero:
            return math.inf if own else 1.0
        if other == 0:
            raise LabError(f"{self.case.key}: {versus} measured 0 {self.case.unit}; expected more")
        return own / other

    def ratios(self) -> dict[str, Ratio]:
        """The subject by each other contestant."""
        return {name: self.ratio(name) for name in self.series if name != self.case.subject}

    def goal(self, versus: str) -> Goal | None:
        """What is wanted of the ratio to another."""
        return next((goal for goal in self.case.goals if goal.versus == versus), None)

    @property
    def wanted(self) -> int:
        """How many goals it has."""
        return len(self.case.goals) + (self.case.bound is not None)

    def missed(self) -> list[str]:
        """The goals that do not hold, in words."""
        ratios = [(goal, self.ratio(goal.versus).median) for goal in self.case.goals]
        words = [f"{goal.words(ratio)}, goal {goal}" for goal, ratio in ratios if not goal.holds(ratio)]
        if self.case.bound and not self.case.bound.holds(self.series[self.case.subject].median):
            median = self.series[self.case.subject].median
            words.append(f"{self.case.bound.words(median)} {self.case.unit}, goal {self.case.bound}")
        return words

    def to_json(self) -> dict[str, object]:
        """Everything, for --json."""
        return {
            "key": self.case.key,
            "title": self.case.title,
            "unit": self.case.unit,
            "subject": self.case.subject,
            "series": {name: series.to_json() for name, series in self.series.items()},
            "ratios": {name: asdict(ratio) for name, ratio in self.ratios().items()},
            "goals": [asdict(goal) for goal in self.case.goals],
            "bound": None if self.case.bound is None else self.case.bound.at_most,
            "may_be_zero": self.case.may_be_zero,
            "missed": self.missed(),
            "evenness": asdict(self.evenness),
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
        series = {name: Series(series["samples"]) for name, series in told["series"].items()}
        return cls(case, series, Evenness(**told["evenness"]))
