# SPDX-License-Identifier: Apache-2.0
"""The vfio-user server on a real socket: descriptors, disconnects, errors, the socket file."""

from __future__ import annotations

import array
import errno
import os
import socket
import stat
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_vfio_user_fake import FakeFunction, eventfds, memfd, open_fds

from vdpa_net.errors import FramingError, OptionError, PeerError, PeerGone, StateError
from vdpa_net.transport.vfio_user.client import VfioUserClient
from vdpa_net.transport.vfio_user.server import VfioUserServer
from vdpa_net.wire.vfio_user import Command

DEADLINE_S = 20


@pytest.fixture
def function() -> Iterator[FakeFunction]:
    fake = FakeFunction()
    yield fake
    fake.close()


@pytest.fixture
def server(tmp_path: Path, function: FakeFunction) -> Iterator[VfioUserServer]:
    with VfioUserServer(tmp_path / "dev.sock", function) as running:
        yield running


def message(command: int, payload: bytes = b"", *, number: int = 1, flags: int = 0) -> bytes:
    return struct.pack("<HHIII", number, command, 16 + len(payload), flags, 0) + payload


def raw_client(server: VfioUserServer) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(DEADLINE_S)
    sock.connect(str(server.path))
    version = struct.pack("<HH", 0, 0) + b'{"capabilities":{"max_msg_fds":8}}\0'
    sock.sendall(message(Command.VERSION, version))
    receive(sock)
    return sock


def receive_exactly(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = sock.recv(size - len(data))
        assert piece, f"end of stream after {len(data)} of {size} bytes"
        data += piece
    return data


def receive(sock: socket.socket) -> tuple[int, int, bytes]:
    """(message id, errno, payload) of the next reply."""
    number, _, size, flags, error = struct.unpack("<HHIII", receive_exactly(sock, 16))
    assert flags & 0xF == 1
    assert bool(flags & 0x20) == bool(error)
    return number, error, receive_exactly(sock, size - 16)


def send_with_fds(sock: socket.socket, data: bytes, fds: list[int]) -> None:
    sock.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])


def dma_map(address: int, offset: int = 0) -> bytes:
    return struct.pack("<IIQQQ", 32, 3, offset, address, 0x1000)


def test_maps_sent_in_one_burst_get_their_own_descriptors(
    server: VfioUserServer, function: FakeFunction
) -> None:
    with raw_client(server) as sock, memfd("first") as first, memfd("second") as second:
        for number, (address, fd) in enumerate([(0, first), (0x10000, second), (0x20000, first)]):
            send_with_fds(sock, message(Command.DMA_MAP, dma_map(address), number=number), [fd])
        sock.sendall(message(Command.DMA_MAP, dma_map(0x30000), number=3))
        assert [receive(sock)[:2] for _ in range(4)] == [(0, 0), (1, 0), (2, 0), (3, 0)]
        inodes = {address: inode for address, (_, inode, _) in function.maps.items()}
        one, two = os.fstat(first).st_ino, os.fstat(second).st_ino
        assert inodes == {0: one, 0x10000: two, 0x20000: one, 0x30000: None}


def test_descriptors_may_come_with_the_payload(server: VfioUserServer, function: FakeFunction) -> None:
    with raw_client(server) as sock, memfd() as fd:
        whole = message(Command.DMA_MAP, dma_map(0))
        sock.sendall(whole[:16])
        send_with_fds(sock, whole[16:], [fd])
        assert receive(sock)[1] == 0
        assert function.maps[0][1] == os.fstat(fd).st_ino


def test_message_in_single_bytes_is_one_message(server: VfioUserServer, function: FakeFunction) -> None:
    with raw_client(server) as sock:
        for byte in message(Command.REGION_WRITE, struct.pack("<QII", 8, 7, 2) + b"hi"):
            sock.send(bytes([byte]))
        assert receive(sock)[1:] == (0, struct.pack("<QII", 8, 7, 2))
        assert function.memory[7][8:10] == b"hi"


