# SPDX-License-Identifier: Apache-2.0
"""Pictures of a run: for each group, the subject's ratio to every peer and limit, with the goals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vdpa_net.bench.case import CaseResult
from vdpa_net.bench.report import Report
from vdpa_net.errors import MissingTool

BAR_INCHES = 0.42
BLUE, GREEN, RED = "#4878a8", "#3f8f4f", "#b8443c"


def draw(report: Report, directory: Path) -> list[Path]:
    """One PNG and one SVG for each group of cases. Raises MissingTool without matplotlib."""
    try:
        import matplotlib as mpl  # noqa: PLC0415

        mpl.use("Agg")
        from matplotlib import pyplot  # noqa: PLC0415
    except ImportError as error:
        raise MissingTool("pictures need matplotlib: pip install 'vdpa-net[plot]'") from error
    directory.mkdir(parents=True, exist_ok=True)
    written = []
    groups: dict[str, list[CaseResult]] = {}
    for result in report.results:
        if result.ratios():
            groups.setdefault(result.case.key.partition("-")[0], []).append(result)
    for name, results in groups.items():
        figure = _group(pyplot, name, results)
        for kind in ("png", "svg"):
            path = directory / f"bench-{name}.{kind}"
            figure.savefig(path, dpi=144, bbox_inches="tight")
            written.append(path)
        pyplot.close(figure)
    return written


def _group(pyplot: Any, name: str, results: list[CaseResult]) -> Any:
    rows = [
        (f"{result.case.title}\nby {versus}", ratio, _goal(result, versus))
        for result in reversed(results)
        for versus, ratio in reversed(result.ratios().items())
    ]
    figure, axes = pyplot.subplots(figsize=(9, 1.2 + BAR_INCHES * len(rows)))
    for position, (_label, ratio, goal) in enumerate(rows):
        holds = goal is None or goal[0].holds(ratio)
        axes.barh(position, ratio, color=BLUE if goal is None else GREEN if holds else RED, height=0.65)
        axes.text(ratio, position, f" {ratio:.2f}", va="center", fontsize=8)
        if goal is not None:
            axes.plot([goal[1]] * 2, [position - 0.4, position + 0.4], color="black", linewidth=1.5)
    axes.set_yticks(range(len(rows)), [label for label, _, _ in rows], fontsize=7)
    axes.axvline(1, color="grey", linewidth=0.8, linestyle=":")
    axes.set_xlabel("ratio of medians, vdpa-net by the other; black line: goal")
    axes.set_title(f"vdpa-net bench: {name}")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _goal(result: CaseResult, versus: str) -> tuple[Any, float] | None:
    for goal in result.case.goals:
        if goal.versus == versus:
            return goal, goal.at_least if goal.at_least is not None else goal.at_most or 0.0
    return None
