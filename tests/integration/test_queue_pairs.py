# SPDX-License-Identifier: Apache-2.0
"""Several queue pairs (virtio 1.3, 5.1.2 and 5.1.6.5.5), from a guest's driver to back ends."""

from __future__ import annotations

import contextlib
import gc
import os
import resource
import struct
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from conftest import open_fds
from vdpa_net.backend import Backend
from vdpa_net.backend.loopback import Loopback
from vdpa_net.backend.null import Null, Source
from vdpa_net.device.net_device import NetDevice
from vdpa_net.driver.in_process import InProcessHandle
from vdpa_net.errors import BackendError, OptionError, PeerError, StateError
from vdpa_net.testing.frames import FrameMint
from vdpa_net.testing.guest_driver import WANTED, GuestDriver
from vdpa_net.testing.guest_memory import GuestMemory
from vdpa_net.wire import virtio_net
from vdpa_net.wire.virtio_net import CTRL_ERR, CTRL_OK

MAC = "52:54:00:00:00:01"
MINT = FrameMint(1)
SIZES = (60, 590, 1514)
WITHOUT_CONTROL_QUEUE = WANTED & ~virtio_net.bits(
    (virtio_net.F_CTRL_VQ, virtio_net.F_CTRL_RX, virtio_net.F_CTRL_MAC_ADDR)
)


