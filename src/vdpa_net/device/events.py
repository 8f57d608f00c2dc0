# SPDX-License-Identifier: Apache-2.0
"""What a device tells those who listen: a name, and facts with a time."""

from __future__ import annotations

import time
from collections.abc import Callable

EventCallback = Callable[[str, dict[str, object]], None]


class Events:
    """Listeners and how they are told. A listener that raises does not disturb the device."""

    def __init__(self) -> None:
        self._listeners: list[EventCallback] = []

    def listen(self, callback: EventCallback) -> None:
        """Call `callback(name, info)` at each event from now on."""
        self._listeners.append(callback)

    def emit(self, name: str, info: dict[str, object]) -> None:
        """Tell every listener; `ns` is added to the info, from time.monotonic_ns()."""
        event = {"ns": time.monotonic_ns(), **info}
        for callback in list(self._listeners):
            try:
                callback(name, event)
            except Exception:
                # Imported here: it takes a good part of the start, and callbacks hardly ever fail.
                import logging  # noqa: PLC0415

                logging.getLogger(__name__).exception("a callback for device event %s failed", name)
