# SPDX-License-Identifier: Apache-2.0
"""The verdict on a migration: one line per claim, each with what was measured and what was expected.

A claim that could not be examined is NOT RUN, and so is the verdict that holds it: a verdict says PASS only
when every claim was examined and holds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


class Outcome(Enum):
    """What became of a claim."""

    PASS = "PASS"
    FAIL = "FAIL"
    NOT_RUN = "NOT RUN"


EXIT_CODES = {Outcome.PASS: 0, Outcome.FAIL: 1, Outcome.NOT_RUN: 3}
"""Exit code of a command by the outcome of its verdict (2 is a usage error)."""

STYLES = {Outcome.PASS: "green", Outcome.FAIL: "bold red", Outcome.NOT_RUN: "yellow"}


@dataclass(frozen=True)
class Line:
    """One claim: `detail` names the pages, indices or packets that violate it, one per string."""

    name: str
    outcome: Outcome
    measured: str
    expected: str
    detail: tuple[str, ...] = ()


@dataclass
class Verdict:
    """All claims about one run, and the context in which they were measured (JSON-able values).

    `not_checked` names claims that can't be made about what was tested, with the reason: about the registers
    of somebody else's back end, for one. They have no line and don't change the outcome, and are always said.
    """

    lines: list[Line] = field(default_factory=list)
    context: dict[str, object] = field(default_factory=dict)
    not_checked: dict[str, str] = field(default_factory=dict)

    @property
    def outcome(self) -> Outcome:
        """FAIL if any line failed, else NOT RUN if any was not run or there is none, else PASS."""
        outcomes = {line.outcome for line in self.lines}
        if Outcome.FAIL in outcomes:
            return Outcome.FAIL
        if Outcome.NOT_RUN in outcomes or not outcomes:
            return Outcome.NOT_RUN
        return Outcome.PASS

    @property
    def exit_code(self) -> int:
        """0 PASS, 1 FAIL, 3 NOT RUN."""
        return EXIT_CODES[self.outcome]

    def failed(self) -> list[str]:
        """Names of the lines that failed."""
        return [line.name for line in self.lines if line.outcome is Outcome.FAIL]

    def to_json(self) -> dict[str, Any]:
        """The verdict as JSON-able values."""
        return {
            "verdict": self.outcome.value,
            "lines": [
                {
                    "name": line.name,
                    "outcome": line.outcome.value,
                    "measured": line.measured,
                    "expected": line.expected,
                    "detail": list(line.detail),
                }
                for line in self.lines
            ],
            "not_checked": dict(self.not_checked),
            "context": dict(self.context),
        }

    def render(self, console: Console) -> None:
        """Print a table of the lines, the details of those that do not hold, and `verdict: PASS` last."""
        from rich.markup import escape  # noqa: PLC0415 - only this method needs a terminal
        from rich.table import Table  # noqa: PLC0415

        table = Table(box=None, pad_edge=False, header_style="bold")
        for heading in ("line", "measured", "expected", "result"):
            table.add_column(heading, overflow="fold")
        for line in self.lines:
            style = STYLES[line.outcome]
            result = f"[{style}]{line.outcome.value}[/{style}]"
            table.add_row(escape(line.name), escape(line.measured), escape(line.expected), result)
        console.print(table)
        for line in self.lines:
            if line.outcome is not Outcome.PASS:
                for item in line.detail:
                    console.print(f"  {line.name}: {item}", markup=False, highlight=False)
        for name, reason in self.not_checked.items():
            console.print(f"  not checked: {name}: {reason}", markup=False, highlight=False)
        style = STYLES[self.outcome]
        console.print(f"verdict: [{style}]{self.outcome.value}[/{style}]", highlight=False)
