# SPDX-License-Identifier: Apache-2.0
"""DMA maps as a client asks for them, including memory that came without a file descriptor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from vdpa_net._native import DmaSpace

NOT_SHARED: Final = (
    "this memory came without a file descriptor; give the VM's memory backend share=on"
    " (-object memory-backend-memfd,share=on)"
)


class DmaMaps:
    """The client's maps. All of them live in the DMA space, in one map ordered by address.

    The caller holds the device's lock, except for `hint`, which any thread may ask.
    """

    def __init__(self, space: DmaSpace) -> None:
        self._space = space

    @property
    def count(self) -> int:
        """How many there are."""
        return self._space.map_count()

    def map(
        self, iova: int, size: int, fd: int | None, offset: int, *, readable: bool, writable: bool
    ) -> None:
        """Map a range. Raises DmaError."""
        if fd is None:
            self._space.reserve(iova, size)
        else:
            self._space.map(iova, size, fd, offset, readable, writable)

    def unmap(self, iova: int, size: int) -> None:
        """Remove exactly one map; on return nothing touches it. Raises DmaError."""
        self._space.unmap(iova, size)

    def unmap_within(self, iova: int, size: int) -> int:
        """Remove the maps inside of a range; returns how many there were. Raises DmaError if it cuts one."""
        return self._space.unmap_within(iova, size)

    def unmap_all(self) -> int:
        """Remove all maps; returns how many there were."""
        return self._space.unmap_all()

    def hint(self, address: int) -> str:
        """Why this address can't be reached, if that is known; else nothing."""
        return NOT_SHARED if 0 <= address < 1 << 64 and self._space.is_without_file(address) else ""
