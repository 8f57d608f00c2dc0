# SPDX-License-Identifier: Apache-2.0
"""The page request registers: what a device asks its driver for, and what it is told."""

from __future__ import annotations

import os
import select
from collections.abc import Iterator

import pytest
from fake_dataplane import FakeRig

from vdpa_net.driver.in_process import InProcessHandle
from vdpa_net.driver.page_requests import PageRequests
from vdpa_net.driver.pci_scan import scan
from vdpa_net.wire.page_requests import PAGE_REQUESTS, VALID

VECTOR = 3
PATIENCE_MS = 10_000


@pytest.fixture
def rig() -> Iterator[FakeRig]:
    made = FakeRig()
    yield made
    made.close()


def driver(rig: FakeRig, vector: int = VECTOR) -> PageRequests:
    window = scan(InProcessHandle(rig.device)).page_requests
    assert window is not None
    return PageRequests(InProcessHandle(rig.device), window.region, window.offset, vector)


def register(rig: FakeRig, name: str, value: int | None = None) -> int:
    window = scan(InProcessHandle(rig.device)).page_requests
    assert window is not None
    place = (window.region, window.offset + PAGE_REQUESTS[name].offset)
    if value is not None:
        rig.device.region_write(*place, value.to_bytes(4, "little"))
    return int.from_bytes(rig.device.region_read(*place, 4), "little")


def await_signal(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(PATIENCE_MS))


def test_request_comes_with_the_vector_and_is_read_once(rig: FakeRig) -> None:
    requests = driver(rig)
    event = os.eventfd(0, os.EFD_NONBLOCK)
    requests.watch_misses(event)
    rig.space.miss((0x1234_5678_9000, True), (0x7000, False))
    assert await_signal(event)
    assert requests.take_misses() == [(0x1234_5678_9000, True), (0x7000, False)]
    assert requests.take_misses() == []
    os.close(event)


def test_request_that_waits_is_told_of_only_while_its_page_is_missing(rig: FakeRig) -> None:
    requests = driver(rig)
    event = os.eventfd(0, os.EFD_NONBLOCK)
    requests.watch_misses(event)
    rig.space.miss((0x1000, True), (0x7000, False))
    assert register(rig, "PRQ_REQUEST_LOW") & VALID
    rig.space.forget_misses()
    assert register(rig, "PRQ_REQUEST_LOW") == 0
    os.close(event)


def test_answers_reach_the_data_plane(rig: FakeRig) -> None:
    requests = driver(rig)
    event = os.eventfd(0, os.EFD_NONBLOCK)
    requests.watch_misses(event)
    requests.retry_miss(0x1234_5678_9000, True)
    requests.refuse_miss(0x7000, False)
    assert rig.space.answers == [("retry", 0x1234_5678_9000, True), ("refuse", 0x7000, False)]
    os.close(event)


def test_without_requests_switched_on_nothing_waits(rig: FakeRig) -> None:
    requests = driver(rig)
    event = os.eventfd(0, os.EFD_NONBLOCK)
    requests.watch_misses(event)
    requests.watch_misses(None)
    assert rig.space.miss_fd is None
    requests.retry_miss(0x7000, False)
    assert rig.space.answers == []
    os.close(event)


def test_reset_of_the_function_ends_it_and_one_of_virtio_does_not(rig: FakeRig) -> None:
    requests = driver(rig)
    event = os.eventfd(0, os.EFD_NONBLOCK)
    requests.watch_misses(event)
    rig.device.region_write(4, 0x14, b"\0")
    assert register(rig, "PRQ_CTRL") == 1
    rig.device.reset()
    assert (register(rig, "PRQ_CTRL"), rig.space.miss_fd) == (0, None)
    os.close(event)


def test_value_that_is_none_is_refused_and_recorded(rig: FakeRig) -> None:
    assert register(rig, "PRQ_CTRL", 2) == 0
    assert rig.kinds() == ["bad_page_request_ctrl"]


def test_vector_that_is_not_there_reads_as_none(rig: FakeRig) -> None:
    assert register(rig, "PRQ_VECTOR", 99) == 0xFFFF
    assert register(rig, "PRQ_VECTOR", VECTOR) == VECTOR


@pytest.mark.parametrize("profile", ["ifcvf", "ifcvf-linux"])
def test_layouts_of_others_have_none(profile: str) -> None:
    rig = FakeRig(profile=profile)
    assert scan(InProcessHandle(rig.device)).page_requests is None
    rig.close()


def test_plain_virtio_net_has_none() -> None:
    rig = FakeRig(vdpa=False)
    vendor = [at for at in range(0x40, 0x100, 4) if rig.device.region_read(7, at, 4)[3] == 9]
    assert vendor == []
    rig.close()
