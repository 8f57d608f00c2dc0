# SPDX-License-Identifier: Apache-2.0
"""The dirty audit of one device: what it wrote while it logged, and what it marked.

Once armed, the audit begins at the next start of logging, within the register write that starts it: no
write of the logged time is missed. What was written comes from the memory management unit
(`migration.audit`), what was marked from the copy of the bits that the data plane set in the log.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from vdpa_net.errors import StateError
from vdpa_net.migration.audit import WriteAudit

if TYPE_CHECKING:
    from vdpa_net import _native


class AuditedDevice(Protocol):
    """What the audit needs of a device."""

    space: _native.DmaSpace

    def on_event(self, callback: Callable[[str, dict[str, object]], None]) -> None: ...


class DeviceAudit:
    """One device's audit, divided into intervals; its methods may be called from any thread.

    A page counts as marked only in the interval in which it was marked: a mark that is missing is found even
    if a later write of the page was marked again. Intervals end between two batches of the data plane, so a
    store and its marks are always in the same one.
    """

    def __init__(self, device: AuditedDevice) -> None:
        self._space = device.space
        self._lock = threading.Lock()
        self._armed = False
        self._audit: WriteAudit | None = None
        self._problem = ""
        self._written: set[int] = set()
        self._unmarked: dict[int, int] = {}
        self._since: set[int] = set()
        self._intervals = 0
        device.on_event(self._on_event)

    def arm(self) -> None:
        """Audit from the next start of logging on; forgets an earlier audit."""
        with self._lock:
            self._end()
            self._problem = ""
            self._written, self._unmarked, self._since = set(), {}, set()
            self._intervals = 0
            self._armed = True
            self._space.record_marks(True)

    def end_interval(self, below_page: int | None = None, *, anew: bool = False) -> int:
        """End an interval; the data plane stands still for a moment.

        Returns how many pages (of those below a page number) were written since the call with `anew`. Raises
        StateError if no audit runs, with the reason.
        """
        with self._lock:
            written = self._take_interval()
            self._since = set() if anew else self._since | written
            return sum(below_page is None or page < below_page for page in self._since)

    def result(self) -> dict[str, object]:
        """End the last interval. `written`: page numbers; `unmarked`: pairs of page number and interval in
        which it was written and not marked; `intervals`: how many. Raises StateError if no audit runs."""
        with self._lock:
            self._take_interval()
            return {
                "written": sorted(self._written),
                "unmarked": sorted(self._unmarked.items()),
                "intervals": self._intervals,
            }

    def close(self) -> None:
        """End the audit."""
        with self._lock:
            self._armed = False
            self._end()

    def _take_interval(self) -> set[int]:
        if self._audit is None:
            raise StateError(self._problem or "no dirty audit runs: logging has not been started since arm()")
        written: set[int] = set()
        audit = self._audit
        bits = self._space.take_marked_pages(lambda: written.update(audit.checkpoint()))
        for page in written:
            if page // 8 >= len(bits) or not bits[page // 8] >> page % 8 & 1:
                self._unmarked.setdefault(page, self._intervals)
        self._written |= written
        self._intervals += 1
        return written

    def _on_event(self, name: str, _data: dict[str, object]) -> None:
        if name != "log_started":
            return
        with self._lock:
            if not self._armed:
                return
            self._armed = False
            log = self._space.log_range()
            try:
                self._audit = WriteAudit(self._space.mappings(), [log] if log else [])
            except StateError as error:
                self._problem = str(error)

    def _end(self) -> None:
        if self._audit is not None:
            self._audit.close()
            self._audit = None
