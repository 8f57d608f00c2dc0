# SPDX-License-Identifier: Apache-2.0
"""What a page is to a dirty audit: an IOVA, or a place in a file.

Where a device's maps stay, its IOVAs name pages as the dirty log does. Behind a guest's IOMMU they don't: the
same page of guest memory is mapped here now and there later, and what was written through a map that is gone
must be found all the same. There the files are watched that the maps lead to, and a page is one of a file.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from vdpa_net.migration.audit import PAGE_BYTES, Watched, WriteAudit

if TYPE_CHECKING:
    from vdpa_net import _native

_FILE_PAGES: Final = 1 << 40
"""Pages of one file, by which the numbers of the next one's begin: more than any has."""


@dataclass(frozen=True)
class Taken:
    """An interval: pages written, those of them not marked in it, and how many pages were marked."""

    written: set[int]
    unmarked: set[int]
    marked: int


class AuditPages(Protocol):
    """One way to name pages."""

    def record(self, on: bool) -> None:
        """Record marks from the next start of a log on, or no more."""

    def watch(self) -> WriteAudit:
        """Watch what the device can write now. Raises StateError where the kernel can't."""

    def take(self, audit: WriteAudit) -> Taken:
        """What was written and marked since the last call, seen between two batches of the data plane."""

    def last_write(self, page: int) -> tuple[int, int, bool] | None:
        """Offset and length in the page of what was written there last, and whether it was part of a ring."""


class IovaPages:
    """A page is IOVA >> 12."""

    def __init__(self, space: _native.DmaSpace) -> None:
        self._space = space

    def record(self, on: bool) -> None:
        """As AuditPages says."""
        self._space.record_marks(on)

    def watch(self) -> WriteAudit:
        """As AuditPages says. The log, whose bits the device sets, is left out."""
        log = self._space.log_range()
        return WriteAudit(
            Watched(entry.address, entry.size_bytes, entry.iova // PAGE_BYTES)
            for entry in self._space.mappings()
            if entry.writable and not (log and log[0] < entry.iova + entry.size_bytes and entry.iova < log[1])
        )

    def take(self, audit: WriteAudit) -> Taken:
        """As AuditPages says."""
        written: set[int] = set()
        bits = self._space.take_marked_pages(lambda: written.update(audit.checkpoint()))
        marked = {page for page in written if page // 8 < len(bits) and bits[page // 8] >> page % 8 & 1}
        return Taken(written, written - marked, int.from_bytes(bits).bit_count())

    def last_write(self, page: int) -> tuple[int, int, bool] | None:
        """As AuditPages says."""
        return self._space.last_write(page)


class FilePages:
    """A page is offset >> 12 in the largest file; those of further files are numbered behind it."""

    def __init__(self, space: _native.DmaSpace) -> None:
        self._space = space
        self._first: dict[int, tuple[int, int]] = {}
        """Per file, by its address >> 12 in this process: how many pages, and the number of the first."""

        self._of_logs: set[int] = set()

    def record(self, on: bool) -> None:
        """As AuditPages says."""
        self._space.record_marks(on)
        self._space.record_places(on)

    def watch(self) -> WriteAudit:
        """As AuditPages says. The log can lie in the same file as the rest: the RAM of a level-1 guest."""
        self._first.clear()
        self._of_logs.clear()
        audit = WriteAudit(self._new_files())
        self._note_log()
        return audit

    def take(self, audit: WriteAudit) -> Taken:
        """As AuditPages says. What was written to a file before the first call that sees it is not."""
        audit.watch(self._new_files())
        written: set[int] = set()
        places = self._space.take_marked_places(lambda: written.update(audit.checkpoint()))
        marked = {page for place in places if (page := self._number(place)) is not None}
        self._note_log()
        written -= self._of_logs
        return Taken(written, written - marked, len(marked))

    def last_write(self, page: int) -> tuple[int, int, bool] | None:
        """As AuditPages says."""
        for address, (pages, first) in self._first.items():
            if first <= page < first + pages:
                return self._space.last_write(address + page - first)
        return None

    def _note_log(self) -> None:
        """Learn which pages hold the log: its bits are set by the device, and are no guest's memory."""
        base, end = self._space.log_range() or (0, 0)
        for entry in self._space.mappings():
            first, behind = max(entry.iova, base), min(entry.iova + entry.size_bytes, end)
            for iova in range(first // PAGE_BYTES * PAGE_BYTES, behind, PAGE_BYTES):
                page = self._number((entry.address + iova - entry.iova) // PAGE_BYTES)
                if page is not None:
                    self._of_logs.add(page)

    def _new_files(self) -> Iterable[Watched]:
        files = [
            (size, address)
            for address, size, writable in self._space.files()
            if writable and address // PAGE_BYTES not in self._first
        ]
        found = []
        for size, address in sorted(files, reverse=True):
            first = len(self._first) * _FILE_PAGES
            self._first[address // PAGE_BYTES] = (size // PAGE_BYTES, first)
            found.append(Watched(address, size, first))
        return found

    def _number(self, place: int) -> int | None:
        for address, (pages, first) in self._first.items():
            if address <= place < address + pages:
                return first + place - address
        return None
