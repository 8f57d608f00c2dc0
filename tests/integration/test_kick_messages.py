# SPDX-License-Identifier: Apache-2.0
"""Kicks that come as vfio-user messages: their reader sends while the worker rests, or wakes it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from integration.threads import names, settle, switches
from integration.vhost_steps import await_true
from vdpa_net.backend import Backend
from vdpa_net.backend.loopback import Loopback
from vdpa_net.backend.null import Null
from vdpa_net.device.net_device import NetDevice
from vdpa_net.driver.vfio_user import VfioUserHandle
from vdpa_net.testing.frames import FrameMint
from vdpa_net.testing.guest_cpu import RX, TX
from vdpa_net.testing.guest_driver import PACKED, WANTED, GuestDriver
from vdpa_net.testing.guest_memory import GuestMemory
from vdpa_net.transport.vfio_user.server import VfioUserServer
from vdpa_net.wire import virtio_net

MAC = "52:54:00:00:00:01"
FRAMES = 50
MANY = 40
"""More than are sent for a kick in the worker's place."""

both_formats = pytest.mark.parametrize("features", [WANTED, WANTED | PACKED], ids=["split", "packed"])


@contextlib.contextmanager
def served(
    directory: Path, backend: Backend, features: int = WANTED
) -> Iterator[tuple[GuestDriver, NetDevice]]:
    """A driver whose doorbells are messages, on a device that neither polls nor collects."""
    with ExitStack() as stack:
        stack.callback(backend.close)
        device = stack.enter_context(
            NetDevice(
                backend, mac=MAC, mq=True, poll_us=0, coalesce_us=0, enabled_features=frozenset({"packed"})
            )
        )
        server = stack.enter_context(VfioUserServer(directory / "dev.sock", device))
        handle = stack.enter_context(VfioUserHandle(server.path))
        memory = stack.enter_context(GuestMemory([(0, 16 << 20)]))
        driver = stack.enter_context(GuestDriver(handle, memory, features=features, slots=(250, 64)))
        driver.start()
        yield driver, device


def counter(device: NetDevice, queue: int, name: str) -> int:
    return device.snapshot()["queues"][queue]["counters"][name]  # type: ignore[index, no-any-return]


def workers(others: set[int]) -> set[int]:
    return {task for task, name in names().items() if name.startswith("vdpa-pair")} - others


@both_formats
def test_a_worker_that_rests_is_not_woken_for_what_is_sent(tmp_path: Path, features: int) -> None:
    others, mint = set(names()), FrameMint(1)
    with served(tmp_path, Null(1), features) as (driver, device):
        # The first one comes with the receive buffers, for which the worker gets up: it may find the frame
        # before it has asked for a kick.
        driver.send([mint.frame(0, 200)])
        driver.finish_transmit()
        settle(set(names()) - others)
        own = workers(others)
        before, packets, kicks = switches(), counter(device, TX, "packets"), counter(device, TX, "kicks")
        for number in range(1, FRAMES + 1):
            assert driver.send([mint.frame(number, 200)]) == 1
            driver.finish_transmit()
            # The frame is through before its sender asks for the next kick; one that came in between would be
            # for the worker.
            assert await_true(lambda heard=kicks + number: counter(device, TX, "kicks") == heard)
        after = switches()
        assert counter(device, TX, "packets") == packets + FRAMES
        assert {task: after[task] for task in own} == {task: before[task] for task in own}


@both_formats
@pytest.mark.parametrize("coalesce_us", [0, 150])
@pytest.mark.parametrize("poll_us", [0, 20])
def test_nothing_is_lost_between_who_hears_a_kick_and_the_worker(
    tmp_path: Path, features: int, poll_us: int, coalesce_us: int
) -> None:
    mint = FrameMint(2)
    with served(tmp_path, Loopback(), features) as (driver, device):
        device.poll_us, device.coalesce_us = poll_us, coalesce_us
        for turn in range(60):
            frames = [mint.frame(turn * MANY + part, 300) for part in range(1 + turn % MANY)]
            assert driver.send(frames) == len(frames)
            assert driver.receive(len(frames)) == frames
            driver.finish_transmit()
        assert device.violations.entries == []


def test_a_kick_is_heard_across_stops_and_starts(tmp_path: Path) -> None:
    mint = FrameMint(3)
    with served(tmp_path, Loopback()) as (driver, device):
        for turn in range(10):
            frame = mint.frame(turn, 200)
            driver.stop_queues()
            driver.queues.post_receive()
            assert driver.queues.transmit(frame)
            driver.publish()
            driver.kick(RX)
            driver.kick(TX)
            for queue in (RX, TX):
                driver.write_common("queue_select", queue)
                driver.write_common("queue_enable", 1)
            assert driver.receive(1) == [frame]
            driver.finish_transmit()
        assert device.violations.entries == []


def test_the_control_queue_hears_the_doorbell_of_the_second_pair_without_mq(tmp_path: Path) -> None:
    with served(tmp_path, Loopback(2), WANTED & ~(1 << virtio_net.F_MQ)) as (driver, _):
        for turn in range(5):
            answer = driver.control(virtio_net.CTRL_RX, virtio_net.CTRL_RX_PROMISC, bytes([turn % 2]))
            assert answer == virtio_net.CTRL_OK
