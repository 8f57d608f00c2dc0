# SPDX-License-Identifier: Apache-2.0
"""The device's configuration interrupt: its MSI-X vector, and the thread that waits for it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from vdpa_net.driver.handle import DeviceHandle
from vdpa_net.driver.wake_thread import WakeThread
from vdpa_net.errors import VdpaNetError

CONFIG_VECTOR = 0


class ConfigInterrupt:
    """Calls `on_interrupt` in a thread of its own whenever the device raises vector 0."""

    def __init__(self, handle: DeviceHandle, on_interrupt: Callable[[], None]) -> None:
        """Raises what the handle raises."""
        self._handle = handle
        self._thread = WakeThread("config interrupt", on_interrupt)
        try:
            handle.set_irqs(CONFIG_VECTOR, [self._thread.fd])
        except BaseException:
            self._thread.close()
            raise
        self._thread.start()

    def close(self) -> None:
        """Unbind the vector and end the thread, whose last call has returned then."""
        # A device that is gone binds nothing.
        with contextlib.suppress(VdpaNetError):
            self._handle.set_irqs(CONFIG_VECTOR, [None])
        self._thread.close()
