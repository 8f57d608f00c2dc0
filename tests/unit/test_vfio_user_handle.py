# SPDX-License-Identifier: Apache-2.0
"""The DeviceHandle behind a vfio-user socket: kicks above all."""

from __future__ import annotations

import os
import select
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_vfio_user_fake import BAR_BYTES, FakeFunction, eventfds, memfd, open_fds

from vdpa_net.driver.handle import DeviceHandle
from vdpa_net.driver.vfio_user import VfioUserHandle
from vdpa_net.errors import PeerError, PeerGone
from vdpa_net.transport.vfio_user.server import VfioUserServer

DEADLINE_S = 20


@pytest.fixture(params=[3, 0], ids=["eventfd doorbells", "register doorbells"])
def function(request: pytest.FixtureRequest) -> Iterator[FakeFunction]:
    fake = FakeFunction(doorbell_count=request.param)
    yield fake
    fake.close()


@pytest.fixture
def handle(tmp_path: Path, function: FakeFunction) -> Iterator[VfioUserHandle]:
    with VfioUserServer(tmp_path / "s", function) as server, VfioUserHandle(server.path) as connected:
        yield connected


def wait_readable(fd: int) -> None:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    assert poll.poll(DEADLINE_S * 1000), "no signal came"


def wait_for_kick(function: FakeFunction, queue: int) -> None:
    """Until the doorbell of the queue was rung, in the way that the server offers."""
    if queue < len(function.bells):
        wait_readable(function.bells[queue].fd)
        os.eventfd_read(function.bells[queue].fd)
    else:
        function.wait_for(("write", 4, 0x3000 + 4 * queue, queue.to_bytes(2, "little")))


def test_handle_is_a_device_handle(handle: VfioUserHandle) -> None:
    as_declared: DeviceHandle = handle
    assert as_declared.region_size(4) == BAR_BYTES
    assert as_declared.region_size(0) == 0


def test_kicks_reach_the_doorbell_of_their_queue(handle: VfioUserHandle, function: FakeFunction) -> None:
    with eventfds(2) as fds:
        handle.attach_kick(0, fds[0], 4, 0x3000)
        handle.attach_kick(2, fds[1], 4, 0x3008)
        for queue, fd in [(0, fds[0]), (2, fds[1]), (0, fds[0])]:
            os.eventfd_write(fd, 1)
            wait_for_kick(function, queue)


def test_detached_kick_is_not_read_any_more(handle: VfioUserHandle, function: FakeFunction) -> None:
    with eventfds(2) as fds:
        handle.attach_kick(0, fds[0], 4, 0x3000)
        handle.attach_kick(1, fds[1], 4, 0x3004)
        handle.attach_kick(0, None, 4, 0x3000)
        os.eventfd_write(fds[0], 1)
        os.eventfd_write(fds[1], 1)
        wait_for_kick(function, 1)
        assert os.eventfd_read(fds[0]) == 1


def test_attaching_again_replaces_the_eventfd(handle: VfioUserHandle, function: FakeFunction) -> None:
    with eventfds(2) as fds:
        handle.attach_kick(1, fds[0], 4, 0x3004)
        handle.attach_kick(1, fds[1], 4, 0x3004)
        os.eventfd_write(fds[1], 1)
        wait_for_kick(function, 1)
        os.eventfd_write(fds[0], 1)
        assert os.eventfd_read(fds[0]) == 1


def test_kick_whose_doorbell_is_not_offered_is_written(tmp_path: Path) -> None:
    function = FakeFunction(doorbell_count=1)
    with (
        VfioUserServer(tmp_path / "s", function) as server,
        VfioUserHandle(server.path) as handle,
        eventfds(2) as fds,
    ):
        handle.attach_kick(0, fds[0], 4, 0x3000)
        handle.attach_kick(2, fds[1], 4, 0x3008)
        for queue, fd in [(0, fds[0]), (2, fds[1])]:
            os.eventfd_write(fd, 1)
            wait_for_kick(function, queue)
    function.close()


def test_accesses_maps_and_vectors_reach_the_device(handle: VfioUserHandle, function: FakeFunction) -> None:
    with memfd() as fd, eventfds(1) as fds:
        handle.dma_map(0x1000, 0x1000, fd, 0)
        assert function.maps[0x1000][1] == os.fstat(fd).st_ino
        handle.dma_unmap(0x1000, 0x1000)
        assert not function.maps
        handle.set_irqs(3, list(fds))
        assert list(function.vectors) == [3]
        handle.write(4, 0x10, b"abcd", posted=True)
        assert handle.read(4, 0x10, 4) == b"abcd"
        with pytest.raises(PeerError):
            handle.read(4, BAR_BYTES, 1)


def test_closed_handle_leaves_no_descriptors_and_no_threads(tmp_path: Path, function: FakeFunction) -> None:
    with VfioUserServer(tmp_path / "s", function) as server, eventfds(3) as fds:
        before = {entry for entry in open_fds() if "socket" not in entry}
        for _ in range(5):
            with VfioUserHandle(server.path) as handle:
                for queue, fd in enumerate(fds):
                    handle.attach_kick(queue, fd, 4, 0x3000 + 4 * queue)
            handle.close()
            assert function.detached.acquire(timeout=DEADLINE_S)
            assert {entry for entry in open_fds() if "socket" not in entry} == before


def test_handle_of_a_stopped_server_is_gone(tmp_path: Path, function: FakeFunction) -> None:
    with (
        VfioUserServer(tmp_path / "s", function) as server,
        VfioUserHandle(server.path) as handle,
        eventfds(1) as fds,
    ):
        handle.attach_kick(0, fds[0], 4, 0x3000)
        server.stop()
        os.eventfd_write(fds[0], 1)
        with pytest.raises(PeerGone):
            handle.reset()
