# SPDX-License-Identifier: Apache-2.0
"""Doorbells that a client writes as messages: rung without Python, and seen by whoever has to see them."""

from __future__ import annotations

import ctypes
import errno
import os
import select
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_dataplane import FakeRig
from test_vfio_user_fake import FakeFunction, eventfds, memfd, open_fds
from test_vfio_user_server import DEADLINE_S, dma_map, message, raw_client, receive, send_with_fds

from vdpa_net._native import DoorbellSocket
from vdpa_net.errors import StateError
from vdpa_net.transport.vfio_user.server import VfioUserServer
from vdpa_net.wire.vfio_user import FLAG_NO_REPLY, HEADER, MAX_MULTI_WRITES, Command

QUEUES = 3
REGION = 4


def write(offset: int, data: bytes, *, number: int = 1, flags: int = 0) -> bytes:
    payload = struct.pack("<QII", offset, REGION, len(data)) + data
    return message(Command.REGION_WRITE, payload, number=number, flags=flags)


def ring(queue: int, width: int = 2, **words: int) -> bytes:
    return write(0x3000 + 4 * queue, queue.to_bytes(width, "little"), **words)


def one_write(offset: int, data: bytes, rest: bytes = b"") -> bytes:
    """A write of REGION_WRITE_MULTI; behind its data is what nobody should look at."""
    return struct.pack("<QII", offset, REGION, len(data)) + (data + rest).ljust(8, b"\0")


def writes(*parts: bytes, count: int | None = None, number: int = 1, flags: int = 0) -> bytes:
    payload = struct.pack("<Q", len(parts) if count is None else count) + b"".join(parts)
    return message(Command.REGION_WRITE_MULTI, payload, number=number, flags=flags)


def bell(queue: int, width: int = 2) -> bytes:
    return one_write(0x3000 + 4 * queue, queue.to_bytes(width, "little"), b"\xee")


@pytest.fixture
def function() -> Iterator[FakeFunction]:
    fake = FakeFunction(doorbell_count=QUEUES, watched=False)
    yield fake
    fake.close()


@pytest.fixture
def sock(tmp_path: Path, function: FakeFunction) -> Iterator[socket.socket]:
    with VfioUserServer(tmp_path / "dev.sock", function) as server, raw_client(server) as connected:
        yield connected


def answer(sock: socket.socket) -> tuple[int, int, bytes]:
    """The next reply, when its message has been carried out: a doorbell is rung behind its answer."""
    reply = receive(sock)
    sock.sendall(message(Command.DEVICE_GET_INFO, struct.pack("<IIII", 16, 0, 0, 0), number=0xFFFF))
    assert receive(sock)[:2] == (0xFFFF, 0)
    return reply


def rung(function: FakeFunction, queue: int, times: int = 1) -> bool:
    """Whether a doorbell is rung so often, and no more often, since the last look. Waits for it."""
    fd, seen = function.bells[queue].fd, 0
    while seen < times and select.select([fd], [], [], DEADLINE_S)[0]:
        seen += os.eventfd_read(fd)
    return seen == times


def is_silent(function: FakeFunction) -> bool:
    return not select.select([bell.fd for bell in function.bells], [], [], 0)[0]


@pytest.mark.parametrize("queue", range(QUEUES))
@pytest.mark.parametrize("width", [2, 4])
def test_a_doorbell_is_rung_and_answered_without_the_device(
    sock: socket.socket, function: FakeFunction, queue: int, width: int
) -> None:
    sock.sendall(ring(queue, width, number=0x1234))
    number, error, payload = answer(sock)
    assert (number, error) == (0x1234, 0)
    assert payload == struct.pack("<QII", 0x3000 + 4 * queue, REGION, width)
    assert rung(function, queue)
    assert is_silent(function) and not function.calls


def test_a_posted_doorbell_is_not_answered(sock: socket.socket, function: FakeFunction) -> None:
    sock.sendall(ring(1, flags=FLAG_NO_REPLY) + message(Command.DEVICE_RESET, number=7))
    assert receive(sock)[0] == 7
    assert rung(function, 1)


