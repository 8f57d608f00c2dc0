# SPDX-License-Identifier: Apache-2.0
"""Progress of long steps: a callback, and what a terminal makes of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text

ProgressCallback = Callable[[str, float | None], None]
"""Called with what is being done and the share of it that is done (0..1; None: not known)."""


def silent(_phase: str, _fraction: float | None) -> None:
    """Tells nobody."""


class _LiveColumn(ProgressColumn):
    """What a function says at the moment of drawing."""

    def __init__(self, text: Callable[[], str]) -> None:
        super().__init__()
        self._text = text

    def render(self, _task: Task) -> Text:
        return Text(self._text())


@contextmanager
def shown_on(console: Console, live: Callable[[], str] | None = None) -> Iterator[ProgressCallback]:
    """A callback that draws one line with a bar, and what `live` says, several times a second; without a
    terminal it prints each phase once."""
    if not console.is_terminal:
        yield _printed_on(console)
        return
    columns: list[ProgressColumn] = [
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        TimeElapsedColumn(),
    ]
    if live is not None:
        columns.append(_LiveColumn(live))
    with Progress(*columns, console=console, transient=True) as bars:
        task = bars.add_task("", total=None)

        def report(phase: str, fraction: float | None) -> None:
            total = None if fraction is None else 1.0
            bars.update(task, description=phase, total=total, completed=fraction or 0.0)

        yield report


def _printed_on(console: Console) -> ProgressCallback:
    last = ""

    def report(phase: str, _fraction: float | None) -> None:
        nonlocal last
        if phase != last:
            console.print(phase, highlight=False)
        last = phase

    return report
