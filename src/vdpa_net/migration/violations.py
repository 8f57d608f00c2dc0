# SPDX-License-Identifier: Apache-2.0
"""What a driver, a guest or a VMM did that the specification does not allow. Recorded, never swallowed."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Final

from vdpa_net.record import Record, as_dict

KEPT_ENTRIES: Final = 1024
"""Entries that are kept; all are counted. A guest must not be able to fill the memory with its mistakes."""


class Violation(Record):
    """One recorded fault: `where` (block, register or queue), `what`, the offending value, the clause."""

    where: str
    what: str
    value: int
    clause: str
    detail: str = ""

    def __str__(self) -> str:
        detail = f": {self.detail}" if self.detail else ""
        return f"{self.where}: {self.what} (value {self.value:#x}, {self.clause}){detail}"


class ViolationLog:
    """The first 1024 violations, and the number of all. Thread-safe.

    `pull` is called before each look and returns what was recorded elsewhere (the data plane) meanwhile.
    """

    def __init__(self, pull: Callable[[], Iterable[Violation]] | None = None) -> None:
        self._lock = threading.Lock()
        self._pulling = threading.Lock()
        self._entries: list[Violation] = []
        self._kinds: Counter[str] = Counter()
        self._pull = pull
        self._listeners: tuple[Callable[[Violation], None], ...] = ()

    def listen(self, callback: Callable[[Violation], None]) -> None:
        """Call `callback(violation)` at each one from now on.

        It runs in the thread that records, often with the device's lock held: it must not wait.
        """
        self._listeners = (*self._listeners, callback)

    def record(self, where: str, what: str, value: int, clause: str, detail: str = "") -> None:
        """Add one violation."""
        self._add(Violation(where, what, value, clause, detail))

    @property
    def entries(self) -> list[Violation]:
        """A copy of the kept entries, oldest first."""
        self.refresh()
        with self._lock:
            return list(self._entries)

    @property
    def count(self) -> int:
        """How many were recorded, kept or not."""
        self.refresh()
        with self._lock:
            return self._kinds.total()

    @property
    def kinds(self) -> dict[str, int]:
        """How many were recorded of each `what`."""
        self.refresh()
        with self._lock:
            return dict(self._kinds)

    def refresh(self) -> None:
        """Take over what was recorded elsewhere. On return it is here, whichever thread took it."""
        if self._pull is None:
            return
        # A violation that another thread has pulled and not yet kept must not be missed by this one.
        with self._pulling:
            pulled = list(self._pull())
            for violation in pulled:
                self._keep(violation)
        self._tell(pulled)

    def as_json(self) -> list[dict[str, object]]:
        """The kept entries as plain dictionaries."""
        return [as_dict(entry) for entry in self.entries]

    def _add(self, violation: Violation) -> None:
        self._keep(violation)
        self._tell([violation])

    def _keep(self, violation: Violation) -> None:
        with self._lock:
            self._kinds[violation.what] += 1
            if len(self._entries) < KEPT_ENTRIES:
                self._entries.append(violation)

    def _tell(self, violations: Iterable[Violation]) -> None:
        for violation in violations:
            for listener in self._listeners:
                listener(violation)
