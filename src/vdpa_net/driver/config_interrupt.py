# SPDX-License-Identifier: Apache-2.0
"""The device's configuration interrupt: its MSI-X vector, and the thread that waits for it."""

from __future__ import annotations

import contextlib
import os
import select
import threading
from collections.abc import Callable

from vdpa_net.driver.handle import DeviceHandle
from vdpa_net.errors import VdpaNetError

CONFIG_VECTOR = 0


class ConfigInterrupt:
    """Calls `on_interrupt` in a thread of its own whenever the device raises vector 0."""

    def __init__(self, handle: DeviceHandle, on_interrupt: Callable[[], None]) -> None:
        """Raises what the handle raises."""
        self._handle = handle
        self._on_interrupt = on_interrupt
        self._closing = False
        self._fd = os.eventfd(0, os.EFD_CLOEXEC)
        try:
            handle.set_irqs(CONFIG_VECTOR, [self._fd])
        except BaseException:
            os.close(self._fd)
            raise
        self._thread = threading.Thread(target=self._run, name="config interrupt", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Unbind the vector and end the thread, whose last call has returned then."""
        self._closing = True
        # A device that is gone binds nothing.
        with contextlib.suppress(VdpaNetError):
            self._handle.set_irqs(CONFIG_VECTOR, [None])
        os.eventfd_write(self._fd, 1)
        self._thread.join()
        os.close(self._fd)

    def _run(self) -> None:
        # The device makes its duplicate of the eventfd non-blocking, and that is a flag of the open file.
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        while True:
            poll.poll()
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._fd)
            if self._closing:
                return
            self._on_interrupt()
