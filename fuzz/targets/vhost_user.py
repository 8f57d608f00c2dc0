# SPDX-License-Identifier: Apache-2.0
"""Messages of a vhost-user front end, well-formed or not, to the real session, back end and device."""

from __future__ import annotations

import os
import struct
from functools import cache

from fuzz.invariants import MEMORY_BYTES, Invariants, Memory, expected, make_device
from fuzz.operations import Input, Language, Operation, perform
from vdpa_net.driver.in_process import InProcessHandle
from vdpa_net.driver.vdpa_driver import VdpaDriver
from vdpa_net.driver.vhost_backend import VhostBackend
from vdpa_net.errors import FramingError, VdpaNetError
from vdpa_net.transport.vhost_user.dispatch import handle
from vdpa_net.transport.vhost_user.session import Session
from vdpa_net.wire import vhost_user as wire
from vdpa_net.wire.vhost_user import BY_NAME, ReplyRule

LANGUAGE = Language(
    Operation("raw", "BBHBB", blob=True),
    Operation("features", "Q"),
    Operation("protocol", "I"),
    Operation("memory", "BBHHH"),
    Operation("log", "BIH"),
    Operation("vring", "BBI"),
    Operation("addresses", "BBHHH"),
    Operation("eventfd", "BBB"),
    Operation("iotlb", "HHHBB"),
    Operation("status", "B"),
    Operation("config", "BHBB", blob=True),
    Operation("guest", "IB", blob=True),
    Operation("leave", ""),
)
"""
raw          code, flags, size that the header names (0: the true one), descriptors, payload
features     SET_FEATURES
protocol     SET_PROTOCOL_FEATURES
memory       what (table, add, remove), file, guest page, pages, page in the file
log          file, bytes, page in the file
vring        which of SET_VRING_NUM, _BASE, _ENABLE, GET_VRING_BASE; ring, value
addresses    ring, flags, pages of descriptor, available and used ring (user addresses are guest addresses)
eventfd      which of KICK, CALL, ERR, LOG_FD; ring, file (255: none)
iotlb        page of the IOVA, pages, user page, permissions, type
status       SET_STATUS
config       GET or SET, offset, flags, bytes
guest        offset in the shared memory, bytes
leave        the front end leaves and another one comes
"""

PAGE = 4096
_STATES = ("SET_VRING_NUM", "SET_VRING_BASE", "SET_VRING_ENABLE", "GET_VRING_BASE")
_FDS = ("SET_VRING_KICK", "SET_VRING_CALL", "SET_VRING_ERR")
_NEED_REPLY = 9


