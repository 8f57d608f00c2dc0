# SPDX-License-Identifier: Apache-2.0
"""The result of a run: a table for the terminal, JSON for programs."""

from __future__ import annotations

from dataclasses import dataclass

from rich.table import Table

from vdpa_net.bench.case import CaseResult

SCHEMA = 1


@dataclass
class Report:
    """All cases of a run and the machine that they ran on."""

    host: dict[str, object]
    rounds: int
    seconds: float
    results: list[CaseResult]
    poll_us: int | None = None

    @property
    def missed(self) -> list[CaseResult]:
        """The cases with a goal that does not hold."""
        return [result for result in self.results if result.missed()]

    def to_json(self) -> dict[str, object]:
        """Everything that was measured."""
        return {
            "schema": SCHEMA,
            "host": self.host,
            "rounds": self.rounds,
            "seconds": self.seconds,
            "poll_us": self.poll_us,
            "cases": [result.to_json() for result in self.results],
        }

    def table(self) -> Table:
        """Ratios first; absolute figures are for information."""
        title = f"vdpa-net bench: {self.host['processor']}, {self.host['cores']} cores, {self.rounds} rounds"
        title += "" if self.poll_us is None else f", polling {self.poll_us} us"
        table = Table(title=title, caption="median \\[min to max]; ratio is the first contestant by this one")
        for heading in ("case", "contestant", "", "ratio", "goal"):
            table.add_column(heading, justify="right" if heading == "ratio" else "left")
        for result in self.results:
            self._add(table, result)
        return table

    @staticmethod
    def _add(table: Table, result: CaseResult) -> None:
        goals = {goal.versus: goal for goal in result.case.goals}
        for number, (name, series) in enumerate(result.series.items()):
            spread = f"{series.median:.3g} [{min(series.samples):.3g} to {max(series.samples):.3g}]"
            ratio, verdict = "", ""
            if name != result.case.subject:
                value = result.ratio(name)
                ratio = f"{value:.2f}"
                if goal := goals.get(name):
                    verdict = _verdict(str(goal), goal.holds(value))
            elif result.case.bound:
                verdict = _verdict(str(result.case.bound), result.case.bound.holds(series.median))
            title = result.case.title if number == 0 else ""
            last = number == len(result.series) - 1
            table.add_row(title, name, f"{spread} {result.case.unit}", ratio, verdict, end_section=last)


def _verdict(goal: str, holds: bool) -> str:
    return f"[green]{goal}[/]" if holds else f"[red]missed: {goal}[/]"