@pytest.mark.parametrize(
    ("command", "payload", "expected"),
    [
        (Command.DMA_MAP, b"short", errno.EINVAL),
        (Command.DMA_READ, b"", errno.ENOTSUP),
        (Command.DEVICE_FEATURE, bytes(8), errno.ENOTSUP),
        (99, b"what", errno.ENOTSUP),
        (Command.VERSION, struct.pack("<HH", 0, 0), errno.EINVAL),
        (Command.REGION_READ, struct.pack("<QII", 0x7FFE, 4, 4), errno.EINVAL),
        (Command.REGION_READ, struct.pack("<QII", 0, 9, 4), errno.EINVAL),
        (Command.REGION_READ, struct.pack("<QII", (1 << 64) - 1, 4, 4), errno.EINVAL),
        (Command.DEVICE_GET_REGION_INFO, struct.pack("<IIIIQQ", 32, 0, 9, 0, 0, 0), errno.EINVAL),
        (Command.DEVICE_GET_IRQ_INFO, struct.pack("<IIII", 16, 0, 5, 0), errno.EINVAL),
        (Command.DEVICE_SET_IRQS, struct.pack("<IIIII", 20, 0x21, 2, 40, 1), errno.EINVAL),
        (Command.DEVICE_SET_IRQS, struct.pack("<IIIII", 20, 0x21, 2, 0xFFFFFFFF, 0xFFFFFFFF), errno.EINVAL),
        (Command.DEVICE_SET_IRQS, struct.pack("<IIIII", 20, 0x09, 3, 0, 1), errno.ENOTSUP),
        (Command.DEVICE_SET_IRQS, struct.pack("<IIIII", 20, 0x21, 3, 0, 1), errno.ENOTSUP),
        (Command.DEVICE_SET_IRQS, struct.pack("<IIIII", 20, 0x24, 0, 0, 1), errno.EINVAL),
    ],
)
def test_bad_request_gets_an_errno_and_the_connection_lives(
    server: VfioUserServer, command: int, payload: bytes, expected: int
) -> None:
    with raw_client(server) as sock:
        sock.sendall(message(command, payload, number=5))
        assert receive(sock) == (5, expected, b"")
        assert len(server.errors) == 1
        sock.sendall(message(Command.DEVICE_RESET, number=6))
        assert receive(sock) == (6, 0, b"")


def test_descriptors_of_a_refused_message_are_closed(server: VfioUserServer) -> None:
    with raw_client(server) as sock, memfd() as fd:
        before = open_fds()
        send_with_fds(sock, message(Command.DEVICE_RESET), [fd] * 200)
        assert receive(sock)[1] == errno.EINVAL
        send_with_fds(sock, message(Command.DMA_MAP, b"x"), [fd])
        assert receive(sock)[1] == errno.EINVAL
        sock.sendall(message(Command.DEVICE_RESET))
        receive(sock)
        assert open_fds() == before


@pytest.mark.parametrize("bad", [bytes(16), struct.pack("<HHIII", 1, 9, 16, 1, 0), b"\xff" * 16])
def test_broken_framing_ends_the_connection_but_not_the_server(
    server: VfioUserServer, function: FakeFunction, bad: bytes
) -> None:
    with raw_client(server) as sock:
        sock.sendall(bad)
        assert sock.recv(1) == b""
    assert function.detached.acquire(timeout=DEADLINE_S)
    assert isinstance(server.errors[-1], FramingError)
    with VfioUserClient(server.path) as client:
        client.reset()


def test_foreign_version_is_answered_and_disconnected(server: VfioUserServer, function: FakeFunction) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(DEADLINE_S)
        sock.connect(str(server.path))
        sock.sendall(message(Command.VERSION, struct.pack("<HH", 2, 0)))
        assert receive(sock) == (1, errno.EINVAL, b"")
        assert sock.recv(1) == b""
    with VfioUserClient(server.path):
        assert ("detach",) not in function.calls


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(errno.ENOSPC, "full"), errno.ENOSPC),
        (ValueError("a defect"), errno.EIO),
        (MemoryError(), errno.ENOMEM),
        (BaseException("a panic"), errno.EIO),
    ],
    ids=repr,
)
def test_exception_of_the_device_is_an_errno_and_recorded(
    tmp_path: Path, function: FakeFunction, error: BaseException, expected: int
) -> None:
    seen: list[BaseException] = []

    def tell(happened: BaseException) -> None:
        seen.append(happened)
        raise RuntimeError("a broken hook")

    with (
        VfioUserServer(tmp_path / "s", function, on_error=tell) as server,
        VfioUserClient(server.path) as client,
    ):
        function.error = error
        with pytest.raises(PeerError) as caught:
            client.region_read(7, 0, 4)
        function.error = None
        assert caught.value.errno == expected
        assert seen == [error]
        assert client.region_read(7, 0, 4) == bytes(4)


def test_posted_writes_are_done_before_a_later_reply(server: VfioUserServer, function: FakeFunction) -> None:
    with VfioUserClient(server.path) as client:
        for value in range(50):
            client.region_write(4, 0, bytes([value]), posted=True)
        assert client.region_read(4, 0, 1) == bytes([49])
    assert [call[3] for call in function.calls if call[0] == "write"] == [
        bytes([value]) for value in range(50)
    ]


def test_failing_posted_write_is_recorded_and_not_answered(server: VfioUserServer) -> None:
    with VfioUserClient(server.path) as client:
        client.region_write(4, 1 << 40, b"x", posted=True)
        client.reset()
        assert len(server.errors) == 1


