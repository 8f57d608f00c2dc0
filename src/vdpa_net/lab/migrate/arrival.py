# SPDX-License-Identifier: Apache-2.0
"""Whether a guest came to the destination at all."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from vdpa_net.migration.verdict import Line, Outcome

COMPLETED = "completed"


@dataclass(frozen=True)
class Arrival:
    """How the migration ended at both QEMUs (QMP: MigrationStatus), and what they said if it failed.

    A source whose destination refuses what it gets may have closed its end before it learns of that.
    """

    source: str = ""
    destination: str = ""
    words: tuple[str, ...] = ()

    @property
    def is_complete(self) -> bool:
        """The guest is at the destination."""
        return (self.source, self.destination) == (COMPLETED, COMPLETED)

    def line(self, more: Iterable[str] = ()) -> Line:
        """The destination's machine took all that the source's sent; `more` is told if it did not."""
        if not self.source:
            return Line("migration", Outcome.NOT_RUN, "not observed", COMPLETED, ("not observed",))
        return Line(
            "migration",
            Outcome.PASS if self.is_complete else Outcome.FAIL,
            f"the source: {self.source}, the destination: {self.destination}",
            COMPLETED,
            () if self.is_complete else (*self.words, *more),
        )
