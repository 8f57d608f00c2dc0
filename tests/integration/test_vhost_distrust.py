# SPDX-License-Identifier: Apache-2.0
"""Descriptors, memory and sizes of a vhost-user front end that are not what they should be.

The back end and its device live on."""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from conftest import open_fds
from integration.vhost_steps import run_dry
from vdpa_net.backend.loopback import Loopback
from vdpa_net.device.net_device import NetDevice
from vdpa_net.driver.in_process import InProcessHandle
from vdpa_net.driver.vdpa_driver import VdpaDriver
from vdpa_net.driver.vhost_backend import VhostBackend
from vdpa_net.errors import PeerError, ProtocolError
from vdpa_net.testing.dirty_log import DirtyLog
from vdpa_net.testing.front_end import Manners
from vdpa_net.testing.guest_cpu import RX, TX
from vdpa_net.testing.vhost_connection import Request
from vdpa_net.testing.vhost_guest import HIGH, LAYOUT, MAC, VhostGuest
from vdpa_net.testing.vhost_side import VhostSide
from vdpa_net.transport.vhost_user.server import VhostUserServer

U64 = struct.Struct("<Q")
STATE = struct.Struct("<II")
REGION = struct.Struct("<QQQQ")
FULL = 2**64 - 2
"""The most that an eventfd counts: one more blocks its writer."""

PATIENCE_S = 20
USER_BASE = 0x7F40_0000_0000


@pytest.fixture
def full_eventfd() -> Iterator[int]:
    fd = os.eventfd(0)
    os.eventfd_write(fd, FULL)
    yield fd
    # Whoever still waits for it can go on.
    os.eventfd_read(fd)
    os.close(fd)


def test_an_error_eventfd_that_is_full_holds_up_nobody(
    guest: VhostGuest, side: VhostSide, full_eventfd: int
) -> None:
    broken = threading.Event()
    side.device.on_event(lambda name, _info: broken.set() if name == "needs_reset" else None)
    for queue in (RX, TX):
        guest.front_end.request(Request.SET_VRING_ERR, U64.pack(queue), [full_eventfd])
    run_dry(guest, 10)
    guest.rings[TX].poke_avail_idx(guest.rings[TX].used_idx + guest.rings[TX].size + 7)
    guest.front_end.kick(TX)
    assert broken.wait(PATIENCE_S)
    status = guest.front_end.get_u64(Request.GET_STATUS)
    assert status & 64


def test_a_log_eventfd_that_is_full_holds_up_nobody(
    guest: VhostGuest, full_eventfd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    signalled, write = threading.Event(), os.eventfd_write

    def signal(fd: int, value: int) -> None:
        if threading.current_thread().name == "timer":
            signalled.set()
        write(fd, value)

    monkeypatch.setattr(os, "eventfd_write", signal)
    log = DirtyLog.for_memory_end(HIGH + (8 << 20))
    guest.front_end.request(Request.SET_LOG_FD, b"", [full_eventfd])
    guest.front_end.start_logging(log)
    guest.run(50)
    assert signalled.wait(PATIENCE_S)
    guest.front_end.stop()
    assert log.harvest()
    log.close()


def _eventfd(stack: ExitStack) -> int:
    fd = os.eventfd(0)
    stack.callback(os.close, fd)
    return fd


def _netlink(stack: ExitStack) -> int:
    """A socket that can't be shut down."""
    return stack.enter_context(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)).fileno()


@pytest.mark.parametrize("make", [_eventfd, _netlink])
def test_a_channel_that_is_no_unix_stream_is_refused_and_not_kept(
    guest: VhostGuest, make: Callable[[ExitStack], int]
) -> None:
    with ExitStack() as stack:
        fd = make(stack)
        before = len(open_fds())
        for _ in range(5):
            with pytest.raises(PeerError, match="SET_BACKEND_REQ_FD"):
                guest.front_end.request(Request.SET_BACKEND_REQ_FD, fds=[fd])
        assert len(open_fds()) == before
    guest.run(10)


def test_memory_whose_file_was_cut_off_ends_nothing_but_the_ring(guest: VhostGuest, side: VhostSide) -> None:
    """The used index of a ring that is started lies in it: a look there by a map would be SIGBUS."""
    bases = guest.front_end.stop()
    os.ftruncate(guest.memory.fd, 0)
    with pytest.raises(PeerError):
        guest.front_end.start(bases)
    assert any("too short" in text for text in side.violations())


