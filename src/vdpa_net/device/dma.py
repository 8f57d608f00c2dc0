# SPDX-License-Identifier: Apache-2.0
"""DMA maps as a client asks for them, including memory that came without a file descriptor."""

from __future__ import annotations

import bisect
import errno
import threading
from typing import TYPE_CHECKING, Final

from vdpa_net.errors import DmaError

if TYPE_CHECKING:
    from vdpa_net._native import DmaSpace

MAX_RANGES_WITHOUT_FD: Final = 65536
NOT_SHARED: Final = (
    "this memory came without a file descriptor; give the VM's memory backend share=on"
    " (-object memory-backend-memfd,share=on)"
)


class DmaMaps:
    """The client's maps: those with a file go to the DMA space, the others are remembered for messages.

    The caller holds the device's lock, except for `hint`, which any thread may ask.
    """

    def __init__(self, space: DmaSpace) -> None:
        self._space = space
        self._lock = threading.Lock()
        self._starts: list[int] = []
        self._ends: dict[int, int] = {}
        self.count = 0

    def map(
        self, iova: int, size: int, fd: int | None, offset: int, *, readable: bool, writable: bool
    ) -> None:
        """Map a range. Raises DmaError."""
        if self._overlaps(iova, iova + size):
            raise DmaError(
                f"map of {size:#x} bytes at {iova:#x} overlaps an existing one", errno=errno.EEXIST
            )
        if fd is None:
            self._remember(iova, size)
        else:
            self._space.map(iova, size, fd, offset, readable, writable)
        self.count += 1

    def unmap(self, iova: int, size: int) -> None:
        """Remove exactly one map; on return nothing touches it. Raises DmaError."""
        if self._ends.get(iova) == iova + size:
            with self._lock:
                del self._ends[iova]
                self._starts.remove(iova)
        else:
            self._space.unmap(iova, size)
        self.count -= 1

    def unmap_all(self) -> int:
        """Remove all maps; returns how many there were."""
        without_fd = len(self._starts)
        with self._lock:
            self._starts.clear()
            self._ends.clear()
        self.count = 0
        return self._space.unmap_all() + without_fd

    def hint(self, address: int) -> str:
        """Why this address can't be reached, if that is known; else nothing."""
        return NOT_SHARED if self._overlaps(address, address + 1) else ""

    def _overlaps(self, start: int, end: int) -> bool:
        with self._lock:
            index = bisect.bisect_left(self._starts, end)
            return index > 0 and self._ends[self._starts[index - 1]] > start

    def _remember(self, iova: int, size: int) -> None:
        if size <= 0 or iova < 0 or iova + size > 1 << 64:
            raise DmaError(f"map of {size:#x} bytes at {iova:#x}: expected a range below 2**64")
        if self._space.is_mapped(iova, size, False):
            raise DmaError(
                f"map of {size:#x} bytes at {iova:#x} overlaps an existing one", errno=errno.EEXIST
            )
        if len(self._starts) >= MAX_RANGES_WITHOUT_FD:
            raise DmaError(
                f"more than {MAX_RANGES_WITHOUT_FD} maps without a file descriptor", errno=errno.ENOSPC
            )
        with self._lock:
            bisect.insort(self._starts, iova)
            self._ends[iova] = iova + size
