# SPDX-License-Identifier: Apache-2.0
"""A device of two queue pairs on a tap of two queues, in a network namespace of its own."""

from __future__ import annotations

import contextlib
import errno
import select
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from conftest import NetworkNamespace
from vdpa_net.backend.tap import Tap
from vdpa_net.device.net_device import NetDevice
from vdpa_net.driver.in_process import InProcessHandle
from vdpa_net.errors import BackendError
from vdpa_net.testing.guest_driver import GuestDriver
from vdpa_net.testing.guest_memory import GuestMemory
from vdpa_net.wire.virtio_net import CTRL_OK

pytestmark = pytest.mark.tap

MAC = "52:54:00:00:00:01"
HOST_MAC = bytes.fromhex("020000000002")
GUEST_IP, HOST_IP = bytes([10, 9, 0, 2]), bytes([10, 9, 0, 1])
DEADLINE_SECONDS = 10
DONE = 9  # the port of the frames that end a round


def udp(source_port: int, number: int, *, to_host: bool) -> bytes:
    """A frame of the flow with this port, in either direction."""
    guest = bytes.fromhex(MAC.replace(":", ""))
    ends = (HOST_MAC + guest, GUEST_IP + HOST_IP) if to_host else (guest + HOST_MAC, HOST_IP + GUEST_IP)
    ports = (source_port, 7) if to_host else (7, source_port)
    ip = struct.pack(">BBHHHBBH", 0x45, 0, 36, 0, 0, 64, 17, 0) + ends[1]
    frame = ends[0] + b"\x08\x00" + ip + struct.pack(">HHHHQ", *ports, 16, 0, number)
    return frame.ljust(60, b"\0")


def is_ours(frame: bytes) -> bool:
    return frame[12:14] == b"\x08\x00" and frame[26:34] in (HOST_IP + GUEST_IP, GUEST_IP + HOST_IP)


@pytest.fixture
def tap(netns: NetworkNamespace) -> Iterator[Tap]:
    made = netns.run(Tap, "vt0", queues=2)
    yield made
    made.close()


@pytest.fixture
def driver(tap: Tap) -> Iterator[GuestDriver]:
    with ExitStack() as stack:
        device = stack.enter_context(NetDevice(tap, mac=MAC, mq=True))
        handle = stack.enter_context(contextlib.closing(InProcessHandle(device)))
        memory = stack.enter_context(GuestMemory([(0, 8 << 20)]))
        made = stack.enter_context(GuestDriver(handle, memory, pairs=2, slots=(128, 64)))
        made.start()
        yield made
        assert [entry.what for entry in device.violations.entries] == []


@pytest.fixture
def host(netns: NetworkNamespace, driver: GuestDriver) -> Iterator[socket.socket]:
    def opened() -> socket.socket:
        made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800))
        made.bind(("vt0", 0x0800))
        made.settimeout(DEADLINE_SECONDS)
        return made

    with netns.run(opened) as made:
        yield made


def post(driver: GuestDriver) -> None:
    for pair in (0, 1):
        driver.net[pair].post_receive()
        driver.publish(pair)


def received(driver: GuestDriver, count: int) -> dict[int, list[bytes]]:
    """`count` frames of ours, by the pair on which they came."""
    found: dict[int, list[bytes]] = {0: [], 1: []}
    poll = select.poll()
    for pair in (0, 1):
        poll.register(driver.call_fds[1 + 2 * pair], select.POLLIN)
    while sum(map(len, found.values())) < count:
        for pair in (0, 1):
            found[pair] += filter(is_ours, driver.net[pair].receive())
        if sum(map(len, found.values())) < count and not any(driver.rings[2 * pair].arm() for pair in (0, 1)):
            assert poll.poll(1000 * DEADLINE_SECONDS), f"only {found} came"
    return found


def test_frames_leave_by_both_pairs_and_flows_come_back_where_they_left(
    driver: GuestDriver, host: socket.socket
) -> None:
    assert driver.set_active_pairs(2) == CTRL_OK
    sent = {pair: [udp(1000 * (pair + 1) + flow, 0, to_host=True) for flow in range(8)] for pair in (0, 1)}
    post(driver)
    for pair, frames in sent.items():
        driver.send(frames, pair)
        driver.finish_transmit(pair=pair)
    seen = []
    while len(seen) < 16:
        seen += [frame for frame in [host.recv(2048)] if is_ours(frame)]
    assert sorted(seen) == sorted(sent[0] + sent[1])
    for pair in (0, 1):
        for flow in range(8):
            host.send(udp(1000 * (pair + 1) + flow, 1, to_host=False))
    found = received(driver, 16)
    for pair in (0, 1):
        assert sorted(found[pair]) == [udp(1000 * (pair + 1) + flow, 1, to_host=False) for flow in range(8)]


def test_one_active_pair_gets_everything(driver: GuestDriver, host: socket.socket) -> None:
    driver.set_active_pairs(2)
    post(driver)
    driver.send([udp(2000 + flow, 0, to_host=True) for flow in range(8)], 1)
    driver.finish_transmit(pair=1)
    assert driver.set_active_pairs(1) == CTRL_OK
    for flow in range(8):
        host.send(udp(2000 + flow, 1, to_host=False))
    assert [len(frames) for frames in received(driver, 8).values()] == [8, 0]


def test_pairs_come_and_go_under_traffic(driver: GuestDriver, host: socket.socket) -> None:
    post(driver)
    for turn in range(20):
        assert driver.set_active_pairs(1 + turn % 2) == CTRL_OK
        for flow in range(4):
            host.send(udp(3000 + flow, turn, to_host=False))
        assert sum(map(len, received(driver, 4).values())) == 4
        post(driver)


def test_a_tap_has_at_most_256_queues() -> None:
    with pytest.raises(BackendError, match="a tap has 1 to 256 queues, got 257"):
        Tap("vt0", queues=257)


def test_a_tap_of_256_queues_is_made(netns: NetworkNamespace) -> None:
    netns.run(Tap, "vt0", queues=256).close()


def test_a_tap_without_multi_queue_is_refused_for_several(netns: NetworkNamespace) -> None:
    first = netns.run(Tap, "vt0")
    with pytest.raises(BackendError, match="a single queue") as caught:
        netns.run(Tap, "vt0", queues=2)
    assert caught.value.errno == errno.EINVAL
    first.close()


def test_one_queue_of_a_multi_queue_tap_is_taken_over(netns: NetworkNamespace, tap: Tap) -> None:
    other = netns.run(Tap, "vt0")
    assert (other.name, other.queue_pairs) == ("vt0", 1)
    other.close()
