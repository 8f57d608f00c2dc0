# SPDX-License-Identifier: Apache-2.0
"""Progress of long steps: a callback, and what a terminal makes of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

ProgressCallback = Callable[[str, float | None], None]
"""Called with what is being done and the share of it that is done (0..1; None: not known)."""


def silent(_phase: str, _fraction: float | None) -> None:
    """Tells nobody."""


@contextmanager
def shown_on(console: Console) -> Iterator[ProgressCallback]:
    """A callback that draws one line with a bar; without a terminal it prints each phase once."""
    if not console.is_terminal:
        yield _printed_on(console)
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
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
