# SPDX-License-Identifier: Apache-2.0
"""The result of a run: a table for the terminal, JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from vdpa_net.bench import host
from vdpa_net.bench.case import CaseResult
from vdpa_net.device.options import DEFAULT_POLL_US
from vdpa_net.errors import OptionError

SCHEMA = 2


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

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> Report:
        """What `to_json` gave. Raises OptionError for anything else."""
        try:
            if told["schema"] != SCHEMA:
                raise OptionError(f"a result of schema {told['schema']}; expected {SCHEMA}")
            results = [CaseResult.from_json(case) for case in told["cases"]]
            return cls(told["host"], told["rounds"], told["seconds"], results, told["poll_us"])
        except (KeyError, TypeError) as error:
            raise OptionError(f"not a result of `vdpa-net bench --json`: {error!r}") from error

    @classmethod
    def read(cls, path: Path) -> Report:
        """A file that `vdpa-net bench --json` wrote. Raises OptionError where it is none."""
        try:
            return cls.from_json(json.loads(path.read_text()))
        except (OSError, ValueError, OptionError) as error:
            raise OptionError(f"{path}: {error}") from error

    @property
    def conditions(self) -> str:
        """The machine and how was measured, in one line."""
        poll_us = DEFAULT_POLL_US if self.poll_us is None else self.poll_us
        samples = f"{self.rounds} rounds of {self.seconds:g} s"
        return f"{host.words(self.host)}; {samples}, the device polls up to {poll_us} us after work"

    def table(self) -> Table:
        """Ratios first; absolute figures are for information."""
        table = Table(
            title=f"vdpa-net bench: {self.conditions}",
            caption="median \\[min to max]; ratio is the first contestant by this one",
        )
        for heading in ("case", "contestant", "", "ratio", "goal"):
            table.add_column(heading, justify="right" if heading == "ratio" else "left")
        for result in self.results:
            self._add(table, result)
        return table

    @staticmethod
    def _add(table: Table, result: CaseResult) -> None:
        for number, (name, series) in enumerate(result.series.items()):
            spread = f"{series.median:.3g} [{min(series.samples):.3g} to {max(series.samples):.3g}]"
            ratio, verdict = "", ""
            if name != result.case.subject:
                value = result.ratio(name)
                ratio = f"{value:.2f}"
                if goal := result.goal(name):
                    verdict = _verdict(str(goal), goal.holds(value))
            elif result.case.bound:
                verdict = _verdict(str(result.case.bound), result.case.bound.holds(series.median))
            title = result.case.title if number == 0 else ""
            last = number == len(result.series) - 1
            table.add_row(title, name, f"{spread} {result.case.unit}", ratio, verdict, end_section=last)


def _verdict(goal: str, holds: bool) -> str:
    return f"[green]{goal}[/]" if holds else f"[red]missed: {goal}[/]"
