# SPDX-License-Identifier: Apache-2.0
"""Control commands, through the doorbell of the control queue."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from fake_dataplane import MAC, FakeBackend, FakePlane, FakeRig, FakeSpace
from hypothesis import given
from hypothesis import strategies as st

from vdpa_net.device.active_pairs import ActivePairs
from vdpa_net.device.control_queue import ControlQueue
from vdpa_net.device.monitor import Monitor
from vdpa_net.device.net_config import NetConfig
from vdpa_net.device.packet_path import PacketPath
from vdpa_net.device.queues import QueueSet
from vdpa_net.device.receive_filter import ReceiveFilter
from vdpa_net.errors import AccessError, BackendError
from vdpa_net.migration.violations import ViolationLog
from vdpa_net.wire import virtio_net as net

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
    ("number", "mode"), list(enumerate(("promisc", "allmulti", "alluni", "nomulti", "nouni", "nobcast")))
)
def test_every_receive_mode_is_switched_by_its_command(rig: FakeRig, number: int, mode: str) -> None:
    for value in (1, 0, 1):
        assert command(rig, net.CTRL_RX, number, bytes([value])) == OK
        assert receive_filter(rig)[mode] == bool(value)


def test_vlans_are_added_and_removed(rig: FakeRig) -> None:
    assert receive_filter(rig)["vlans"] == []
    for vlan in (0, 7, 4095, 7):
        assert command(rig, net.CTRL_VLAN, net.CTRL_VLAN_ADD, vlan.to_bytes(2, "little")) == OK
    assert receive_filter(rig)["vlans"] == [0, 7, 4095]
    for vlan in (7, 9):
        assert command(rig, net.CTRL_VLAN, net.CTRL_VLAN_DEL, vlan.to_bytes(2, "little")) == OK
    assert receive_filter(rig)["vlans"] == [0, 4095]
    assert rig.kinds() == []


def test_offloads_go_to_the_back_end_with_the_other_features_kept(rig: FakeRig) -> None:
    negotiated = rig.backend.calls[[call[0] for call in rig.backend.calls].index("offloads")][1]
    wanted = net.bits((net.F_GUEST_CSUM, net.F_GUEST_TSO4))
    assert command(rig, 5, 0, wanted.to_bytes(8, "little")) == OK
    assert rig.backend.calls[-1] == ("offloads", (negotiated & ~net.GUEST_OFFLOADS) | wanted)
    rig.backend.fail = BackendError("the tap is gone")
    assert command(rig, 5, 0, bytes(8)) == ERR
    assert "the tap is gone" in rig.violations.entries[-1].detail


def test_offloads_that_were_not_negotiated_are_refused() -> None:
    rig = FakeRig()
    try:
        assert rig.negotiate(rig.offered() & ~net.bits((net.F_GUEST_TSO6, net.F_GUEST_ECN)))
        rig.set_up_queue(2)
        rig.set_common("device_status", 15)
        for bit in (net.F_GUEST_TSO6, net.F_CSUM, 10, 63):
            assert command(rig, 5, 0, (1 << bit).to_bytes(8, "little")) == ERR
        assert command(rig, 5, 0, (1 << net.F_GUEST_TSO4).to_bytes(8, "little")) == OK
    finally:
        rig.close()


def test_a_reset_forgets_what_was_asked_for(rig: FakeRig) -> None:
    command(rig, net.CTRL_RX, net.CTRL_RX_PROMISC, b"\0")
    command(rig, net.CTRL_VLAN, net.CTRL_VLAN_ADD, b"\5\0")
    command(rig, net.CTRL_MAC, net.CTRL_MAC_ADDR_SET, bytes.fromhex("020000000009"))
    rig.set_common("device_status", 0)
    assert receive_filter(rig) == ReceiveFilter().as_json()
    rig.start()
    assert receive_filter(rig) == {**ReceiveFilter().as_json(), "vlans": []}
    assert rig.device.snapshot()["mac"] == MAC


TABLE_OF_ONE = (1).to_bytes(4, "little")


@pytest.mark.parametrize(
    ("kind", "number", "data", "reason"),
    [
        (0, 6, b"\1", "no such class"),
        (3, 1, b"", "no such class"),
        (4, 1, bytes(14), "no such class"),
        (255, 255, b"", "no such class"),
        (0, 0, b"", "PROMISC: takes 1 bytes, got 0"),
        (0, 0, b"\1\1", "PROMISC: takes 1 bytes, got 2"),
        (0, 5, b"\2", "NOBCAST: 0 or 1"),
        (1, 1, bytes(6), "unicast"),
        (1, 1, b"\1\0\0\0\0\1", "unicast"),
        (1, 1, b"\2\0\0\0\0", "takes 6 bytes, got 5"),
        (1, 0, b"", "MAC_TABLE_SET"),
        (1, 0, table(b"\2\0\0\0\0\1"), "MAC_TABLE_SET"),
        (1, 0, table() + table() + b"\0", "behind the two tables"),
        (1, 0, b"\xff\xff\xff\xff" + bytes(64), "4294967295 addresses"),
        (1, 0, table(b"\1\0\0\0\0\1") + table(), "in the unicast table"),
        (1, 0, table() + table(b"\2\0\0\0\0\1"), "in the multicast table"),
        (2, 0, b"\1", "VLAN_ADD: takes 2 bytes, got 1"),
        (2, 1, b"\0\x10", "VLANs are 0 to 4095, got 4096"),
        (3, 0, b"\0", "ANNOUNCE_ACK: takes 0 bytes"),
        (4, 0, b"\1\0", "needs MQ"),
        (5, 0, bytes(7), "GUEST_OFFLOADS_SET: takes 8 bytes"),
    ],
)
def test_other_and_malformed_commands_get_err_and_are_recorded(
    rig: FakeRig, kind: int, number: int, data: bytes, reason: str
) -> None:
    before = receive_filter(rig)
    assert command(rig, kind, number, data) == ERR
    assert rig.kinds() == ["control_command"]
    assert reason in rig.violations.entries[0].detail
    assert receive_filter(rig) == before


def test_command_needs_its_feature() -> None:
    rig = FakeRig()
    try:
        assert rig.negotiate(rig.offered() & ~(1 << net.F_CTRL_RX))
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
    path = PacketPath(plane, FakeBackend(), config, ActivePairs(plane, FakeBackend(), queues, 1))
    path.negotiated((1 << 64) - 1)
    control = ControlQueue(path, violations)
    assert control.handle(data) in (OK, ERR)
    plane.close()
