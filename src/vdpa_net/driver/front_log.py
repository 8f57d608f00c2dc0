# SPDX-License-Identifier: Apache-2.0
"""The two logs of a guest behind a vIOMMU: the device's own of IOVAs, the front end's of guest memory."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Final

from vdpa_net import _native
from vdpa_net.driver.log_area import LogArea
from vdpa_net.wire.vhost_user import LOG_PAGE_BYTES

Translation = tuple[int, int, int]
"""(IOVA, bytes, guest physical address), multiples of the page size."""

_LEAST_COVER: Final = 1 << 32
"""Where a guest's IOVAs are as long as there is room: below 4 GiB."""

_PAGES_PER_BYTE: Final = 8
_PRIVATE: Final = 1 << 60


class PrivateLog:
    """A log for every IOVA below `end`, in memory of our own."""

    def __init__(self, end: int) -> None:
        covered = max(_LEAST_COVER, 1 << (end - 1).bit_length())
        size = covered // LOG_PAGE_BYTES // _PAGES_PER_BYTE
        fd = os.memfd_create("private-log", os.MFD_CLOEXEC)
        try:
            os.ftruncate(fd, size)
            self.area = LogArea(size, 0, fd)
        finally:
            os.close(fd)
        self.covered = covered

    def close(self) -> None:
        """Give the memory back, once nobody has it mapped any more."""
        self.area.close()


class FrontLog:
    """The front end's log as we see it: marks can be looked for, and carried over from a private log.

    Raises DmaError for a log that can't be mapped. `area` stays the caller's.
    """

    def __init__(self, area: LogArea) -> None:
        self._space = _native.DmaSpace()
        self._base = area.inside_bytes
        self._size = area.size_bytes
        self._private: PrivateLog | None = None
        self._space.map(0, area.mapped_bytes, area.fd, area.mapped_offset, True, True)
        self._space.start_log(self._base, self._base + self._size)

    def has_marks(self) -> bool:
        """Whether a page is marked that the front end has not taken yet."""
        return self._space.has_marks(self._base, self._size)

    def carry_over(self, private: PrivateLog, translations: Sequence[Translation]) -> int:
        """Carry the marks of these translations over; how many pages."""
        if private is not self._private:
            self._attach(private)
        return self._space.transcribe(_PRIVATE, _PRIVATE + private.area.size_bytes, list(translations))

    def take_complaints(self) -> list[str]:
        """Marks that were beyond the end of the front end's log, since the last call."""
        return [f"front end's log: {violation.detail}" for violation in self._space.take_violations()]

    def close(self) -> None:
        """Let go of both logs."""
        self._space.stop_log()
        self._space.unmap_all()

    def _attach(self, private: PrivateLog) -> None:
        if self._private is not None:
            self._space.unmap(_PRIVATE, self._private.area.mapped_bytes)
        self._private = None
        self._space.map(_PRIVATE, private.area.mapped_bytes, private.area.fd, 0, True, True)
        self._private = private
