# SPDX-License-Identifier: Apache-2.0
"""Messages of the vhost-user protocol against a real device behind the vDPA driver."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from vdpa_net.backend.loopback import Loopback
from vdpa_net.device.net_device import NetDevice
from vdpa_net.driver.in_process import InProcessHandle
from vdpa_net.driver.vdpa_driver import VdpaDriver
from vdpa_net.driver.vhost_backend import VhostBackend
from vdpa_net.errors import PeerError, PeerGone
from vdpa_net.testing.guest_memory import GuestMemory
from vdpa_net.testing.vhost_connection import FrontEndConnection, Request
from vdpa_net.testing.vhost_guest import LAYOUT, MAC, VhostGuest
from vdpa_net.testing.vhost_side import VhostSide
from vdpa_net.transport.vhost_user.server import VhostUserClient

ALL_PROTOCOL_FEATURES = (1 << 0 | 1 << 1 | 1 << 2 | 1 << 3 | 1 << 4 | 1 << 5) | (
    1 << 9 | 1 << 13 | 1 << 15 | 1 << 16
)
U64 = struct.Struct("<Q")
CONFIG = struct.Struct("<III")
MTU = 1400
NEEDS_RESET, DRIVER_OK = 64, 15


@pytest.fixture(params=["in-process", "vfio-user"])
def side(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[VhostSide]:
    with VhostSide(tmp_path / "vhost", MAC, over_vfio_user=request.param == "vfio-user") as made:
        yield made


@pytest.fixture
def guest(side: VhostSide) -> Iterator[VhostGuest]:
    made = VhostGuest(side.path, protocol_features=ALL_PROTOCOL_FEATURES)
    made.front_end.negotiate()
    yield made
    made.close()


def get_config(guest: VhostGuest, offset: int, size: int, flags: int = 0) -> bytes:
    answer = guest.front_end.ask(Request.GET_CONFIG, CONFIG.pack(offset, size, flags) + bytes(size))
    if answer:
        assert CONFIG.unpack(answer[:12]) == (offset, size, flags)
    return answer[12:]


def set_config(guest: VhostGuest, offset: int, data: bytes, flags: int) -> None:
    guest.front_end.request(Request.SET_CONFIG, CONFIG.pack(offset, len(data), flags) + data)


def test_configuration_is_that_of_the_device(guest: VhostGuest) -> None:
    mac = bytes.fromhex(MAC.replace(":", ""))
    assert get_config(guest, 0, 6) == mac
    assert get_config(guest, 10, 2) == (1500).to_bytes(2, "little")
    whole = get_config(guest, 0, 256)
    assert len(whole) == 256
    assert whole[:6] == mac
    assert not any(whole[64:])


def test_configuration_outside_of_the_space_is_answered_without_a_payload(guest: VhostGuest) -> None:
    assert get_config(guest, 250, 7) == b""
    assert get_config(guest, 0, 6) != b""


def test_configuration_is_written_by_a_migration_only(guest: VhostGuest) -> None:
    mac = bytes.fromhex("5254000000bb")
    with pytest.raises(PeerError, match="SET_CONFIG"):
        set_config(guest, 0, mac, 0)
    with pytest.raises(PeerError, match="SET_CONFIG"):
        set_config(guest, 0, mac, 7)
    assert get_config(guest, 0, 6) != mac
    set_config(guest, 0, mac, 1)
    assert get_config(guest, 0, 6) == mac
    guest.front_end.request(Request.RESET_DEVICE)
    assert get_config(guest, 0, 6) != mac


@pytest.mark.parametrize("offset_and_data", [(10, b"\xff\x20"), (0, b"\1\0\0\0\0\0")])
def test_a_migration_brings_nothing_that_the_device_can_not_do(
    guest: VhostGuest, offset_and_data: tuple[int, bytes]
) -> None:
    offset, data = offset_and_data
    before = get_config(guest, 0, 16)
    with pytest.raises(PeerError, match="SET_CONFIG"):
        set_config(guest, offset, data, 1)
    assert get_config(guest, 0, 16) == before


def test_an_mtu_is_valid_up_to_the_device_s_own(guest: VhostGuest) -> None:
    for mtu in (68, 1500):
        guest.front_end.request(Request.NET_SET_MTU, U64.pack(mtu))
    for mtu in (0, 67, 1501, 65536):
        with pytest.raises(PeerError, match="NET_SET_MTU"):
            guest.front_end.request(Request.NET_SET_MTU, U64.pack(mtu))


def test_reset_stops_the_device_and_the_same_connection_can_start_it_again(
    guest: VhostGuest, side: VhostSide
) -> None:
    guest.front_end.start()
    guest.run(30)
    guest.front_end.request(Request.RESET_DEVICE)
    assert not side.driver.is_running
    guest.reset_rings()
    guest.front_end.start()
    guest.run(30)
    assert side.violations() == []


def test_a_call_that_comes_when_its_ring_runs_already_interrupts(guest: VhostGuest) -> None:
    guest.front_end.start()
    guest.run(30)
    guest.front_end.start(guest.front_end.stop())
    # QEMU has taken the restored start's own interrupt for one of before, and cleared it.
    for index in range(len(guest.rings)):
        with ExitStack() as stack:
            call = os.eventfd(0, os.EFD_NONBLOCK)
            stack.callback(os.close, call)
            guest.front_end.request(Request.SET_VRING_CALL, U64.pack(index), [call])
            # Over vfio-user the device's own may come late, and then here too; one more does no harm.
            assert os.eventfd_read(call) >= 1


def test_a_call_that_comes_before_its_ring_runs_is_left_alone(guest: VhostGuest) -> None:
    call = os.eventfd(0, os.EFD_NONBLOCK)
    try:
        guest.front_end.request(Request.SET_VRING_CALL, U64.pack(0), [call])
        with pytest.raises(BlockingIOError):
            os.eventfd_read(call)
    finally:
        os.close(call)


def test_status_zero_stops_the_device(guest: VhostGuest, side: VhostSide) -> None:
    guest.front_end.start()
    assert guest.front_end.get_u64(Request.GET_STATUS) == DRIVER_OK
    guest.run(10)
    guest.front_end.request(Request.SET_STATUS, U64.pack(0))
    assert not side.driver.is_running
    assert guest.front_end.get_u64(Request.GET_STATUS) == 0


def test_a_device_that_needs_a_reset_says_so_in_its_status(guest: VhostGuest) -> None:
    guest.front_end.start()
    ring = guest.rings[1]
    ring.memory.store_u16(ring.driver + 2, ring.size + 1)
    guest.front_end.kick(1)
    guest.await_status(NEEDS_RESET | DRIVER_OK)


def test_rarp_is_for_stations_only_and_is_remembered(guest: VhostGuest, side: VhostSide) -> None:
    guest.front_end.start()
    guest.front_end.request(Request.SEND_RARP, bytes.fromhex("5254000000cc0000"))
    assert side.backend.rarp_requests == ["52:54:00:00:00:cc"]
    with pytest.raises(PeerError, match="SEND_RARP"):
        guest.front_end.request(Request.SEND_RARP, bytes.fromhex("0154000000cc0000"))


def test_an_unknown_message_is_refused_and_the_connection_lives(guest: VhostGuest, side: VhostSide) -> None:
    for code in (22, 23, 31, 99):
        guest.front_end.send(code, bytes(8), flags=8)
        assert guest.front_end._receive(code) == U64.pack(1)
    guest.front_end.start()
    guest.run(10)
    assert [str(error)[:40] for error in side.server.errors][-1].startswith("message 99")


def test_an_unknown_message_that_wants_no_answer_ends_the_connection(side: VhostSide) -> None:
    connection = FrontEndConnection(_connect(side.path))
    connection.send(99, bytes(8))
    with pytest.raises(PeerGone):
        connection.get_u64(Request.GET_FEATURES)
    connection.close()
    again = VhostGuest(side.path)
    again.front_end.connect()
    again.run(10)
    again.close()


def _connect(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(str(path))
    return sock


class ListeningFrontEnd:
    """A front end that waits for its back end, as QEMU does with a chardev with server=on."""

    def __init__(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.settimeout(20)
        self._listener.bind(str(path))
        self._listener.listen()

    def accept(self) -> VhostGuest:
        sock, _ = self._listener.accept()
        return VhostGuest(sock)

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def client(tmp_path: Path) -> Iterator[VhostUserClient]:
    """A back end that connects to tmp_path / "front", where nobody listens yet."""
    with ExitStack() as stack:
        device = stack.enter_context(NetDevice(Loopback(), mac=MAC))
        driver = VdpaDriver(stack.enter_context(InProcessHandle(device)))
        yield stack.enter_context(VhostUserClient(tmp_path / "front", VhostBackend(driver)))


def test_a_client_connects_when_the_front_end_comes_and_again_when_it_comes_back(
    client: VhostUserClient, tmp_path: Path
) -> None:
    for _ in range(3):
        front = ListeningFrontEnd(tmp_path / "front")
        for _ in range(2):
            guest = front.accept()
            guest.front_end.connect()
            guest.run(20)
            guest.close()
        front.close()
    assert list(client.errors) == []


def test_a_client_that_waits_for_its_front_end_can_be_closed(client: VhostUserClient) -> None:
    client.close()
    client.close()


def test_no_descriptor_stays_behind(tmp_path: Path, no_fd_leak: None) -> None:
    with VhostSide(tmp_path / "vhost", MAC) as side:
        for _ in range(2):
            guest = VhostGuest(side.path, protocol_features=ALL_PROTOCOL_FEATURES)
            guest.front_end.connect()
            eventfd = os.eventfd(0)
            guest.front_end.request(Request.SET_VRING_ERR, U64.pack(0), [eventfd])
            guest.front_end.request(Request.SET_LOG_FD, b"", [eventfd])
            os.close(eventfd)
            guest.run(10)
            guest.close()


def test_memory_that_is_no_memory_is_refused_and_named(side: VhostSide) -> None:
    with GuestMemory(LAYOUT) as memory:
        guest = VhostGuest(side.path)
        guest.front_end.negotiate()
        region = struct.pack("<5Q", 0, 0, 2 * LAYOUT[0][1], 0x7000_0000_0000, memory.size_bytes - 4096)
        with pytest.raises(PeerError, match="ADD_MEM_REG"):
            guest.front_end.request(Request.ADD_MEM_REG, region, [memory.fd])
        assert "of a file of" in str(side.server.errors[-1])
        guest.close()