def test_messages_are_told_apart_however_their_bytes_arrive(
    sock: socket.socket, function: FakeFunction
) -> None:
    sock.sendall(b"".join(ring(2, number=number) for number in range(5)))
    assert [receive(sock)[0] for _ in range(5)] == list(range(5))
    stream = ring(0, number=8) + write(0x10, b"data", number=9) + ring(0, number=10)
    for byte in stream:
        sock.sendall(bytes([byte]))
    assert [receive(sock)[:2] for _ in range(3)] == [(8, 0), (9, 0), (10, 0)]
    assert function.calls == [("write", REGION, 0x10, b"data")]
    assert rung(function, 0, 2) and rung(function, 2, 5)


def test_descriptors_stay_with_their_message_behind_shorter_ones() -> None:
    near, far = socket.socketpair()
    with near, far, memfd() as lent, eventfds(1) as [bell]:
        bells = DoorbellSocket(near.fileno(), Command.REGION_WRITE, 16)
        bells.add([ring(1)[HEADER.size :]], bell)
        # All of it lies in the socket before any of it is read.
        resets = [message(Command.DEVICE_RESET, number=number) for number in (1, 2, 3)]
        far.sendall(resets[0])
        far.sendall(resets[1] + resets[2])
        request = message(Command.DMA_MAP, dma_map(0x1000), number=4)
        send_with_fds(far, request, [lent])
        far.sendall(ring(1, number=5))
        far.shutdown(socket.SHUT_WR)
        fds: list[int] = []
        assert [bells.receive(fds) for _ in resets] == resets
        assert not fds
        begun = bells.receive(fds)
        assert begun + near.recv(len(request) - len(begun)) == request
        [fd] = fds
        assert os.fstat(fd).st_ino == os.fstat(lent).st_ino
        os.close(fd)
        assert bells.receive(fds) == b""
        assert os.eventfd_read(bell) == 1
        assert receive(far)[:2] == (5, 0)
        bells.close()


def test_doorbells_that_come_together_are_rung_without_the_device(
    sock: socket.socket, function: FakeFunction
) -> None:
    sock.sendall(writes(bell(0), bell(2, 4), bell(0), number=0x1234))
    assert answer(sock) == (0x1234, 0, struct.pack("<Q", 3))
    assert rung(function, 0, 2) and rung(function, 2)
    sock.sendall(writes(*[bell(1)] * MAX_MULTI_WRITES, flags=FLAG_NO_REPLY) + ring(0, number=7))
    assert receive(sock)[0] == 7
    assert rung(function, 1, MAX_MULTI_WRITES) and rung(function, 0)
    assert is_silent(function) and not function.calls


def test_a_doorbell_among_other_writes_is_the_devices_like_them(
    sock: socket.socket, function: FakeFunction
) -> None:
    sock.sendall(writes(bell(0), one_write(0x10, b"data"), bell(1)))
    assert answer(sock)[:2] == (1, 0)
    places = [(0x3000, b"\0\0"), (0x10, b"data"), (0x3004, b"\1\0")]
    assert function.calls == [("write", REGION, offset, data) for offset, data in places]
    assert is_silent(function)


@pytest.mark.parametrize(
    "broken",
    [
        writes(),
        writes(bell(0), count=2),
        writes(bell(0), bell(1), count=1),
        writes(bell(0), count=2**64 - 1),
        writes(bell(0)[:-1]),
        writes(struct.pack("<QII8x", 0x3000, REGION, 9)),
        writes(struct.pack("<QII8x", 0x3000, REGION, 2**32 - 1)),
        writes(struct.pack("<QII8x", 0x3000, REGION, 0)),
        message(Command.REGION_WRITE_MULTI, b"\1\0\0"),
    ],
    ids=["none", "too-few", "too-many", "a-huge-count", "cut", "nine-bytes", "huge", "no-bytes", "no-count"],
)
def test_doorbells_that_come_together_in_a_wrong_form_are_refused(
    sock: socket.socket, function: FakeFunction, broken: bytes
) -> None:
    sock.sendall(broken)
    assert answer(sock)[1] == errno.EINVAL
    assert is_silent(function) and not function.calls
    sock.sendall(ring(1))
    answer(sock)
    assert rung(function, 1)


