# SPDX-License-Identifier: Apache-2.0
"""Pictures of a run: for each family of cases, the subject's ratio to every peer and limit, with the goals.

A goal that is missed is told by words and hatching, not by colour alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vdpa_net.bench.case import Case, CaseResult, Goal
from vdpa_net.bench.families import by_family, title
from vdpa_net.bench.report import Report
from vdpa_net.errors import MissingTool

WIDTH_INCHES = 9.5
ROW_INCHES = 0.24
FRAME_INCHES = 1.25
BAR_HEIGHT = 0.72
LONGEST_RATIO = 2.5
"""Bars of greater ratios are cut here, and say so."""
NO_GOAL, HELD, MISSED, INK, FAINT = "#8fa9c4", "#4d8f5b", "#d9846f", "#1b1f24", "#8c959f"


@dataclass(frozen=True)
class Bar:
    """One bar: its label, the ratio with its extremes, and the goal, if there is one.

    `told` is the ratio in digits that do not belie the verdict.
    """

    label: str
    ratio: float
    low: float
    high: float
    goal: str = ""
    at: float | None = None
    holds: bool = True
    told: str = ""

    @property
    def words(self) -> str:
        """What stands behind the bar."""
        goal = self.goal.replace(">=", "≥").replace("<=", "≤")
        verdict = "" if self.at is None else f", goal {goal}" if self.holds else f", MISSED {goal}"
        return f"{self.told or f'{self.ratio:.2f}'}{verdict}"


def bars(result: CaseResult) -> Iterator[Bar]:
    """A bar for each contestant but the subject, and one for the bound. Bounds of 0 have no ratio."""
    case = result.case
    own = result.series[case.subject]
    for versus, ratio in result.ratios().items():
        goal = result.goal(versus)
        if goal is None:
            yield Bar(versus, ratio.median, ratio.min, ratio.max)
        else:
            at = goal.at_most if goal.at_least is None else goal.at_least
            holds = goal.holds(ratio.median)
            told = goal.words(ratio.median)
            yield Bar(versus, ratio.median, ratio.min, ratio.max, goal.short, at, holds, told)
    if case.bound and case.bound.at_most:
        limit = case.bound.at_most
        low, median, high = (value / limit for value in (min(own.samples), own.median, max(own.samples)))
        label = f"limit of {limit:g} {case.unit}"
        told = Goal(label, at_most=1.0).words(median)
        yield Bar(label, median, low, high, "<= 1", 1.0, case.bound.holds(own.median), told)


def draw(report: Report, directory: Path) -> list[Path]:
    """A PNG and an SVG for each family that has ratios. Raises MissingTool without matplotlib."""
    pyplot = _pyplot()
    directory.mkdir(parents=True, exist_ok=True)
    written = []
    for family, cases in _cases(report).items():
        figure = _figure(pyplot, title(family), report.conditions, cases)
        for kind in ("png", "svg"):
            path = directory / f"bench-{family}.{kind}"
            # The same result gives the same file.
            figure.savefig(path, dpi=144, metadata={"Date": None} if kind == "svg" else None)
            written.append(path)
        pyplot.close(figure)
    return written


def drawn_families(report: Report) -> set[str]:
    """The families of which there is a picture."""
    return set(_cases(report))


def _cases(report: Report) -> dict[str, list[tuple[str, list[Bar]]]]:
    """Titles and bars of the cases of each family, as far as they have bars."""
    told = {
        family: [(_title(result.case), members) for result in results if (members := list(bars(result)))]
        for family, results in by_family(report.results).items()
    }
    return {family: cases for family, cases in told.items() if cases}


def _title(case: Case) -> str:
    """The case, and who is divided by the others where that is not the device."""
    return case.title if case.subject.startswith("vdpa-net") else f"{case.title}: {case.subject}, by"


def _pyplot() -> Any:
    try:
        import matplotlib as mpl  # noqa: PLC0415

        mpl.use("Agg")
        from matplotlib import pyplot  # noqa: PLC0415
    except ImportError as error:
        raise MissingTool("pictures need matplotlib: pip install 'vdpa-net[plot]'") from error
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "vdpa-net", "hatch.linewidth": 0.8})
    mpl.rcParams.update({"font.family": ["DejaVu Sans", "sans-serif"], "font.size": 9})
    return pyplot


def _figure(pyplot: Any, name: str, conditions: str, cases: list[tuple[str, list[Bar]]]) -> Any:
    rows = sum(1 + len(members) for _, members in cases)
    height = FRAME_INCHES + ROW_INCHES * rows
    figure, axes = pyplot.subplots(figsize=(WIDTH_INCHES, height))
    figure.subplots_adjust(left=0.29, right=0.8, top=1 - 0.75 / height, bottom=0.5 / height)
    longest = min(LONGEST_RATIO, max(1.2, 1.02 * max(bar.high for _, members in cases for bar in members)))
    position, labels = 0, []
    for text, members in cases:
        # The title of a case has a line of its own, from the edge of the picture on.
        edge = {"xy": (0.012, position), "xycoords": ("figure fraction", "data")}
        axes.annotate(text, **edge, va="center", weight="bold", annotation_clip=False)
        for bar in members:
            position += 1
            labels.append((position, bar.label))
            _bar(axes, position, bar, longest)
        position += 1
    axes.set_yticks([at for at, _ in labels], [label for _, label in labels], fontsize=8)
    axes.set_ylim(rows - 0.3, -0.7)
    axes.set_xlim(0, longest)
    axes.axvline(1, color=FAINT, linewidth=0.8, linestyle=(0, (2, 3)), zorder=0)
    axes.set_xlabel(
        "median of the rounds' ratios; thin line: smallest to largest; black mark: goal; »: bar is cut",
        fontsize=8,
    )
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    figure.text(0.012, 1 - 0.24 / height, f"vdpa-net bench: {name}", fontsize=12, weight="bold")
    # The machine, then how was measured.
    machine, _, measured = conditions.partition("; ")
    for inches, words in ((0.44, machine), (0.58, measured)):
        figure.text(0.012, 1 - inches / height, words, fontsize=6.5, color=FAINT)
    return figure


def _bar(axes: Any, position: int, bar: Bar, longest: float) -> None:
    is_cut = not math.isfinite(bar.ratio) or bar.ratio > longest
    colour = NO_GOAL if bar.at is None else HELD if bar.holds else MISSED
    style = {"color": colour} if bar.holds else {"facecolor": "white", "edgecolor": colour, "hatch": "////"}
    axes.barh(position, min(bar.ratio, longest), height=BAR_HEIGHT, **style)
    if not is_cut:
        ends = [min(bar.low, longest), min(bar.high, longest)]
        axes.plot(ends, [position] * 2, color=INK, linewidth=0.9, solid_capstyle="butt")
    if bar.at is not None and bar.at <= longest:
        axes.plot([bar.at] * 2, [position - 0.46, position + 0.46], color=INK, linewidth=2)
    weight = "normal" if bar.holds else "bold"
    place = axes.get_yaxis_transform()
    if is_cut:
        axes.text(longest, position, "»", ha="right", va="center", fontsize=14, color=INK, weight="bold")
    axes.text(1.012, position, bar.words, transform=place, va="center", fontsize=8, color=INK, weight=weight)