def test_hundred_killed_clients_leave_no_descriptors(server: VfioUserServer, function: FakeFunction) -> None:
    before = open_fds()
    threads = set(threading.enumerate())
    with memfd() as fd, eventfds(3) as bells:
        for cycle in range(100):
            sock = raw_client(server)
            send_with_fds(sock, message(Command.DMA_MAP, dma_map(0)), [fd])
            irqs = struct.pack("<IIIII", 20, 0x24, 2, 0, 3)
            send_with_fds(sock, message(Command.DEVICE_SET_IRQS, irqs), bells)
            if cycle % 2:
                assert (receive(sock)[1], receive(sock)[1]) == (0, 0)
            # Half of a message, with a descriptor: then the client is gone.
            send_with_fds(sock, message(Command.DMA_MAP, dma_map(0x10000))[: 8 + cycle % 30], [fd])
            sock.close()
            assert function.detached.acquire(timeout=DEADLINE_S)
    with VfioUserClient(server.path) as client:
        client.reset()
    assert function.detached.acquire(timeout=DEADLINE_S)
    server.stop()
    gone = {entry for entry in before if entry in open_fds()}
    assert open_fds() == gone
    # What tests before this one have left may end meanwhile.
    assert set(threading.enumerate()) <= threads - {server._thread}
    assert not function.maps
    assert not function.vectors


def test_second_client_waits_until_the_first_has_left(server: VfioUserServer, function: FakeFunction) -> None:
    first = VfioUserClient(server.path)
    done = threading.Event()

    def second() -> None:
        with VfioUserClient(server.path) as client:
            client.reset()
            done.set()

    thread = threading.Thread(target=second)
    thread.start()
    first.region_write(7, 0, b"first")
    assert not done.is_set()
    first.close()
    assert done.wait(DEADLINE_S)
    thread.join(DEADLINE_S)
    assert [call[0] for call in function.calls][:4] == ["write", "disable", "detach", "reset"]


def test_stop_ends_a_connected_client_and_removes_the_socket(tmp_path: Path, function: FakeFunction) -> None:
    server = VfioUserServer(tmp_path / "s", function)
    client = VfioUserClient(server.path)
    server.stop()
    server.stop()
    assert not server.path.exists()
    assert ("detach",) in function.calls
    with pytest.raises(PeerGone):
        client.reset()
    with pytest.raises(PeerGone):
        VfioUserClient(server.path)
    client.close()


def test_stop_with_a_client_that_does_not_read_its_replies(tmp_path: Path, function: FakeFunction) -> None:
    with VfioUserServer(tmp_path / "s", function) as server, raw_client(server) as sock:
        sock.setblocking(False)
        read = message(Command.REGION_READ, struct.pack("<QII", 0, 4, 0x8000))
        with pytest.raises(BlockingIOError):
            while True:
                sock.send(read)
        server.stop()


def test_socket_file_is_private_by_default(
    server: VfioUserServer, tmp_path: Path, function: FakeFunction
) -> None:
    assert stat.S_IMODE(server.path.stat().st_mode) == 0o600
    with VfioUserServer(tmp_path / "open", function, mode=0o666) as other:
        assert stat.S_IMODE(other.path.stat().st_mode) == 0o666


def test_stale_socket_file_is_replaced(tmp_path: Path, function: FakeFunction) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(str(path))
    with VfioUserServer(path, function), VfioUserClient(path) as client:
        client.reset()


def test_live_socket_is_refused_and_goes_on_living(server: VfioUserServer, function: FakeFunction) -> None:
    with pytest.raises(StateError, match="another process serves it"):
        VfioUserServer(server.path, function)
    with VfioUserClient(server.path) as client:
        client.reset()


def test_file_that_is_not_a_socket_is_left_alone(tmp_path: Path, function: FakeFunction) -> None:
    path = tmp_path / "notes"
    path.write_text("precious")
    with pytest.raises(OptionError, match="not a socket"):
        VfioUserServer(path, function)
    assert path.read_text() == "precious"


@pytest.mark.parametrize("name", ["missing/s", "x" * 200])
def test_path_that_cannot_be_a_socket_is_an_option_error(
    tmp_path: Path, function: FakeFunction, name: str
) -> None:
    before = open_fds()
    with pytest.raises(OptionError, match="can't listen on"):
        VfioUserServer(tmp_path / name, function)
    assert open_fds() == before


def test_trace_has_a_line_per_message(tmp_path: Path, function: FakeFunction) -> None:
    lines: list[str] = []
    with VfioUserServer(tmp_path / "s", function, trace=lines.append) as server:
        with VfioUserClient(server.path) as client:
            client.region_write(4, 0x3000, b"\0\0", posted=True)
            with pytest.raises(PeerError):
                client.region_read(3, 0, 4)
        assert function.detached.acquire(timeout=DEADLINE_S)
    assert any("RegionWrite" in line and "posted" in line for line in lines)
    assert any("REGION_READ" in line and f"errno {errno.EINVAL}" in line for line in lines)
