# SPDX-License-Identifier: Apache-2.0
"""The vhost-user front end double against a back end that only writes down what it is told."""

from __future__ import annotations

import array
import contextlib
import os
import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from vdpa_net.errors import PeerError, PeerGone, ProtocolError
from vdpa_net.testing.dirty_log import DirtyLog
from vdpa_net.testing.front_end import Manners, Request, VhostFrontEnd
from vdpa_net.testing.guest_memory import GuestMemory
from vdpa_net.testing.split_ring import SplitRing

PAGE = 4096
HIGH = 1 << 32
R = Request
VALUES = {R.GET_FEATURES: (1 << 64) - 1, R.GET_QUEUE_NUM: 1, R.GET_MAX_MEM_SLOTS: 32}
ALWAYS_ANSWERED = {R.SET_LOG_BASE}


@dataclass
class Message:
    code: int
    payload: bytes
    fds: int

    def u64s(self) -> tuple[int, ...]:
        return struct.unpack(f"<{len(self.payload) // 8}Q", self.payload)


class Scribe:
    """Acknowledges everything; `protocol_features`, `bases` and `refuse` say what it answers."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.messages: list[Message] = []
        self.protocol_features = (1 << 17) - 1
        self.bases = {0: 11, 1: 22}
        self.refuse: Request | None = None
        self.answer_as: int | None = None
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def codes(self) -> list[Request]:
        return [Request(message.code) for message in self.messages]

    def of(self, code: Request) -> list[Message]:
        return [message for message in self.messages if message.code == code]

    def _serve(self) -> None:
        connection, _ = self._listener.accept()
        # A front end that hangs up without reading its last answer resets the connection.
        with connection, contextlib.suppress(OSError):
            while header := connection.recvmsg(12, 1024):
                data, rights, _, _ = header
                if not data:
                    return
                code, flags, size = struct.unpack("<III", data)
                payload = connection.recv(size, socket.MSG_WAITALL) if size else b""
                fds = [fd for _, _, raw in rights for fd in array.array("i", raw)]
                for fd in fds:
                    os.close(fd)
                self.messages.append(Message(code, payload, len(fds)))
                answer = self._answer(code, payload, flags)
                if answer is not None:
                    code = self.answer_as or code
                    connection.sendall(struct.pack("<III", code, 5, len(answer)) + answer)

    def _answer(self, code: int, payload: bytes, flags: int) -> bytes | None:
        if code == R.GET_PROTOCOL_FEATURES:
            return struct.pack("<Q", self.protocol_features)
        if code == R.GET_VRING_BASE:
            index = struct.unpack_from("<I", payload)[0]
            return struct.pack("<II", index, self.bases[index])
        if code in VALUES:
            return struct.pack("<Q", VALUES[R(code)])
        if flags & 8 or code in ALWAYS_ANSWERED:
            return struct.pack("<Q", int(code == self.refuse))
        return None

    def close(self) -> None:
        self._thread.join()
        self._listener.close()


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory([(0, 16 * PAGE), (HIGH, 64 * PAGE)]) as made:
        yield made


@pytest.fixture
def rings(memory: GuestMemory) -> list[SplitRing]:
    return [SplitRing.allocate(memory, 64, region=1) for _ in range(2)]


@pytest.fixture
def scribe(tmp_path: Path) -> Iterator[Scribe]:
    made = Scribe(tmp_path / "vhost")
    yield made
    made.close()


def test_start_follows_the_order_of_qemu(scribe: Scribe, memory: GuestMemory, rings: list[SplitRing]) -> None:
    with VhostFrontEnd(scribe.path, memory, rings) as front_end:
        front_end.connect([5, 6])
    queue = [R.SET_VRING_NUM, R.SET_VRING_BASE, R.SET_VRING_ADDR, R.SET_VRING_KICK, R.SET_VRING_CALL]
    assert scribe.codes() == [
        R.GET_FEATURES,
        R.GET_PROTOCOL_FEATURES,
        R.SET_PROTOCOL_FEATURES,
        R.GET_QUEUE_NUM,
        R.GET_MAX_MEM_SLOTS,
        R.SET_BACKEND_REQ_FD,
        R.SET_OWNER,
        R.SET_FEATURES,
        R.ADD_MEM_REG,
        R.ADD_MEM_REG,
        *queue,
        *queue,
        R.SET_VRING_ENABLE,
        R.SET_VRING_ENABLE,
        R.SET_STATUS,
    ]
    assert [struct.unpack("<II", message.payload) for message in scribe.of(R.SET_VRING_BASE)] == [
        (0, 5),
        (1, 6),
    ]
    assert all(message.fds == 1 for message in scribe.of(R.SET_VRING_KICK) + scribe.of(R.SET_VRING_CALL))


def test_rings_are_described_by_user_addresses(
    scribe: Scribe, memory: GuestMemory, rings: list[SplitRing]
) -> None:
    with VhostFrontEnd(scribe.path, memory, rings) as front_end:
        front_end.connect()
    low, high = (message.u64s()[1:] for message in scribe.of(R.ADD_MEM_REG))
    assert (low[0], low[1], low[3]) == (0, 16 * PAGE, 0)
    assert (high[0], high[1], high[3]) == (HIGH, 64 * PAGE, 16 * PAGE)
    to_guest = HIGH - high[2]
    _, desc, used, avail, log = scribe.of(R.SET_VRING_ADDR)[1].u64s()
    assert [address + to_guest for address in (desc, used, avail)] == [
        rings[1].desc,
        rings[1].device,
        rings[1].driver,
    ]
    assert log == rings[1].device


def test_memory_table_carries_one_descriptor_per_region(
    scribe: Scribe, memory: GuestMemory, rings: list[SplitRing]
) -> None:
    with VhostFrontEnd(
        scribe.path, memory, rings, manners=Manners(memory_slots=False, enable_early=True)
    ) as front_end:
        front_end.connect()
    (table,) = scribe.of(R.SET_MEM_TABLE)
    assert (table.fds, struct.unpack_from("<I", table.payload)[0], len(table.payload)) == (2, 2, 8 + 64)
    codes = scribe.codes()
    assert codes.index(R.SET_VRING_ENABLE) < codes.index(R.SET_VRING_NUM)


@pytest.mark.parametrize("log_base_first", [True, False])
def test_logging_is_set_up_with_offset_and_size_in_either_order(
    scribe: Scribe, memory: GuestMemory, rings: list[SplitRing], log_base_first: bool
) -> None:
    log = DirtyLog.for_memory_end(HIGH + 64 * PAGE, 2 * PAGE)
    with VhostFrontEnd(
        scribe.path, memory, rings, manners=Manners(log_base_first=log_base_first)
    ) as front_end:
        front_end.connect()
        started = len(scribe.messages)
        front_end.start_logging(log)
        logging = scribe.messages[started:]
        front_end.stop_logging()
    first_two = [R(message.code) for message in logging[:2]]
    assert first_two == [R.SET_LOG_BASE, R.SET_FEATURES][:: 1 if log_base_first else -1]
    (base,) = (message for message in logging if message.code == R.SET_LOG_BASE)
    assert (base.u64s(), base.fds) == ((log.size_bytes, 2 * PAGE), 1)
    with_log, without = (message.u64s()[0] >> 26 & 1 for message in scribe.of(R.SET_FEATURES)[1:])
    assert (with_log, without) == (1, 0)
    flags = [struct.unpack_from("<II", message.payload) for message in scribe.of(R.SET_VRING_ADDR)]
    assert flags == [(0, 0), (1, 0), (0, 1), (1, 1), (0, 0), (1, 0)]
    log.close()


@pytest.mark.parametrize("disable_first", [True, False])
def test_stop_returns_the_bases_by_queue_whatever_the_order(
    scribe: Scribe, memory: GuestMemory, rings: list[SplitRing], disable_first: bool
) -> None:
    manners = Manners(disable_first=disable_first, stop_order=(1, 0))
    with VhostFrontEnd(scribe.path, memory, rings, manners=manners) as front_end:
        front_end.connect()
        started = len(scribe.messages)
        assert front_end.stop() == [11, 22]
    codes = scribe.codes()[started:]
    disables = [R.SET_VRING_ENABLE] * 2 if disable_first else []
    assert codes == [*disables, R.GET_VRING_BASE, R.GET_VRING_BASE, R.SET_STATUS]


def test_back_end_without_extras_is_asked_for_none(
    scribe: Scribe, memory: GuestMemory, rings: list[SplitRing]
) -> None:
    scribe.protocol_features = 0
    with VhostFrontEnd(scribe.path, memory, rings) as front_end:
        front_end.connect()
        assert front_end.stop() == [11, 22]
    assert not {R.GET_QUEUE_NUM, R.ADD_MEM_REG, R.SET_STATUS} & set(scribe.codes())


def test_refusal_and_nonsense_are_errors(scribe: Scribe, memory: GuestMemory, rings: list[SplitRing]) -> None:
    with VhostFrontEnd(scribe.path, memory, rings) as front_end:
        front_end.negotiate()
        scribe.refuse = R.SET_VRING_NUM
        with pytest.raises(PeerError, match="SET_VRING_NUM was answered with 01"):
            front_end.start()
        scribe.answer_as = 99
        with pytest.raises(ProtocolError, match="answered by message 99"):
            front_end.get_u64(R.GET_FEATURES)


def test_nobody_listening_is_a_clear_error(
    tmp_path: Path, memory: GuestMemory, rings: list[SplitRing]
) -> None:
    with pytest.raises(PeerGone, match="No such file"):
        VhostFrontEnd(tmp_path / "nobody", memory, rings)
