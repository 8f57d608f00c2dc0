# SPDX-License-Identifier: Apache-2.0
"""The wire of the vhost-user front end double: messages out, answers in.

It declares the messages of the specification (QEMU, docs/interop/vhost-user) itself instead of sharing the
tables of the back end: two sides that share a wrong number would agree.
"""

from __future__ import annotations

import array
import socket
import struct
import threading
from collections.abc import Sequence
from enum import IntEnum
from pathlib import Path

from vdpa_net.errors import PeerError, PeerGone, ProtocolError

PROTOCOL_REPLY_ACK = 1 << 3

_HEADER = struct.Struct("<III")
_U64 = struct.Struct("<Q")
_VERSION = 1
_REPLY = 1 << 2
_NEED_REPLY = 1 << 3


class Request(IntEnum):
    """Codes of the messages that this front end sends ("Front-end message types")."""

    GET_FEATURES = 1
    SET_FEATURES = 2
    SET_OWNER = 3
    SET_MEM_TABLE = 5
    SET_LOG_BASE = 6
    SET_LOG_FD = 7
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    GET_VRING_BASE = 11
    SET_VRING_KICK = 12
    SET_VRING_CALL = 13
    SET_VRING_ERR = 14
    GET_PROTOCOL_FEATURES = 15
    SET_PROTOCOL_FEATURES = 16
    GET_QUEUE_NUM = 17
    SET_VRING_ENABLE = 18
    SEND_RARP = 19
    NET_SET_MTU = 20
    SET_BACKEND_REQ_FD = 21
    IOTLB_MSG = 22
    GET_CONFIG = 24
    SET_CONFIG = 25
    RESET_DEVICE = 34
    GET_MAX_MEM_SLOTS = 36
    ADD_MEM_REG = 37
    REM_MEM_REG = 38
    SET_STATUS = 39
    GET_STATUS = 40


def connect(path: Path | str) -> socket.socket:
    """A connection to a back end that listens. Raises PeerGone."""
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        made.connect(str(path))
    except OSError as error:
        made.close()
        raise PeerGone(f"{path}: {error.strerror or error}", errno=error.errno) from error
    return made


class FrontEndConnection:
    """One connection to a back end. `protocol_features` are those that were negotiated.

    Raises PeerError when the back end answers a message with an error, PeerGone when it hangs up and
    ProtocolError when its answer is not the one that belongs to the message.
    """

    def __init__(self, sock: socket.socket, *, timeout_s: float = 20.0) -> None:
        """Takes the socket over."""
        self.protocol_features = 0
        self.sent: list[Request] = []
        self._socket = sock
        self._lock = threading.RLock()
        self._socket.settimeout(timeout_s)

    def get_u64(self, code: Request) -> int:
        """Ask for one number."""
        answer = self.ask(code)
        if len(answer) != _U64.size:
            raise ProtocolError(f"{code.name} was answered with {len(answer)} bytes, expected {_U64.size}")
        return int(_U64.unpack(answer)[0])

    def request(self, code: Request, payload: bytes = b"", fds: Sequence[int] = ()) -> None:
        """Send a message that needs no reply; with REPLY_ACK, wait for the acknowledgement."""
        if not self.protocol_features & PROTOCOL_REPLY_ACK:
            self.send(code, payload, fds)
            return
        with self._lock:
            self.send(code, payload, fds, _NEED_REPLY)
            answer = self._receive(code)
        self.expect_success(code, answer)

    @staticmethod
    def expect_success(code: Request, answer: bytes) -> None:
        """Raises PeerError for an answer that is not a u64 0."""
        if answer != bytes(8):
            raise PeerError(f"{code.name} was answered with {answer.hex() or 'nothing'}, expected a u64 0")

    def ask(self, code: Request, payload: bytes = b"", fds: Sequence[int] = ()) -> bytes:
        """Send a message that has a reply of its own; returns the reply's payload."""
        with self._lock:
            self.send(code, payload, fds)
            return self._receive(code)

    def send(self, code: int, payload: bytes = b"", fds: Sequence[int] = (), flags: int = 0) -> None:
        """Send any message, allowed or not."""
        if code in set(Request):
            self.sent.append(Request(code))
        data = _HEADER.pack(code, _VERSION | flags, len(payload)) + payload
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            self._socket.sendmsg([data], rights, socket.MSG_NOSIGNAL)
        except OSError as error:
            raise PeerGone(f"message {code}: {error}", errno=error.errno) from error

    def _receive(self, code: int) -> bytes:
        answered, flags, size = _HEADER.unpack(self._receive_exactly(_HEADER.size, code))
        if answered != code or flags & 3 != _VERSION or not flags & _REPLY:
            raise ProtocolError(f"message {code} was answered by message {answered} with flags {flags:#x}")
        return self._receive_exactly(size, code)

    def _receive_exactly(self, size: int, code: int) -> bytes:
        data = b""
        while len(data) < size:
            try:
                part = self._socket.recv(size - len(data))
            except OSError as error:
                raise PeerGone(f"waiting for the answer to message {code}: {error}") from error
            if not part:
                raise PeerGone(f"the back end hung up on message {code}")
            data += part
        return data

    def close(self) -> None:
        """Hang up."""
        self._socket.close()