@pytest.mark.parametrize(
    ("offset", "data"),
    [
        (0x3000, b"\1\0"),
        (0x3000, b"\0"),
        (0x3002, b"\0\0"),
        (0x3000 + 4 * QUEUES, QUEUES.to_bytes(2, "little")),
        (0x3000, bytes(8)),
        (0x3000, bytes(256)),
    ],
    ids=["another-value", "a-byte", "beside", "no-such-queue", "eight-bytes", "many-bytes"],
)
def test_what_is_not_exactly_a_doorbell_reaches_the_device(
    sock: socket.socket, function: FakeFunction, offset: int, data: bytes
) -> None:
    sock.sendall(write(offset, data))
    assert answer(sock)[1] == 0
    assert function.calls == [("write", REGION, offset, data)]
    assert is_silent(function)


def test_whoever_watches_sees_each_doorbell(sock: socket.socket, function: FakeFunction) -> None:
    for watched in (False, True, False):
        function.tell_watched(watched)
        sock.sendall(ring(1))
        answer(sock)
        sock.sendall(writes(bell(1)))
        answer(sock)
        assert len(function.calls) == 2 * watched
        assert is_silent(function) is watched
        function.calls.clear()
        if not watched:
            assert rung(function, 1, 2)


def test_a_doorbell_before_the_version_is_refused(tmp_path: Path, function: FakeFunction) -> None:
    with VfioUserServer(tmp_path / "dev.sock", function) as server, socket.socket(socket.AF_UNIX) as early:
        early.settimeout(DEADLINE_S)
        early.connect(str(server.path))
        early.sendall(ring(0))
        assert receive(early)[1] != 0
        assert is_silent(function)


def test_descriptors_with_a_doorbell_are_refused_and_closed(
    sock: socket.socket, function: FakeFunction
) -> None:
    before = open_fds()
    with memfd() as fd:
        send_with_fds(sock, ring(0), [fd])
        assert receive(sock)[1] != 0
    sock.sendall(ring(0))
    assert receive(sock)[1] == 0
    assert open_fds() == before


def test_a_trace_of_messages_has_the_doorbells_in_it(tmp_path: Path, function: FakeFunction) -> None:
    lines: list[str] = []
    with (
        VfioUserServer(tmp_path / "dev.sock", function, trace=lines.append) as server,
        raw_client(server) as sock,
    ):
        sock.sendall(ring(0))
        receive(sock)
    assert any("RegionWrite" in line for line in lines)


def test_hooks_of_a_device_watch_its_doorbells() -> None:
    rig = FakeRig()
    told: list[bool] = []
    forget = rig.device.on_watched(told.append)
    first = rig.device.on_access(lambda _access: None)
    second = rig.device.on_access(lambda _access: None)
    first()
    second()
    forget()
    rig.device.on_access(lambda _access: None)
    assert told == [False, True, True, True, False]
    rig.close()


def test_a_doorbell_is_answered_while_the_gil_is_held(sock: socket.socket, function: FakeFunction) -> None:
    libc, request, space = ctypes.PyDLL(None), ring(1), ctypes.create_string_buffer(64)
    waiting = ctypes.create_string_buffer(struct.pack("ihh", sock.fileno(), select.POLLIN, 0))
    sock.sendall(ring(1))
    receive(sock)
    # From here on nothing lets go of the GIL.
    libc.send(sock.fileno(), request, len(request), 0)
    assert libc.poll(waiting, 1, 1000 * DEADLINE_S) == 1
    got = libc.recv(sock.fileno(), space, len(space), socket.MSG_DONTWAIT)
    assert got == 32
    assert rung(function, 1, 2)


def test_a_closed_doorbell_socket_says_so() -> None:
    near, far = socket.socketpair()
    with near, far:
        bells = DoorbellSocket(near.fileno(), 10, 16)
        with pytest.raises(StateError, match="payload of 3 bytes"):
            bells.add([b"abc"], far.fileno())
        with pytest.raises(StateError, match="items of 15"):
            bells.serve_batches(15, 8, 15, 12, 200)
        bells.close()
        bells.close()
        with pytest.raises(StateError, match="closed"):
            bells.receive([])