class Target:
    """One device and back end for all inputs; every input ends with its front end gone."""

    def __init__(self) -> None:
        self.device = make_device("vdpa")
        self.invariants = Invariants(self.device)
        self.memory_files = Memory()
        self.backend = VhostBackend(VdpaDriver(InProcessHandle(self.device)))
        self._handlers = {
            name: getattr(self, name)
            for name in ("raw", "features", "protocol", "memory", "log", "vring", "addresses", "eventfd")
        }
        self._handlers |= {
            name: getattr(self, name) for name in ("iotlb", "status", "config", "guest", "leave")
        }
        self._connect()

    def run(self, source: Input) -> None:
        """One input."""
        self.memory_files.clear()
        try:
            perform(LANGUAGE, self._handlers, source, self.invariants.hold)
        finally:
            self.leave()

    def leave(self) -> None:
        """The front end is gone: the device is as new, but for what its driver does once."""
        self.backend.disconnected()
        assert not self.device.space.mappings(), "a front end that left has memory here"
        assert self.device.space.log_range() is None
        assert not self.invariants._running(), "a queue runs without a front end"
        assert self.backend.get_status() == 0
        self._connect()

    def _connect(self) -> None:
        self._session = Session()
        self._connected = True

    def send(
        self, code: int, payload: bytes, fds: tuple[int, ...] = (), *, flags: int = _NEED_REPLY, size: int = 0
    ) -> None:
        """One message, as the server's thread would carry it out, and what must be true of its answer."""
        if not self._connected:
            return
        session = self._session
        try:
            header = session.header(wire.HEADER.pack(request=code, flags=flags, size=size or len(payload)))
        except FramingError:
            self._connected = False
            return
        payload = payload[: header.size_bytes].ljust(header.size_bytes, b"\0")
        message = wire.MESSAGES.get(code)
        has_value = message is not None and message.reply in (ReplyRule.VALUE, ReplyRule.VALUE_OR_EMPTY)
        try:
            request = session.request(header, payload, fds)
            values = handle(self.backend, session, request)
        except (VdpaNetError, OSError) as error:
            if not isinstance(error, OSError):
                expected(error)
            answered = session.wants_ack(header) or session.empty_answer(header) is not None
            self._connected = answered
            return
        assert (values is not None) == has_value, "a value, where the message has one"
        assert not (has_value and session.wants_ack(header)), "one answer to one message"
        if values is not None:
            answer = session.answer(request, values)
            assert len(answer) == wire.HEADER.size + wire.HEADER.unpack(answer)["size"]

    def _named(self, name: str, payload: bytes, fds: tuple[int, ...] = ()) -> None:
        self.send(BY_NAME[name].code, payload, fds)

    def raw(self, code: int, flags: int, size: int, fds: int, payload: bytes) -> None:
        """Anything."""
        given = tuple(self.memory_files.pick(number) for number in range(fds % 10))
        self.send(code % 48, payload, given, flags=flags & 0xF or _NEED_REPLY, size=size)

    def features(self, value: int) -> None:
        """SET_FEATURES; a bit that is not offered is left out in three of four cases."""
        offered = self.backend.get_features()
        self._named("SET_FEATURES", struct.pack("<Q", value if value & 3 == 3 else value & offered))

    def protocol(self, value: int) -> None:
        """SET_PROTOCOL_FEATURES."""
        self._named("SET_PROTOCOL_FEATURES", struct.pack("<Q", value & wire.OFFERED_PROTOCOL_FEATURES))

    def memory(self, what: int, file: int, page: int, pages: int, file_page: int) -> None:
        """A memory region."""
        region = struct.pack("<4Q", page * PAGE, pages * PAGE, page * PAGE, file_page * PAGE)
        fd = self.memory_files.pick(file)
        if what % 3 == 0:
            self._named("SET_MEM_TABLE", struct.pack("<II", 1, 0) + region, (fd,))
        else:
            name = "ADD_MEM_REG" if what % 3 == 1 else "REM_MEM_REG"
            self._named(name, bytes(8) + region, (fd,) if what % 3 == 1 else ())

    def log(self, file: int, size: int, page: int) -> None:
        """SET_LOG_BASE."""
        self._named("SET_LOG_BASE", struct.pack("<QQ", size, page * PAGE), (self.memory_files.pick(file),))

    def vring(self, which: int, ring: int, value: int) -> None:
        """A message with a ring's index and a number."""
        self._named(_STATES[which % 4], struct.pack("<II", ring, value))

    def addresses(self, ring: int, flags: int, descriptor: int, available: int, used: int) -> None:
        """SET_VRING_ADDR."""
        areas = (descriptor * PAGE, used * PAGE, available * PAGE)
        self._named("SET_VRING_ADDR", struct.pack("<IIQQQQ", ring, flags, *areas, used * PAGE))

    def eventfd(self, which: int, ring: int, file: int) -> None:
        """A message with an eventfd, or with something that is none."""
        fds = () if file == 0xFF else (self.memory_files.pick(file),)
        if which % 4 == 3:
            self._named("SET_LOG_FD", b"", fds)
        else:
            self._named(_FDS[which % 4], struct.pack("<Q", ring | (0 if fds else 0x100)), fds)

    def iotlb(self, page: int, pages: int, user_page: int, permissions: int, kind: int) -> None:
        """IOTLB_MSG."""
        fields = (page * PAGE, pages * PAGE, user_page * PAGE, permissions % 5, kind % 5)
        self._named("IOTLB_MSG", struct.pack("<QQQBB6x", *fields))

    def status(self, value: int) -> None:
        """SET_STATUS."""
        self._named("SET_STATUS", struct.pack("<Q", value))

    def config(self, what: int, offset: int, flags: int, data: bytes) -> None:
        """GET_CONFIG or SET_CONFIG."""
        payload = struct.pack("<III", offset, len(data), flags % 3) + data
        self._named("SET_CONFIG" if what & 1 else "GET_CONFIG", payload)

    def guest(self, offset: int, data: bytes) -> None:
        """Guest memory, as its CPU writes it."""
        os.pwrite(self.memory_files.ram, data, offset % (MEMORY_BYTES - len(data)))


@cache
def _target() -> Target:
    return Target()


def run(data: bytes) -> None:
    """One input."""
    _target().run(Input(data))
