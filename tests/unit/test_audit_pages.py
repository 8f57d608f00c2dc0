# SPDX-License-Identifier: Apache-2.0
"""A page of a file is the same page whatever the IOVA at which the device wrote it."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from vdpa_net import _native
from vdpa_net.device.audit_pages import FilePages
from vdpa_net.migration.audit import PAGE_BYTES

LOG = 1 << 30
PAGES = 64
RAM, SECOND = 0, 1


class Space:
    """A DMA space whose log runs, and two files of guest memory, the first one the larger."""

    def __init__(self, *, log_in_ram: bool = False) -> None:
        self.dma = _native.DmaSpace()
        self.pages = FilePages(self.dma)
        self._fds = [_file("ram", PAGES), _file("second", PAGES // 2), _file("log", 8)]
        if log_in_ram:
            self._map_scattered_log()
        else:
            self.dma.map(LOG, 8 * PAGE_BYTES, self._fds[2], 0, True, True)
        self.map(0, RAM, 0)
        self.pages.record(True)
        self.dma.start_log(LOG, LOG + 8 * PAGE_BYTES)

    def _map_scattered_log(self) -> None:
        """Pages 63, 61 .. 49 of the RAM, as a level-1 guest happens to have them free."""
        for number in range(8):
            offset = PAGES - 1 - 2 * number
            self.dma.map(
                LOG + number * PAGE_BYTES, PAGE_BYTES, self._fds[RAM], offset * PAGE_BYTES, True, True
            )

    def map(self, page: int, file: int, offset_pages: int) -> None:
        self.dma.map(page * PAGE_BYTES, PAGE_BYTES, self._fds[file], offset_pages * PAGE_BYTES, True, True)

    def unmap(self, page: int) -> None:
        self.dma.unmap(page * PAGE_BYTES, PAGE_BYTES)

    def write(self, page: int) -> None:
        self.dma.write(page * PAGE_BYTES + 8, b"four")

    def close(self) -> None:
        self.dma.stop_log()
        self.dma.unmap_all()
        for fd in self._fds:
            os.close(fd)


def _file(name: str, pages: int) -> int:
    fd = os.memfd_create(name)
    os.ftruncate(fd, pages * PAGE_BYTES)
    return fd


@pytest.fixture
def space() -> Iterator[Space]:
    made = Space()
    yield made
    made.close()


def test_what_was_written_and_marked_through_a_map_that_is_gone_is_found(space: Space) -> None:
    with space.pages.watch() as audit:
        for page, offset in ((5, 7), (6, 20), (5, 21)):
            space.map(page, RAM, offset)
            space.write(page)
            space.unmap(page)
        taken = space.pages.take(audit)
        assert taken.written == {7, 20, 21}
        assert taken.unmarked == set()
        assert taken.marked == 3
        assert space.pages.last_write(20) == (8, 4, False)
        assert space.pages.last_write(6) is None
        assert space.pages.take(audit).written == set()


def test_a_mark_under_another_address_does_not_stand_for_the_page(space: Space) -> None:
    with space.pages.watch() as audit:
        space.map(9, RAM, 9)
        space.write(9)
        space.unmap(9)
        # Without a log nothing is marked: this write has to be found.
        space.dma.stop_log()
        space.map(10, RAM, 11)
        space.write(10)
        taken = space.pages.take(audit)
        assert taken.written == {9, 11}
        assert taken.unmarked == {11}


def test_all_of_a_file_stays_watched_when_its_last_map_goes(space: Space) -> None:
    with space.pages.watch() as audit:
        space.unmap(0)
        space.map(3, RAM, 30)
        space.write(3)
        assert space.pages.take(audit).written == {30}


def test_pages_of_a_further_file_have_numbers_of_their_own(space: Space) -> None:
    with space.pages.watch() as audit:
        space.map(1, SECOND, 2)
        space.pages.take(audit)
        space.write(1)
        space.write(0)
        taken = space.pages.take(audit)
        assert 0 in taken.written
        (other,) = taken.written - {0}
        assert other % (1 << 40) == 2
        assert taken.unmarked == set()
        assert space.pages.last_write(other) == (8, 4, False)


def test_log_in_the_same_file_as_the_guests_memory_is_none_of_it() -> None:
    space = Space(log_in_ram=True)
    with space.pages.watch() as audit:
        space.map(5, RAM, 7)
        space.write(5)
        taken = space.pages.take(audit)
    assert (taken.written, taken.unmarked, taken.marked) == ({7}, set(), 1)
    space.close()
