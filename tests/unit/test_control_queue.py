# SPDX-License-Identifier: Apache-2.0
"""Control commands, through the doorbell of the control queue."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from fake_dataplane import FakeBackend, FakePlane, FakeRig, FakeSpace
from hypothesis import given
from hypothesis import strategies as st

from vdpa_net.device.active_pairs import ActivePairs
from vdpa_net.device.control_queue import ControlQueue
from vdpa_net.device.monitor import Monitor
from vdpa_net.device.net_config import NetConfig
from vdpa_net.device.queues import QueueSet
from vdpa_net.errors import AccessError
from vdpa_net.migration.violations import ViolationLog
from vdpa_net.wire import virtio_net

OK, ERR = b"\0", b"\1"
DEADLINE_SECONDS = 10


@pytest.fixture
def rig() -> Iterator[FakeRig]:
    made = FakeRig()
    made.start()
    yield made
    made.close()


def table(*addresses: bytes) -> bytes:
    return len(addresses).to_bytes(4, "little") + b"".join(addresses)


def command(rig: FakeRig, kind: int, number: int, data: bytes) -> bytes:
    rig.plane.commands = [bytes((kind, number)) + data]
    rig.write(0x3008, 2, 2)
    return rig.plane.acks[-1]


def receive_filter(rig: FakeRig) -> dict[str, object]:
    state = rig.device.snapshot()["receive_filter"]
    assert isinstance(state, dict)
    return state


def test_receive_modes_are_accepted(rig: FakeRig) -> None:
    assert command(rig, 0, 0, b"\0") == OK
    assert command(rig, 0, 1, b"\1") == OK
    assert (receive_filter(rig)["promisc"], receive_filter(rig)["allmulti"]) == (False, True)


def test_mac_tables_are_accepted(rig: FakeRig) -> None:
    unicast, multicast = bytes.fromhex("020000000001"), bytes.fromhex("01005e000001")
    assert command(rig, 1, 0, table(unicast) + table(multicast, multicast)) == OK
    assert receive_filter(rig)["unicast"] == ["02:00:00:00:00:01"]
    assert receive_filter(rig)["multicast"] == ["01:00:5e:00:00:01"] * 2
    assert command(rig, 1, 0, table() + table()) == OK
    assert receive_filter(rig)["unicast"] == []


def test_mac_address_is_taken_over(rig: FakeRig) -> None:
    assert command(rig, 1, 1, bytes.fromhex("020000000009")) == OK
    assert rig.device.snapshot()["mac"] == "02:00:00:00:00:09"


@pytest.mark.parametrize(
    ("kind", "number", "data"),
    [
        (0, 2, b"\1"),
        (2, 0, b"\1\0"),
        (3, 0, b""),
        (4, 0, b"\1\0"),
        (5, 0, bytes(8)),
        (255, 255, b""),
        (0, 0, b""),
        (0, 0, b"\1\1"),
        (1, 1, bytes(6)),
        (1, 1, b"\1\0\0\0\0\1"),
        (1, 1, b"\2\0\0\0\0"),
        (1, 0, b""),
        (1, 0, table(b"\2\0\0\0\0\1")),
        (1, 0, table() + table() + b"\0"),
        (1, 0, b"\xff\xff\xff\xff" + bytes(64)),
    ],
)
def test_other_and_malformed_commands_get_err_and_are_recorded(
    rig: FakeRig, kind: int, number: int, data: bytes
) -> None:
    assert command(rig, kind, number, data) == ERR
    assert rig.kinds() == ["control_command"]


def test_command_needs_its_feature() -> None:
    rig = FakeRig()
    try:
        assert rig.negotiate(rig.offered() & ~(1 << virtio_net.F_CTRL_RX))
        rig.set_up_queue(2)
        rig.set_common("device_status", 15)
        assert command(rig, 0, 0, b"\1") == ERR
        assert "CTRL_RX" in rig.violations.entries[0].detail
    finally:
        rig.close()


def test_control_queue_is_scanned_when_it_starts() -> None:
    rig = FakeRig()
    try:
        rig.plane.commands = [b"\0\0\0"]
        rig.start()
        assert rig.plane.acks == [OK]
    finally:
        rig.close()


def test_control_commands_are_served_before_a_stop(rig: FakeRig) -> None:
    rig.plane.commands = [b"\0\0\0"]
    rig.backend.calls.clear()
    rig.set_common("queue_select", 2)
    rig.set_common("queue_enable", 0)
    assert rig.backend.calls == [("control",), ("stop", 2)]


@pytest.mark.parametrize("attached", [True, False])
def test_doorbell_eventfd_serves_the_control_queue(rig: FakeRig, attached: bool) -> None:
    served = threading.Event()

    def process(handler: object) -> int:
        served.set()
        return 0

    rig.plane.process_control = process  # type: ignore[assignment]
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    try:
        rig.device.set_kick(2, fd if attached else None)
        os.eventfd_write(fd if attached else rig.device.doorbells()[2].fd, 1)
        assert served.wait(DEADLINE_SECONDS)
    finally:
        os.close(fd)


def test_kick_that_can_not_be_waited_for_is_refused(rig: FakeRig) -> None:
    with open("/dev/null", "rb") as file, pytest.raises(AccessError, match="kick for queue 2"):  # noqa: PTH123
        rig.device.set_kick(2, file.fileno())
    with pytest.raises(AccessError, match="there are 3"):
        rig.device.set_kick(3, None)


def test_descriptor_that_hangs_up_is_dropped_and_does_not_spin() -> None:
    events: list[str] = []
    arrived = threading.Semaphore(0)

    def note(key: str) -> None:
        events.append(key)
        if key == "bell":
            arrived.release()

    monitor = Monitor(note)
    read_end, write_end = os.pipe()
    bell = os.eventfd(0, os.EFD_NONBLOCK)
    try:
        monitor.watch("pipe", read_end)
        monitor.watch("bell", bell)
        os.close(write_end)
        for _ in range(20):
            os.eventfd_write(bell, 1)
            assert arrived.acquire(timeout=DEADLINE_SECONDS)
        assert events == ["bell"] * 20
    finally:
        monitor.close()
        os.close(read_end)
        os.close(bell)


@given(st.binary(max_size=64))
def test_any_bytes_get_one_ack(data: bytes) -> None:
    config = NetConfig(bytes.fromhex("525400000001"), 1500, 1, 0, lambda: None)
    violations = ViolationLog()
    plane: Any = FakePlane(FakeSpace(), None, 1, True)
    queues = QueueSet(plane, plane.space, [], violations, lambda *_: None)
    pairs = ActivePairs(plane, FakeBackend(), queues, 1)
    control = ControlQueue(config, lambda: (1 << 64) - 1, violations, pairs)
    assert control.handle(data) in (OK, ERR)
    plane.close()
