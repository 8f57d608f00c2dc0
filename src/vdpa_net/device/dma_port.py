# SPDX-License-Identifier: Apache-2.0
"""The memory that a device may reach: maps that its client makes and takes back."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from vdpa_net.device.dma import DmaMaps

if TYPE_CHECKING:
    from vdpa_net import _native


class DmaPort:
    """The part of a device that is about its client's memory. Thread-safe."""

    space: _native.DmaSpace
    _lock: threading.RLock
    _dma: DmaMaps

    def dma_map(
        self, iova: int, size: int, fd: int | None, offset: int, *, readable: bool, writable: bool
    ) -> None:
        """Let the device reach [iova, iova + size) at `offset` of the file, which stays the caller's.

        Without an fd the range is remembered, so that a later access to it is reported with the reason.
        Raises DmaError.
        """
        with self._lock:
            self._dma.map(iova, size, fd, offset, readable=readable, writable=writable)

    def dma_unmap(self, iova: int, size: int) -> None:
        """Undo exactly one map; on return nothing touches the range. Raises DmaError."""
        with self._lock:
            self._dma.unmap(iova, size)

    def dma_unmap_within(self, iova: int, size: int) -> int:
        """Undo the maps inside of [iova, iova + size); on return nothing touches them. How many there were.

        Raises DmaError if a map is only partly inside.
        """
        with self._lock:
            return self._dma.unmap_within(iova, size)

    def dma_unmap_all(self) -> int:
        """Undo every map; returns how many there were."""
        with self._lock:
            return self._dma.unmap_all()

    def map_space(self) -> _native.DmaSpace | None:
        """What a server may map in and unmap from by itself; None: a subclass has its own way to do that."""
        own = (DmaPort.dma_map, DmaPort.dma_unmap_within)
        return self.space if (type(self).dma_map, type(self).dma_unmap_within) == own else None
