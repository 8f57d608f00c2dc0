# SPDX-License-Identifier: Apache-2.0
"""What a network leaves to the receiver of a packet's checksum, and what the driver has negotiated."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from typing import ClassVar

import pytest

from vdpa_net import _native
from vdpa_net.backend import Limits
from vdpa_net.device.net_device import NetDevice
from vdpa_net.driver.in_process import InProcessHandle
from vdpa_net.testing.guest_driver import WANTED, GuestDriver
from vdpa_net.testing.guest_memory import GuestMemory
from vdpa_net.testing.ring import Used
from vdpa_net.wire import virtio_net

NEEDS_CSUM, DATA_VALID = 1, 2
HEADER = struct.Struct("<BBHHHHH")
FIELD = 14 + 20 + 6
"""Where a UDP header begins in a frame, and its checksum in there."""

START = 14 + 20
GUEST_CSUM = 1 << virtio_net.F_GUEST_CSUM


class Wire:
    """A back end whose network is the other end of a socket, as it comes."""

    limits: ClassVar[Limits] = Limits(1, steers_itself=True, has_network=True)
    name = "wire"
    queue_pairs = 1

    def __init__(self) -> None:
        self.ours, self.network = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._native = _native.Tap([self.ours.fileno()])

    def native(self) -> _native.Tap:
        return self._native

    def set_carrier(self, on: bool) -> None:
        pass

    def set_offloads(self, features: int) -> None:
        pass

    def set_active_pairs(self, count: int) -> None:
        pass

    def close(self) -> None:
        self.ours.close()
        self.network.close()


class Station:
    """A driver with these features, and the headers of what it got."""

    def __init__(self, stack: ExitStack, features: int) -> None:
        self.wire = Wire()
        stack.callback(self.wire.close)
        self.device = stack.enter_context(NetDevice(self.wire, mac="52:54:00:00:00:01", mtu=7800))
        handle = stack.enter_context(InProcessHandle(self.device))
        memory = stack.enter_context(GuestMemory([(0, 8 << 20)]))
        self.driver = stack.enter_context(GuestDriver(handle, memory, features=features))
        self.headers: list[bytes] = []
        announced = self.driver.queues._buffers_announced

        def note(data: bytes, used: Used) -> int:
            self.headers.append(data[: HEADER.size])
            return announced(data, used)

        self.driver.queues._buffers_announced = note  # type: ignore[method-assign]
        self.driver.start()
        self.driver.queues.post_receive()
        self.driver.publish()

    def receive(self, flags: int, frame: bytes, start: int = START, offset: int = 6) -> tuple[int, bytes]:
        self.wire.network.send(HEADER.pack(flags, 0, 0, 0, start, offset, 0) + frame)
        (got,) = self.driver.receive(1)
        self.driver.queues.post_receive()
        self.driver.publish()
        return HEADER.unpack(self.headers[-1])[0], got


@pytest.fixture(params=[False, True], ids=["without", "with"])
def station(request: pytest.FixtureRequest) -> Iterator[Station]:
    with ExitStack() as stack:
        yield Station(stack, WANTED | (GUEST_CSUM if request.param else 0))


def frame(size: int) -> bytes:
    """UDP, with half of a checksum."""
    return (bytes.fromhex("525400000001 020000000009 0800") + bytes(range(1, 200)) * 40)[:size]


def checksum(data: bytes) -> int:
    total = sum(struct.unpack(f">{(len(data) + 1) // 2}H", data.ljust(len(data) + len(data) % 2, b"\0")))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


@pytest.mark.parametrize("size", [200, 6000])
def test_a_checksum_is_left_to_those_alone_who_have_negotiated_that(station: Station, size: int) -> None:
    """5.1.6.4.1. A frame of 6000 bytes goes straight to the driver, once there was another one."""
    has = bool(station.driver.features & GUEST_CSUM)
    sent = frame(size)
    assert station.receive(0, sent) == (0, sent)
    assert station.receive(DATA_VALID, sent) == (DATA_VALID if has else 0, sent)
    flags, got = station.receive(NEEDS_CSUM, sent)
    if has:
        assert (flags, got) == (NEEDS_CSUM, sent)
    else:
        whole = sent[:FIELD] + checksum(sent[START:]).to_bytes(2, "big") + sent[FIELD + 2 :]
        assert (flags, got) == (0, whole)
    assert station.receive(0, sent) == (0, sent)
    assert station.device.violations.entries == []


@pytest.mark.parametrize("size", [200, 6000])
def test_a_packet_whose_checksum_can_not_be_made_is_dropped(size: int) -> None:
    with ExitStack() as stack:
        station, sent = Station(stack, WANTED), frame(size)
        assert station.receive(0, sent) == (0, sent)
        station.wire.network.send(HEADER.pack(NEEDS_CSUM, 0, 0, 0, size, 6, 0) + sent)
        assert station.receive(0, sent) == (0, sent)
        queues = station.device.snapshot()["queues"]
        assert queues[0]["counters"]["drops_bad_header"] == 1  # type: ignore[index]
