# SPDX-License-Identifier: Apache-2.0
"""The write audit sees what this process wrote through the watched mapping, and nothing else."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from vdpa_net.migration.audit import PAGE_BYTES, Watched, WriteAudit

PAGES = 64
IOVA = 0x10_0000


class TwoViews:
    """One file that this process sees twice, as a device and a VMM see guest memory."""

    def __init__(self) -> None:
        self._fd = os.memfd_create("audit")
        os.ftruncate(self._fd, PAGES * PAGE_BYTES)
        self.device = mmap.mmap(self._fd, PAGES * PAGE_BYTES)
        self.vmm = mmap.mmap(self._fd, PAGES * PAGE_BYTES)
        anchor = ctypes.c_char.from_buffer(self.device)
        self.entry = Watched(ctypes.addressof(anchor), PAGES * PAGE_BYTES, IOVA // PAGE_BYTES)
        del anchor

    def close(self) -> None:
        self.device.close()
        self.vmm.close()
        os.close(self._fd)


@pytest.fixture
def views() -> Iterator[TwoViews]:
    both = TwoViews()
    yield both
    both.close()


def test_nothing_is_reported_before_the_first_write(views: TwoViews) -> None:
    views.device[3 * PAGE_BYTES] = 1
    with WriteAudit([views.entry]) as audit:
        assert audit.written_pages() == set()


def test_a_store_and_a_system_call_are_reported_by_their_page(views: TwoViews) -> None:
    with WriteAudit([views.entry]) as audit:
        views.device[5 * PAGE_BYTES] = 1
        reader, writer = os.pipe()
        os.write(writer, b"x" * 8)
        os.readv(reader, [memoryview(views.device)[20 * PAGE_BYTES - 4 : 20 * PAGE_BYTES + 4]])
        os.close(reader)
        os.close(writer)
        first = IOVA // PAGE_BYTES
        assert audit.written_pages() == {first + 5, first + 19, first + 20}


def test_a_store_of_the_same_value_is_reported(views: TwoViews) -> None:
    with WriteAudit([views.entry]) as audit:
        views.device[7 * PAGE_BYTES] = views.device[7 * PAGE_BYTES]
        assert audit.written_pages() == {IOVA // PAGE_BYTES + 7}


def test_writes_through_another_mapping_are_not_ours(views: TwoViews) -> None:
    with WriteAudit([views.entry]) as audit:
        views.vmm[9 * PAGE_BYTES] = 1
        assert audit.written_pages() == set()


def test_a_range_that_is_added_is_watched_from_then_on(views: TwoViews) -> None:
    with WriteAudit([]) as audit:
        views.device[0] = 1
        audit.watch([views.entry])
        assert audit.written_pages() == set()
        views.device[PAGE_BYTES] = 1
        assert audit.written_pages() == {IOVA // PAGE_BYTES + 1}


def test_a_checkpoint_reports_what_came_since_the_last_one(views: TwoViews) -> None:
    first = IOVA // PAGE_BYTES
    with WriteAudit([views.entry]) as audit:
        views.device[1 * PAGE_BYTES] = 1
        assert audit.checkpoint() == {first + 1}
        views.device[2 * PAGE_BYTES] = 1
        assert audit.checkpoint() == {first + 2}
        views.device[1 * PAGE_BYTES] = 2
        assert audit.checkpoint() == {first + 1}
        assert audit.written_pages() == {first + 1, first + 2}


def test_a_closed_audit_leaves_no_descriptor(views: TwoViews) -> None:
    before = sum(1 for _ in Path("/proc/self/fd").iterdir())
    WriteAudit([views.entry]).close()
    assert sum(1 for _ in Path("/proc/self/fd").iterdir()) == before
