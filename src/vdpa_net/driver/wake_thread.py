# SPDX-License-Identifier: Apache-2.0
"""A thread that waits for an eventfd."""

from __future__ import annotations

import contextlib
import os
import select
import threading
from collections.abc import Callable


class WakeThread:
    """Calls `on_wake` in a thread of its own whenever `fd` is signalled; several signals may be one call."""

    def __init__(self, name: str, on_wake: Callable[[], None]) -> None:
        """Raises OSError without eventfds to spare."""
        self._on_wake = on_wake
        self._is_ending = False
        self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begin to wait."""
        self._thread.start()

    def close(self) -> None:
        """End the thread, whose last call has returned then, and close `fd`."""
        self._is_ending = True
        os.eventfd_write(self.fd, 1)
        if self._thread.is_alive():
            self._thread.join()
        os.close(self.fd)

    def _run(self) -> None:
        # Others may have the open file, too, and whether it blocks is a flag of that.
        poll = select.poll()
        poll.register(self.fd, select.POLLIN)
        while True:
            poll.poll()
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self.fd)
            if self._is_ending:
                return
            self._on_wake()
