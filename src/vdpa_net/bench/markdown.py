# SPDX-License-Identifier: Apache-2.0
"""A result as Markdown: for each family its picture and a table of its cases."""

from __future__ import annotations

from collections.abc import Iterator

from vdpa_net.bench.case import CaseResult
from vdpa_net.bench.families import by_family, title
from vdpa_net.bench.report import Report

HEAD = ("| case | unit | subject | peer or limit | ratio | goal |", "|---|---|---|---|---|---|")
"""The columns; in the fourth all contestants but the subject, in the order of the last two columns."""


def figures(report: Report, images: str, drawn: set[str]) -> Iterator[str]:
    """Lines about all cases; the pictures of the families `drawn` are in `images`, seen from the page."""
    for family, results in by_family(report.results).items():
        name = title(family)
        yield from ("", f"### {name}", "")
        if family in drawn:
            yield from (f"![{name}: ratios and goals]({images}/bench-{family}.svg)", "")
        yield from HEAD
        yield from (row(result) for result in results)


def row(result: CaseResult) -> str:
    """The case as a line of the table."""
    case = result.case
    peers = [name for name in result.series if name != case.subject]
    told = [f"{name} {result.series[name]}" for name in peers]
    ratios = [_ratio(result, name) for name in peers]
    goals = [_goal(result, name) for name in peers]
    own = result.series[case.subject]
    figure = str(own)
    if case.bound:
        holds = case.bound.holds(own.median)
        figure = case.bound.words(own.median) + figure.removeprefix(own.middle)
        goals.append(str(case.bound) + ("" if holds else " (**missed**)"))
    cells = (
        case.title,
        case.unit,
        figure,
        *map("<br>".join, (told, ratios, goals)),
    )
    return f"| {' | '.join(cells)} |"


def _ratio(result: CaseResult, versus: str) -> str:
    """In digits that do not belie the verdict beside it."""
    ratio, goal = result.ratio(versus), result.goal(versus)
    words = str(ratio)
    return words if goal is None else goal.words(ratio.median) + words.removeprefix(ratio.middle)


def _goal(result: CaseResult, versus: str) -> str:
    goal = result.goal(versus)
    if goal is None:
        return "-"
    return goal.short + ("" if goal.holds(result.ratio(versus).median) else " (**missed**)")
