# SPDX-License-Identifier: Apache-2.0
"""The front end's dirty log: the file it lies in, and where the device finds it."""

from __future__ import annotations

import os

from vdpa_net.driver.device_maps import DmaTarget
from vdpa_net.errors import ProtocolError
from vdpa_net.wire.vhost_user import LOG_PAGE_BYTES

LOG_IOVA = 1 << 44
"""Where DPDK's drivers map a log, too: above what a guest has, within the 48 bits of a vIOMMU."""

LOG_IOVA_STRIDE = 1 << 43
"""A log that replaces another one is mapped beside it, since both are there for a moment."""


class LogArea:
    """`size_bytes` of log at `offset_bytes` of a file, with a descriptor of its own."""

    def __init__(self, size_bytes: int, offset_bytes: int, fd: int) -> None:
        """Raises ProtocolError if the file has no such bytes."""
        length = os.fstat(fd).st_size
        if size_bytes == 0 or offset_bytes + size_bytes > length:
            raise ProtocolError(
                f"SET_LOG_BASE: {size_bytes} bytes at offset {offset_bytes} of a file of {length} bytes"
            )
        if size_bytes >= LOG_IOVA_STRIDE:
            raise ProtocolError(f"SET_LOG_BASE: log of {size_bytes} bytes, at most {LOG_IOVA_STRIDE}")
        self.size_bytes = size_bytes
        self.offset_bytes = offset_bytes
        self.fd = os.dup(fd)

    @property
    def mapped_offset(self) -> int:
        """Offset in the file of the first whole page with a byte of the log."""
        return self.offset_bytes // LOG_PAGE_BYTES * LOG_PAGE_BYTES

    @property
    def inside_bytes(self) -> int:
        """Where the log begins in that page."""
        return self.offset_bytes - self.mapped_offset

    @property
    def mapped_bytes(self) -> int:
        """Bytes of the whole pages with the log."""
        return -(-(self.inside_bytes + self.size_bytes) // LOG_PAGE_BYTES) * LOG_PAGE_BYTES

    def close(self) -> None:
        """Give the descriptor back; a mapping made from it stays."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class LogMapping:
    """The log in the device's DMA space: [base, end) are its IOVAs.

    A log may begin anywhere in its file and have any size; what is mapped is whole pages around it.
    """

    def __init__(self, maps: DmaTarget, area: LogArea, previous: LogMapping | None) -> None:
        self._maps = maps
        self._iova = LOG_IOVA
        if previous is not None and previous._iova == LOG_IOVA:
            self._iova = LOG_IOVA + LOG_IOVA_STRIDE
        self._size = area.mapped_bytes
        self.base = self._iova + area.inside_bytes
        self.end = self.base + area.size_bytes
        maps.dma_map(self._iova, self._size, area.fd, area.mapped_offset)

    def close(self) -> None:
        """Take the log out of the device's reach."""
        self._maps.dma_unmap(self._iova, self._size)
