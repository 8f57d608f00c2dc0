# SPDX-License-Identifier: Apache-2.0
"""Maps that a client asks for: made without Python where nothing is wrong with them, else by the device."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_vfio_user_fake import FakeFunction, memfd, open_fds
from test_vfio_user_server import message, raw_client, receive, send_with_fds

from vdpa_net._native import DmaSpace, DoorbellSocket
from vdpa_net.backend.loopback import Loopback
from vdpa_net.device.net_device import NetDevice
from vdpa_net.errors import StateError
from vdpa_net.transport.vfio_user.server import VfioUserServer
from vdpa_net.wire.vfio_user import FLAG_NO_REPLY, Command

PAGE = 4096
READ, WRITE = 1, 2
MAP = struct.Struct("<IIQQQ")
UNMAP = struct.Struct("<IIQQ")


class Function(FakeFunction):
    """Has a space of the data plane's, and records what it is asked for besides."""

    def __init__(self) -> None:
        super().__init__(watched=False)
        self.space = DmaSpace()

    def map_space(self) -> DmaSpace:
        return self.space


@pytest.fixture
def function() -> Iterator[Function]:
    made = Function()
    yield made
    made.close()


@pytest.fixture
def sock(tmp_path: Path, function: Function) -> Iterator[socket.socket]:
    with VfioUserServer(tmp_path / "dev.sock", function) as server, raw_client(server) as connected:
        yield connected


def mapping(address: int, size: int = PAGE, flags: int = READ | WRITE, argsz: int = MAP.size) -> bytes:
    return MAP.pack(argsz, flags, 0, address, size)


def ask_map(sock: socket.socket, fd: int | None, payload: bytes, flags: int = 0) -> None:
    whole = message(Command.DMA_MAP, payload, flags=flags)
    if fd is None:
        sock.sendall(whole)
    else:
        send_with_fds(sock, whole, [fd])


def unmap(sock: socket.socket, address: int, size: int = PAGE, flags: int = 0) -> tuple[int, bytes]:
    payload = UNMAP.pack(UNMAP.size, flags, address, size)
    sock.sendall(message(Command.DMA_UNMAP, payload))
    _, error, answer = receive(sock)
    return error, answer


@pytest.mark.parametrize("flags", [READ, WRITE, READ | WRITE])
def test_a_map_and_its_unmap_are_made_without_the_function(
    sock: socket.socket, function: Function, flags: int
) -> None:
    before = open_fds()
    with memfd() as fd:
        ask_map(sock, fd, mapping(PAGE, flags=flags))
        assert receive(sock)[1:] == (0, b"")
    [entry] = function.space.mappings()
    assert (entry.iova, entry.size_bytes) == (PAGE, PAGE)
    assert (entry.readable, entry.writable) == (bool(flags & READ), bool(flags & WRITE))
    assert unmap(sock, PAGE) == (0, UNMAP.pack(UNMAP.size, 0, PAGE, PAGE))
    assert function.space.map_count() == 0
    assert not function.calls
    assert open_fds() == before


def test_a_posted_map_is_not_answered(sock: socket.socket, function: Function) -> None:
    with memfd() as fd:
        ask_map(sock, fd, mapping(0), FLAG_NO_REPLY)
        assert unmap(sock, PAGE)[0] == 0
    assert function.space.map_count() == 1


@pytest.mark.parametrize(
    ("payload", "has_fd"),
    [
        (mapping(PAGE), False),
        (mapping(PAGE, argsz=MAP.size + 8), True),
        (mapping(PAGE + 1), True),
        (mapping(0, 2 * PAGE), True),
    ],
    ids=["without-file", "room-for-more", "not-aligned", "overlap"],
)
def test_what_can_not_be_made_is_the_function_s_and_has_changed_nothing(
    sock: socket.socket, function: Function, payload: bytes, has_fd: bool
) -> None:
    with memfd() as fd:
        ask_map(sock, fd, mapping(0))
        receive(sock)
        ask_map(sock, fd if has_fd else None, payload)
        receive(sock)
    assert [call[0] for call in function.calls] == ["map"]
    assert function.space.map_count() == 1


@pytest.mark.parametrize("flags", [0, READ | 4])
def test_flags_that_say_nothing_are_refused(sock: socket.socket, function: Function, flags: int) -> None:
    with memfd() as fd:
        ask_map(sock, fd, mapping(0, flags=flags))
        assert receive(sock)[1] == errno.EINVAL
    assert function.space.map_count() == 0


def test_whoever_watches_the_device_is_asked_for_each_map(sock: socket.socket, function: Function) -> None:
    function.tell_watched(True)
    with memfd() as fd:
        ask_map(sock, fd, mapping(0))
        receive(sock)
    assert [call[0] for call in function.calls] == ["map"]
    assert function.space.map_count() == 0


def test_a_device_answers_what_is_wrong_and_counts_what_it_has(tmp_path: Path) -> None:
    backend = Loopback()
    with (
        NetDevice(backend, mac="52:54:00:00:00:01") as device,
        VfioUserServer(tmp_path / "dev.sock", device) as server,
        raw_client(server) as sock,
        memfd() as fd,
    ):
        for address, expected in ((0, 0), (2 * PAGE, 0), (0, errno.EEXIST)):
            ask_map(sock, fd, mapping(address))
            assert receive(sock)[1] == expected
        assert "overlaps" in str(server.errors[-1])
        assert device.snapshot()["dma_maps"] == 2
        assert unmap(sock, 0, 3 * PAGE)[0] == 0
        ask_map(sock, fd, mapping(0, 2 * PAGE))
        receive(sock)
        assert unmap(sock, PAGE)[0] == errno.EINVAL, "it cuts a map"
        assert device.snapshot()["dma_maps"] == 1
    backend.close()


def test_a_device_with_a_way_of_its_own_is_asked_for_each_map() -> None:
    class Watching(NetDevice):
        def dma_unmap_within(self, iova: int, size: int) -> int:
            return super().dma_unmap_within(iova, size)

    backend = Loopback()
    for kind in (NetDevice, Watching):
        with kind(backend, mac="52:54:00:00:00:01") as device:
            assert (device.map_space() is None) == (kind is Watching)
    backend.close()


def test_numbers_outside_of_the_message_are_refused() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        bells = DoorbellSocket(ours.fileno(), Command.REGION_WRITE, 16)
        with pytest.raises(StateError, match="24 bytes"):
            bells.serve_maps(DmaSpace(), [], [(3, 24, b"", 8, 17)])
        os.fstat(ours.fileno())
