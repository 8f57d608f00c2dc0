# SPDX-License-Identifier: Apache-2.0
"""The interrupts of a device, as its client binds, masks and raises them."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from vdpa_net.device.msix import Msix


class IrqPort:
    """The part of a device that is about its vectors. Thread-safe."""

    _lock: threading.RLock
    _msix: Msix

    def set_irqs(self, start: int, fds: Sequence[int | None]) -> None:
        """Bind vectors from `start` on to duplicates of these eventfds; None unbinds. Raises AccessError."""
        with self._lock:
            self._msix.bind(start, fds)

    def trigger_irqs(self, start: int, flags: Sequence[bool]) -> None:
        """Raise the vectors from `start` on whose flag is set. Raises AccessError."""
        with self._lock:
            self._msix.trigger(start, flags)

    def mask_irqs(self, start: int, flags: Sequence[bool], *, masked: bool) -> None:
        """Mask or unmask the flagged vectors; what is due on one is raised later. Raises AccessError."""
        with self._lock:
            self._msix.mask(start, flags, masked=masked)

    def notify_mask(self, start: int, fds: Sequence[int | None], *, masked: bool) -> None:
        """Signal duplicates of these eventfds when vectors become masked or unmasked. Raises AccessError."""
        with self._lock:
            self._msix.notify_mask(start, fds, masked=masked)

    def disable_irqs(self) -> None:
        """Unbind and unmask every vector."""
        with self._lock:
            self._msix.unbind_all()