def loop(stack: ExitStack, rx_queue_size: int = 256, tx_queue_size: int = 256) -> NetDevice:
    """A device that sends back what it gets, until the stack is left."""
    backend = Loopback(1)
    stack.callback(backend.close)
    return stack.enter_context(
        NetDevice(backend, mac=MAC, rx_queue_size=rx_queue_size, tx_queue_size=tx_queue_size)
    )


def serve(stack: ExitStack, directory: Path, handle: InProcessHandle) -> tuple[VhostUserServer, VdpaDriver]:
    """A back end on this device, until the stack is left."""
    stack.enter_context(handle)
    driver = VdpaDriver(handle)
    return stack.enter_context(VhostUserServer(directory / "vhost", VhostBackend(driver))), driver


def test_each_ring_is_as_long_as_its_own_queue_at_most(tmp_path: Path) -> None:
    with ExitStack() as stack:
        device = loop(stack, rx_queue_size=512, tx_queue_size=256)
        server, _ = serve(stack, tmp_path, InProcessHandle(device))
        guest = VhostGuest(server.path)
        stack.callback(guest.close)
        guest.front_end.connect()
        guest.front_end.stop()
        guest.front_end.request(Request.SET_VRING_NUM, STATE.pack(RX, 512))
        with pytest.raises(PeerError, match="SET_VRING_NUM"):
            guest.front_end.request(Request.SET_VRING_NUM, STATE.pack(TX, 512))


def table(regions: list[tuple[int, int, int]]) -> bytes:
    """SET_MEM_TABLE of (guest address, size, offset in the file)."""
    packed = [REGION.pack(gpa, size, USER_BASE + offset, offset) for gpa, size, offset in regions]
    return struct.pack("<II", len(packed), 0) + b"".join(packed)


class Watched(InProcessHandle):
    """Notes which queues run while memory is taken away."""

    def __init__(self, device: NetDevice) -> None:
        super().__init__(device)
        self.device = device
        self.running: set[int] = set()

    def dma_unmap(self, iova: int, size: int) -> None:
        queues = self.device.snapshot()["queues"]
        self.running |= {queue["index"] for queue in queues if queue["enabled"]}
        super().dma_unmap(iova, size)


@pytest.mark.parametrize("disabled", [False, True])
def test_memory_that_is_described_anew_under_traffic_is_never_missed(tmp_path: Path, disabled: bool) -> None:
    """QEMU cuts its regions differently when something is mapped into them, while the guest goes on."""
    low, high = LAYOUT[0][1], LAYOUT[1][1]
    halves = [(0, low, 0), (HIGH, high // 2, low), (HIGH + high // 2, high // 2, low + high // 2)]
    with ExitStack() as stack:
        device = loop(stack)
        handle = Watched(device)
        server, _ = serve(stack, tmp_path, handle)
        guest = VhostGuest(server.path, manners=Manners(memory_slots=False))
        stack.callback(guest.close)
        guest.front_end.connect()
        guest.run(20)
        if disabled:
            guest.front_end.request(Request.SET_VRING_ENABLE, STATE.pack(TX, 0))
        for regions in (halves, [(0, low, 0), (HIGH, high, low)]) * 3:
            fds = [guest.memory.fd] * len(regions)
            guest.front_end.request(Request.SET_MEM_TABLE, table(regions), fds)
        assert handle.running == set()
        if disabled:
            guest.front_end.request(Request.SET_VRING_ENABLE, STATE.pack(TX, 1))
        guest.run(50)
        assert guest.cpu.ledger.corrupted == []
        assert list(device.violations.entries) == []
        assert list(server.errors) == []


class Stubborn(InProcessHandle):
    """A device that does not let go of its queues."""

    is_stubborn = False

    def read(self, region: int, offset: int, size: int) -> bytes:
        if self.is_stubborn:
            raise ProtocolError("no answer")
        return super().read(region, offset, size)


def test_a_device_that_does_not_stop_is_there_for_the_next_front_end(tmp_path: Path) -> None:
    with ExitStack() as stack:
        device = loop(stack)
        handle = Stubborn(device)
        server, driver = serve(stack, tmp_path, handle)
        first = VhostGuest(server.path)
        first.front_end.connect()
        handle.is_stubborn = True
        first.close()
        # It is greeted when the first one is cleared away.
        second = VhostGuest(server.path)
        stack.callback(second.close)
        second.front_end.negotiate()
        assert not driver.is_running
        handle.is_stubborn = False
        second.front_end.start()
        second.run(20)
