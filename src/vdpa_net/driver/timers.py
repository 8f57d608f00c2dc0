# SPDX-License-Identifier: Apache-2.0
"""What is done later, or again and again, under a lock, until it is called off."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Timer:
    """Calls `call` after `period_s` seconds in a thread of its own, with `lock` held.

    With `repeat` again and again. `cancel` may be called with the lock held: no call
    follows, and the thread ends soon after.
    """

    def __init__(
        self, period_s: float, lock: threading.RLock, call: Callable[[], None], *, repeat: bool = False
    ) -> None:
        self._period_s = period_s
        self._lock = lock
        self._call = call
        self._repeat = repeat
        self._cancelled = threading.Event()
        threading.Thread(target=self._run, name="timer", daemon=True).start()

    def cancel(self) -> None:
        """Make no further call."""
        self._cancelled.set()

    def _run(self) -> None:
        while not self._cancelled.wait(self._period_s):
            with self._lock:
                if self._cancelled.is_set():
                    return
                self._call()
            if not self._repeat:
                return
