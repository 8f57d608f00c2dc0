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
    """One device's audit; its methods may be called from any thread."""

    def __init__(self, device: AuditedDevice) -> None:
        self._space = device.space
        self._lock = threading.Lock()
        self._armed = False
        self._audit: WriteAudit | None = None
        self._problem = ""
        device.on_event(self._on_event)

    def arm(self) -> None:
        """Audit from the next start of logging on; forgets an earlier audit."""
        with self._lock:
            self._end()
            self._problem = ""
            self._armed = True
            self._space.record_marks(True)

    def checkpoint(self) -> int:
        """Pages written since the last checkpoint (or the start). Raises StateError if no audit runs."""
        with self._lock:
            return len(self._running().checkpoint())

    def written_since(self, below_page: int | None = None) -> int:
        """Pages written since the last checkpoint (those below a page number). Raises StateError if no audit
        runs."""
        with self._lock:
            pages = self._running().since_checkpoint()
            return len(pages) if below_page is None else sum(page < below_page for page in pages)

    def result(self) -> dict[str, object]:
        """`written` (page numbers, ascending) and `marked` (hexadecimal bitmap, bit p % 8 of byte p // 8).

        Raises StateError if no audit runs, with the reason.
        """
        with self._lock:
            written = sorted(self._running().written_pages())
            return {"written": written, "marked": self._space.marked_pages().hex()}

    def close(self) -> None:
        """End the audit."""
        with self._lock:
            self._armed = False
            self._end()

    def _running(self) -> WriteAudit:
        if self._audit is None:
            raise StateError(self._problem or "no dirty audit runs: logging has not been started since arm()")
        return self._audit

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
