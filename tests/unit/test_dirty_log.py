# SPDX-License-Identifier: Apache-2.0
"""The front end's memory and log: CPU writes, harvests, and pre-copy passes made of them."""

from __future__ import annotations

import mmap
from collections.abc import Iterator

import pytest

from vdpa_net.errors import AccessError
from vdpa_net.migration.checks import check_audit_intervals
from vdpa_net.migration.verdict import Outcome
from vdpa_net.testing.dirty_log import DirtyLog
from vdpa_net.testing.guest_memory import GuestMemory
from vdpa_net.testing.precopy import PreCopy

PAGE = 4096
HIGH = 1 << 32
LAYOUT = [(0, 16 * PAGE), (HIGH, 16 * PAGE)]


class Marker:
    """What a device does to memory and log, through mappings of its own."""

    def __init__(self, memory: GuestMemory, log: DirtyLog) -> None:
        self._memory = mmap.mmap(memory.fd, memory.size_bytes)
        self._log = mmap.mmap(log.fd, 0)
        self._offset = log.offset_bytes

    def store(self, place: int, value: int, *, page: int | None) -> None:
        self._memory[place * PAGE] = value
        if page is not None:
            self._log[self._offset + page // 8] |= 1 << page % 8

    def close(self) -> None:
        self._memory.close()
        self._log.close()


@pytest.fixture
def world() -> Iterator[tuple[GuestMemory, PreCopy, Marker]]:
    with GuestMemory(LAYOUT) as source, GuestMemory(LAYOUT) as destination:
        log = DirtyLog.for_memory_end(HIGH + 16 * PAGE, 3 * PAGE)
        marker = Marker(source, log)
        yield source, PreCopy(source, destination, log), marker
        marker.close()
        log.close()


def test_memory_outside_of_its_regions_is_refused() -> None:
    with GuestMemory(LAYOUT) as memory:
        with pytest.raises(AccessError, match="not inside one region"):
            memory.read(16 * PAGE - 1, 2)
        with pytest.raises(AccessError):
            memory.write(HIGH - 1, b"x")
        with pytest.raises(AccessError, match="no room"):
            memory.allocate(17 * PAGE, region=1)


def test_cpu_writes_are_noted_with_every_page_they_touch() -> None:
    with GuestMemory(LAYOUT) as memory:
        memory.write(0, b"before tracking")
        memory.track_cpu_writes()
        memory.write(HIGH + 2 * PAGE - 1, b"xy")
        memory.store_u16(4 * PAGE, 7)
        pages, image = memory.take_cpu_writes()
        assert pages == {HIGH // PAGE + 1, HIGH // PAGE + 2, 4}
        assert image[18 * PAGE - 1 : 18 * PAGE + 1] == b"xy"
        assert memory.take_cpu_writes()[0] == set()


def test_harvest_takes_each_mark_once_and_leaves_what_lies_around_the_log() -> None:
    with GuestMemory(LAYOUT) as memory:
        log = DirtyLog.for_memory_end(HIGH + 16 * PAGE, 3 * PAGE)
        marker = Marker(memory, log)
        for page in (0, 31, 32, 77, HIGH // PAGE + 15):
            marker.store(0, 1, page=page)
        assert log.peek() == log.harvest() == {0, 31, 32, 77, HIGH // PAGE + 15}
        assert log.harvest() == set()
        assert log.stray_bytes() == 0
        marker.close()
        log.close()


def test_log_size_is_counted_in_words_and_not_in_pages() -> None:
    log = DirtyLog.for_memory_end(HIGH + 4 * 1024 * 1024)
    assert (log.size_bytes, log.size_bytes % PAGE) == (131200, 128)
    log.close()
    with pytest.raises(ValueError, match="page size"):
        DirtyLog(64, 100)


def test_pre_copy_of_marked_writes_ends_in_equal_memory(
    world: tuple[GuestMemory, PreCopy, Marker],
) -> None:
    source, copy, device = world
    copy.prepare()
    copy.first_pass()
    device.store(3, 1, page=3)
    source.write(HIGH + 8, b"cpu")
    copy.next_pass()
    device.store(17, 2, page=HIGH // PAGE + 1)
    copy.next_pass()
    assert copy.differing() == []
    assert copy.pages_copied == [32, 2, 1]
    assert copy.written_by_device() == {3, HIGH // PAGE + 1}
    assert check_audit_intervals(copy.audit_intervals()).outcome is Outcome.PASS


def test_an_unmarked_write_makes_memory_differ_and_fails_the_audit(
    world: tuple[GuestMemory, PreCopy, Marker],
) -> None:
    _source, copy, device = world
    copy.prepare()
    copy.first_pass()
    device.store(3, 1, page=3)
    copy.next_pass()
    device.store(3, 2, page=None)
    copy.next_pass()
    assert copy.differing() == [3]
    assert check_audit_intervals(copy.audit_intervals()).outcome is Outcome.FAIL


def test_a_missing_mark_that_a_later_write_heals_still_fails_the_audit(
    world: tuple[GuestMemory, PreCopy, Marker],
) -> None:
    _source, copy, device = world
    copy.prepare()
    copy.first_pass()
    device.store(5, 1, page=None)
    copy.next_pass()
    copy.next_pass()
    device.store(5, 2, page=5)
    copy.next_pass()
    assert copy.differing() == []
    assert check_audit_intervals(copy.audit_intervals()).outcome is Outcome.FAIL


def test_a_mark_that_follows_the_harvest_counts_for_the_store_before_it(
    world: tuple[GuestMemory, PreCopy, Marker],
) -> None:
    _source, copy, device = world
    copy.prepare()
    copy.first_pass()
    device.store(5, 1, page=None)
    copy.next_pass()
    device.store(6, 1, page=5)
    device.store(6, 1, page=6)
    copy.next_pass()
    assert copy.differing() == []
    assert check_audit_intervals(copy.audit_intervals()).outcome is Outcome.PASS
