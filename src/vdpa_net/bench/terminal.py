# SPDX-License-Identifier: Apache-2.0
"""A result for people: a table for 80 columns, the goals that are missed, and how many hold.

Where the output goes to a file, a line is as long as it has to be.
"""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.text import Text

from vdpa_net.bench.case import CaseResult
from vdpa_net.bench.families import by_family, title
from vdpa_net.bench.report import Report

HEAD = ("", "median", "min-max", "ratio", "min-max", "goal")
RIGHT_ALIGNED = (False, True, False, True, False, False)
INDENT = 2
LEAST_NAME = 20
"""Columns of a name, however narrow the terminal is."""


@dataclass(frozen=True)
class Line:
    """A contestant of a case, in the columns of HEAD; without a goal `holds` is None."""

    cells: tuple[str, ...]
    holds: bool | None = None

    @property
    def style(self) -> str:
        """That of the goal."""
        return {None: "", True: "green", False: "bold red"}[self.holds]


def print_report(report: Report, console: Console) -> None:
    """The machine, and for each case its title and a line for each contestant."""
    width = width_of(console)
    for line in table(report, width):
        console.print(line, soft_wrap=width is None, highlight=False)


def print_goals(report: Report, console: Console) -> None:
    """The goals that are missed, and in the last line how many there are."""
    width = width_of(console)
    for line in goals(report):
        console.print(line, soft_wrap=width is None, highlight=False)


def width_of(console: Console) -> int | None:
    """Columns of a terminal, or of what COLUMNS says is one; None: a file."""
    return console.width if console.is_terminal or "COLUMNS" in os.environ else None


def table(report: Report, width: int | None) -> Iterator[Text]:
    """The lines of all cases, by family; `width` None: each as long as it has to be."""
    for part in report.conditions.split("; "):
        yield Text(part, style="italic")
    lines = {result.case.key: list(case_lines(result)) for result in report.results}
    widths = column_widths([Line(HEAD), *(line for members in lines.values() for line in members)], width)
    yield Text("ratio: the first line of a case by each other one, median of the rounds' ratios", "italic")
    yield Text()
    yield from _row(Line(HEAD), widths, "dim")
    for family, results in by_family(report.results).items():
        yield Text(f"\n{title(family)}\n{'-' * len(title(family))}", style="bold")
        for result in results:
            yield Text(f"\n{result.case.title}, {result.case.unit}", style="bold")
            for line in lines[result.case.key]:
                yield from _row(line, widths)


def case_lines(result: CaseResult) -> Iterator[Line]:
    """A line for each contestant, with the ratio of the subject to it."""
    case = result.case
    for name, series in result.series.items():
        figure = (name, series.middle, series.range)
        bound = case.bound if name == case.subject else None
        if bound:
            holds = bound.holds(series.median)
            told = bound.words(series.median)
            yield Line((name, told, series.range, "", "", _verdict(str(bound), holds)), holds)
        elif name == case.subject:
            yield Line((*figure, "", "", ""))
        else:
            ratio, goal = result.ratio(name), result.goal(name)
            if goal is None:
                yield Line((*figure, ratio.middle, ratio.range, ""))
            else:
                holds = goal.holds(ratio.median)
                told = goal.words(ratio.median)
                yield Line((*figure, told, ratio.range, _verdict(goal.short, holds)), holds)


def goals(report: Report) -> Iterator[Text]:
    """What a person wants to know of a run, last: which goals are missed, and how many hold."""
    wanted = sum(result.wanted for result in report.results)
    missed = [(result.case.key, words) for result in report.results for words in result.missed()]
    if missed:
        yield Text("\nMissed goals, by the keys of their cases (--only KEY measures one again):")
    for key, words in missed:
        yield Text(f"  {key}: {words}", style="red")
    if report.duration:
        yield Text(f"\n{report.duration}")
    tail = f", {len(missed)} missed" if missed else ""
    told = f"{wanted - len(missed)} of {wanted} goals reached{tail}" if wanted else "no case has a goal"
    failed = f"; {len(report.failures)} could not be measured" if report.failures else ""
    style = "bold red" if missed or report.failures else "bold green" if wanted else "bold"
    yield Text(f"\n{told}{failed}", style=style)


def column_widths(lines: Sequence[Line], width: int | None) -> list[int]:
    """What each column needs; where the terminal has less, the names make room, and are folded."""
    widths = [max(len(line.cells[column]) for line in lines) for column in range(len(HEAD))]
    if width is not None:
        others = INDENT + sum(widths[1:]) + len(widths) - 1
        widths[0] = min(widths[0], max(LEAST_NAME, width - others))
    return widths


def _row(line: Line, widths: Sequence[int], style: str = "") -> Iterator[Text]:
    """The line, and below it what is left of a name that does not fit."""
    name, *rest = textwrap.wrap(line.cells[0], widths[0]) or [""]
    cells = [
        cell.rjust(width) if is_right else cell.ljust(width)
        for cell, width, is_right in zip((name, *line.cells[1:-1]), widths, RIGHT_ALIGNED, strict=False)
    ]
    text = Text(" " * INDENT + " ".join(cells), style=style)
    text.append(f" {line.cells[-1]}" if line.cells[-1] else "", style=line.style)
    text.rstrip()
    yield text
    for more in rest:
        yield Text(" " * (INDENT + 2) + more, style=style)


def _verdict(goal: str, holds: bool) -> str:
    short = goal.replace(" ", "")
    return f"ok {short}" if holds else f"MISSED {short}"
