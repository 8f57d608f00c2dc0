# SPDX-License-Identifier: Apache-2.0
"""The dirty audit of one device: what it wrote while it logged, and what it marked.

Once armed, the audit runs whenever the device logs: it begins within the register write that starts
logging and ends within the one that stops it, so no write of the logged time is missed, and none of another
time is taken for one. What was written comes from the memory management unit (`migration.audit`), what was
marked from the copy of the bits that the data plane set in the log.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from vdpa_net.device.audit_pages import AuditPages, FilePages, IovaPages
from vdpa_net.errors import StateError
from vdpa_net.migration.audit import WriteAudit
from vdpa_net.record import Record, as_dict

if TYPE_CHECKING:
    from vdpa_net import _native

MAX_KEPT_INTERVALS = 4096


class AuditedDevice(Protocol):
    """What the audit needs of a device."""

    space: _native.DmaSpace

    def on_event(self, callback: Callable[[str, dict[str, object]], None]) -> None: ...


class Interval(Record):
    """One interval: when it ended (CLOCK_MONOTONIC), and how many pages were written and marked in it."""

    end_ns: int
    written: int
    marked: int


class DeviceAudit:
    """One device's audit, divided into intervals; its methods may be called from any thread.

    A page counts as marked only in the interval in which it was marked: a mark that is missing is found even
    if a later write of the page was marked again. Intervals end between two batches of the data plane, so a
    store and its marks are always in the same one.
    """

    def __init__(self, device: AuditedDevice) -> None:
        self._space = device.space
        self._pages: AuditPages = IovaPages(self._space)
        self._lock = threading.Lock()
        self._armed = False
        self._audit: WriteAudit | None = None
        self._forget()
        device.on_event(self._on_event)

    def _forget(self) -> None:
        self._problem = ""
        self._written: set[int] = set()
        self._unmarked: dict[int, int] = {}
        self._since: set[int] = set()
        self._intervals: list[Interval] = []
        self._count = 0
        self._marked = self._over_marked = 0

    def arm(self, *, by_file: bool = False) -> None:
        """Audit from the next start of logging on; forgets an earlier audit.

        Pages are those of IOVAs, or with `by_file` those of the files behind them (`audit_pages`).
        """
        with self._lock:
            self._end()
            self._forget()
            self._armed = True
            self._pages.record(False)
            self._pages = FilePages(self._space) if by_file else IovaPages(self._space)
            self._pages.record(True)

    def end_interval(self, within: Sequence[Sequence[int]] | None = None, *, anew: bool = False) -> int:
        """End an interval, if the device logs; the data plane stands still for a moment.

        Returns how many pages were written since the call with `anew`, of those in the ranges `within` (the
        first page and the one behind the last, by the audit's numbers), else of all. Raises StateError if
        there is no audit, with the reason.
        """
        with self._lock:
            self._need_audit()
            written = self._take_interval()
            self._since = set() if anew else self._since | written
            if within is None:
                return len(self._since)
            return sum(any(first <= page < end for first, end in within) for page in self._since)

    def result(self) -> dict[str, object]:
        """End the last interval, and tell everything. Raises StateError if there is no audit.

        `written`: page numbers; `unmarked`: pairs of page number and interval in which it was written and not
        marked; `intervals`: how many; `marked`, `over_marked`: pages that were marked, and those of them that
        were not written, summed over the intervals; `series`: `Interval` as dictionaries.
        """
        with self._lock:
            self._need_audit()
            self._take_interval()
            return {
                "written": sorted(self._written),
                "unmarked": sorted(self._unmarked.items()),
                "intervals": self._count,
                "marked": self._marked,
                "over_marked": self._over_marked,
                "series": [as_dict(interval) for interval in self._intervals],
            }

    def last_writes(self, pages: Sequence[int]) -> list[list[int] | None]:
        """What the device wrote last to each of these pages while it was audited: offset and length there,
        and whether it was part of a ring (else of a buffer)."""
        found = (self._pages.last_write(page) for page in pages)
        return [None if write is None else list(write) for write in found]

    def close(self) -> None:
        """End the audit."""
        with self._lock:
            self._armed = False
            self._end()

    def _need_audit(self) -> None:
        if self._problem or (self._audit is None and not self._count):
            raise StateError(self._problem or "no dirty audit ran: logging has not been started since arm()")

    def _take_interval(self) -> set[int]:
        audit = self._audit
        if audit is None:
            return set()
        taken = self._pages.take(audit)
        for page in taken.unmarked:
            self._unmarked.setdefault(page, self._count)
        self._marked += taken.marked
        self._over_marked += taken.marked - len(taken.written - taken.unmarked)
        self._written |= taken.written
        self._count += 1
        if len(self._intervals) < MAX_KEPT_INTERVALS:
            self._intervals.append(Interval(time.monotonic_ns(), len(taken.written), taken.marked))
        return taken.written

    def _on_event(self, name: str, _data: dict[str, object]) -> None:
        if name == "log_started":
            with self._lock:
                if self._armed and self._audit is None:
                    self._begin()
        elif name == "log_stopping":
            with self._lock:
                self._since |= self._take_interval()
                self._end()

    def _begin(self) -> None:
        try:
            self._audit = self._pages.watch()
        except StateError as error:
            self._problem = str(error)

    def _end(self) -> None:
        if self._audit is not None:
            self._audit.close()
            self._audit = None