@contextmanager
def guest(
    backend: Backend, pairs: int, *, features: int = WANTED, slots: tuple[int, int] = (32, 16)
) -> Iterator[tuple[GuestDriver, NetDevice]]:
    """A started driver that uses so many pairs of a device on this back end."""
    with ExitStack() as stack:
        stack.callback(backend.close)
        device = stack.enter_context(NetDevice(backend, mac=MAC, mq=True))
        handle = InProcessHandle(device)
        stack.callback(handle.close)
        memory = stack.enter_context(GuestMemory([(0, (2 << 20) + pairs * (1 << 20) // 2)]))
        driver = stack.enter_context(
            GuestDriver(handle, memory, features=features, pairs=pairs, slots=slots, queue_size=64)
        )
        driver.start()
        yield driver, device


def frames(pair: int) -> list[bytes]:
    return [MINT.frame(100 * pair + number, size) for number, size in enumerate(SIZES)]


def kinds(device: NetDevice) -> list[str]:
    return [entry.what for entry in device.violations.entries]


def config(driver: GuestDriver, field: str) -> int:
    register = virtio_net.DEVICE_CFG[field]
    return int.from_bytes(driver.read_device_config(register.offset, register.width), "little")


def test_each_pair_gets_back_what_it_sent() -> None:
    with guest(Loopback(4), 4) as (driver, device):
        assert config(driver, "max_virtqueue_pairs") == 4
        assert driver.read_common("num_queues") == 9
        assert driver.set_active_pairs(4) == CTRL_OK
        for pair in range(4):
            assert driver.send(frames(pair), pair) == len(SIZES)
        for pair in reversed(range(4)):
            assert driver.receive(len(SIZES), pair=pair) == frames(pair)
            driver.finish_transmit(pair=pair)
        assert kinds(device) == []


def test_only_active_pairs_receive() -> None:
    with guest(Loopback(3), 3) as (driver, device):
        # One pair is active at first, and what another one sends comes back there.
        driver.send(frames(1), 1)
        driver.net[0].post_receive()
        driver.publish(0)
        assert driver.receive(len(SIZES)) == frames(1)
        assert driver.set_active_pairs(2) == CTRL_OK
        driver.send(frames(2), 1)
        assert driver.receive(len(SIZES), pair=1) == frames(2)
        assert driver.set_active_pairs(1) == CTRL_OK
        driver.send(frames(3), 1)
        assert driver.receive(len(SIZES)) == frames(3)
        assert driver.net[1].receive() == []
        assert kinds(device) == []


def test_pairs_that_become_inactive_deliver_before_the_command_is_used() -> None:
    with guest(Loopback(2), 2) as (driver, _):
        driver.set_active_pairs(2)
        driver.send(frames(1), 1)
        # What the device has not yet sent when the command comes may come back on either pair.
        driver.finish_transmit(pair=1)
        assert driver.set_active_pairs(1) == CTRL_OK
        assert driver.net[1].receive() == frames(1)


@pytest.mark.parametrize("data", [b"", b"\1", b"\0\0", b"\5\0", b"\xff\xff", b"\1\0\0"])
def test_an_impossible_number_of_pairs_is_refused_and_recorded(data: bytes) -> None:
    with guest(Loopback(4), 4) as (driver, device):
        assert driver.set_active_pairs(2) == CTRL_OK
        assert driver.control(virtio_net.CTRL_MQ, virtio_net.CTRL_MQ_VQ_PAIRS_SET, data) == CTRL_ERR
        assert kinds(device) == ["control_command"]
        driver.send(frames(1), 1)
        assert driver.receive(len(SIZES), pair=1) == frames(1)


def test_a_reset_returns_to_one_pair() -> None:
    backend = Loopback(2)
    with guest(backend, 2) as (driver, _):
        driver.set_active_pairs(2)
        assert backend.active_pairs == 2
        driver.reset()
        assert backend.active_pairs == 1


@pytest.mark.parametrize("by_eventfd", [False, True])
def test_without_mq_the_control_queue_is_queue_2(by_eventfd: bool) -> None:
    with guest(Loopback(3), 1) as (driver, device):
        assert not driver.features >> virtio_net.F_MQ & 1
        if by_eventfd:
            bell = device.doorbells()[2].fd
            driver.kick = lambda _: os.eventfd_write(bell, 1)  # type: ignore[method-assign]
        assert driver.control(virtio_net.CTRL_RX, virtio_net.CTRL_RX_PROMISC, b"\1") == CTRL_OK
        assert driver.control(virtio_net.CTRL_MQ, virtio_net.CTRL_MQ_VQ_PAIRS_SET, b"\1\0") == CTRL_ERR
        driver.write_common("queue_select", 3)
        assert driver.read_common("queue_size") == 0
        assert kinds(device) == ["control_command"]


def test_a_driver_may_use_mq_and_then_go_without() -> None:
    with guest(Loopback(3), 3) as (driver, device):
        driver.set_active_pairs(3)
        driver.reset()
        handle = driver.handle
        with GuestMemory([(1 << 40, 4 << 20)]) as memory, GuestDriver(handle, memory, slots=(8, 8)) as other:
            other.start()
            other.send(frames(0))
            assert other.receive(len(SIZES)) == frames(0)
            assert other.control(virtio_net.CTRL_RX, virtio_net.CTRL_RX_PROMISC, b"\1") == CTRL_OK
            other.reset()
        driver.start()
        assert kinds(device) == []


def test_without_a_control_queue_the_enabled_pairs_are_active() -> None:
    """A vDPA driver: the control queue is served in front of it."""
    backend = Loopback(4)
    with guest(backend, 3, features=WITHOUT_CONTROL_QUEUE) as (driver, device):
        assert backend.active_pairs == 3
        driver.send(frames(2), 2)
        assert driver.receive(len(SIZES), pair=2) == frames(2)
        driver.stop_queues((0, 1, 2, 3))
        assert backend.active_pairs == 3, "queues that are stopped one after the other detach nothing"
        driver.stop_queues((4, 5))
        assert kinds(device) == []


def test_a_plain_virtio_device_wants_a_control_queue_for_mq() -> None:
    features = WITHOUT_CONTROL_QUEUE
    with ExitStack() as stack:
        device = stack.enter_context(NetDevice(Loopback(2), mac=MAC, mq=True, vdpa=False))
        memory = stack.enter_context(GuestMemory([(0, 2 << 20)]))
        handle = stack.enter_context(contextlib.closing(InProcessHandle(device)))
        driver = stack.enter_context(GuestDriver(handle, memory, features=features, pairs=2, slots=(1, 1)))
        with pytest.raises(PeerError, match="refuses the features"):
            driver.start()
        assert kinds(device) == ["features_unmet"]


@pytest.fixture
def many_files() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.usefixtures("many_files")
@pytest.mark.parametrize("kind", [Loopback, Null])
def test_511_queue_pairs_and_a_control_queue(kind: type[Loopback | Null]) -> None:
    with guest(kind(511), 511, slots=(4, 4)) as (driver, device):
        assert config(driver, "max_virtqueue_pairs") == 511
        assert driver.read_common("num_queues") == 1023
        assert driver.set_active_pairs(511) == CTRL_OK
        for pair in (0, 1, 255, 510):
            assert driver.send(frames(pair), pair) == len(SIZES)
            driver.finish_transmit(pair=pair)
            if kind is Loopback:
                assert driver.receive(len(SIZES), pair=pair) == frames(pair)
        assert kinds(device) == []


@pytest.mark.parametrize("kind", [Loopback, Null])
def test_more_pairs_than_a_device_has_room_for_are_refused_with_the_number(
    kind: type[Loopback | Null],
) -> None:
    with pytest.raises(BackendError, match=r"1 to 511 queue pairs.* got 512"):
        kind(512)


def test_a_back_end_of_more_pairs_than_the_profile_knows_is_refused() -> None:
    with pytest.raises(OptionError, match="profile ifcvf has room for"):
        NetDevice(Loopback(33), mac=MAC, mq=True, profile="ifcvf")


def source_flow(frame: bytes) -> int:
    return struct.unpack_from(">H", frame, 34)[0] - 49152


def reply(frame: bytes) -> bytes:
    """Addresses and ports the other way round."""
    return (
        frame[6:12]
        + frame[:6]
        + frame[12:26]
        + frame[30:34]
        + frame[26:30]
        + frame[36:38]
        + frame[34:36]
        + frame[38:]
    )


def test_a_sources_flow_is_received_where_the_guest_answers_it() -> None:
    with guest(Null(2, Source(flows=4)), 2) as (driver, device):
        driver.set_active_pairs(2)
        first: dict[int, bytes] = {}
        while len(first) < 4:
            for pair in (0, 1):
                driver.net[pair].post_receive()
                driver.publish(pair)
                for frame in driver.receive(4, pair=pair) if pair == 0 or first else []:
                    first[source_flow(frame)] = frame
        # Answer every flow on pair 1: from then on all of them arrive there.
        assert driver.send([reply(frame) for frame in first.values()], 1) == 4
        driver.finish_transmit(pair=1)
        for pair in (0, 1):
            driver.net[pair].receive()
        seen: set[int] = set()
        while len(seen) < 4:
            driver.net[1].post_receive()
            driver.publish(1)
            seen |= {source_flow(frame) for frame in driver.receive(1, pair=1)}
        driver.net[0].receive()
        driver.net[0].post_receive()
        driver.publish(0)
        assert driver.net[0].receive() == []
        assert kinds(device) == []


def test_a_source_numbers_the_packets_of_a_flow() -> None:
    with guest(Null(1, Source(flows=1, packet_bytes=1000, destination=bytes.fromhex("525400000001"))), 1) as (
        driver,
        _,
    ):
        driver.net[0].post_receive()
        driver.publish()
        received = driver.receive(10)
        assert [struct.unpack_from(">Q", frame, 42)[0] for frame in received[:10]] == list(range(10))
        assert {len(frame) for frame in received} == {1000}
        assert {frame[:6].hex() for frame in received} == {"525400000001"}


@pytest.mark.parametrize("bad", [{"packet_bytes": 59}, {"flows": 0}, {"rate_pps": -1}])
def test_an_impossible_source_is_refused_by_name(bad: dict[str, int]) -> None:
    with pytest.raises(BackendError, match=next(iter(bad))):
        Source(**bad)


def test_a_closed_device_gives_everything_back_at_once() -> None:
    """Without waiting for the garbage collector, and to whoever still looks at it."""
    gc.collect()
    gc.disable()
    try:
        with contextlib.closing(Loopback(64)) as backend:
            backend.native()
            before, threads = open_fds(), set(threading.enumerate())
            device = NetDevice(backend, mac="52:54:00:00:00:01", mq=True)
            assert len(open_fds()) > len(before) + 64
            device.close()
            # What tests before this one have left may end meanwhile.
            assert open_fds().items() <= before.items()
            assert set(threading.enumerate()) <= threads
            queues = device.snapshot()["queues"]
            assert isinstance(queues, list) and len(queues) == 129
            assert device.doorbells() == []
            with pytest.raises(StateError, match="closed"):
                device.region_read(4, 0, 4)
    finally:
        gc.enable()
