# SPDX-License-Identifier: Apache-2.0
"""The back-end channel: requests of the back end to its front end ("Back-end communication").

A front end may be waiting on the main socket for us while we have something to ask. So nobody waits here:
requests are queued, one thread sends them and another takes the replies.
"""

from __future__ import annotations

import contextlib
import os
import queue
import socket
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from vdpa_net.errors import PeerGone, ProtocolError
from vdpa_net.transport.fdsocket import FdSocket
from vdpa_net.wire.vhost_user import (
    FLAG_NEED_REPLY,
    FLAG_REPLY,
    HEADER,
    IOTLB,
    U64,
    VERSION,
    VERSION_MASK,
    BackendRequest,
    IotlbType,
)

OnReply = Callable[[bool], None]


@dataclass(frozen=True)
class _Outgoing:
    code: BackendRequest
    payload: bytes
    on_reply: OnReply | None


class BackendChannel:
    """Owns a descriptor of the channel. `reply_ack`: the front end answers requests that ask for it.

    Raises ProtocolError for what is no Unix stream socket.
    """

    def __init__(self, fd: int, *, reply_ack: bool) -> None:
        """Takes a duplicate of `fd`."""
        self._socket = FdSocket(_unix_stream(fd))
        self._reply_ack = reply_ack
        self._outgoing: queue.SimpleQueue[_Outgoing | None] = queue.SimpleQueue()
        self._waiting: deque[_Outgoing] = deque()
        self._threads: list[threading.Thread] = []

    def iotlb(self, kind: IotlbType, iova: int, permissions: int, on_reply: OnReply | None = None) -> None:
        """Ask for a translation (MISS), or report an access without one (ACCESS_FAIL).

        `on_reply(success)` is called from another thread, if the front end replies at all.
        """
        payload = IOTLB.pack(iova=iova, permissions=permissions, type=kind)
        self._send(_Outgoing(BackendRequest.IOTLB_MSG, payload, on_reply))

    def config_changed(self) -> None:
        """Tell that the device's configuration has changed."""
        self._send(_Outgoing(BackendRequest.CONFIG_CHANGE_MSG, b"", None))

    def close(self) -> None:
        """Hang up; no further reply is passed on. Not to be called from `on_reply`."""
        self._outgoing.put(None)
        self._socket.shutdown()
        for thread in self._threads:
            thread.join()
        self._socket.close()

    def _send(self, message: _Outgoing) -> None:
        if not self._threads:
            for target in (self._run_sender, self._run_receiver):
                thread = threading.Thread(target=target, name="vhost-user channel", daemon=True)
                self._threads.append(thread)
                thread.start()
        self._outgoing.put(message)

    def _run_sender(self) -> None:
        with contextlib.suppress(PeerGone):
            while (message := self._outgoing.get()) is not None:
                wants_reply = self._reply_ack and message.on_reply is not None
                flags = VERSION | (FLAG_NEED_REPLY if wants_reply else 0)
                if wants_reply:
                    self._waiting.append(message)
                header = HEADER.pack(request=message.code, flags=flags, size=len(message.payload))
                self._socket.send(header + message.payload)

    def _run_receiver(self) -> None:
        with contextlib.suppress(PeerGone, ProtocolError, IndexError):
            while True:
                success = self._receive_reply()
                message = self._waiting.popleft()
                if message.on_reply is not None:
                    message.on_reply(success)

    def _receive_reply(self) -> bool:
        header = HEADER.unpack(self._socket.recv_exact(HEADER.size))
        flags, size = header["flags"], header["size"]
        if flags & VERSION_MASK != VERSION or not flags & FLAG_REPLY or size != U64.size:
            raise ProtocolError(f"reply on the back-end channel with flags {flags:#x} and {size} bytes")
        return U64.unpack(self._socket.recv_exact(size))["value"] == 0


def _unix_stream(fd: int) -> socket.socket:
    """A socket of our own on the same channel. Of other kinds some can't be shut down: who waits for one of
    those could never be called off."""
    ours = os.dup(fd)
    try:
        made = socket.socket(fileno=ours)
    except OSError as error:
        os.close(ours)
        raise ProtocolError(f"SET_BACKEND_REQ_FD: the descriptor is no socket: {error}") from error
    if (made.family, made.type) != (socket.AF_UNIX, socket.SOCK_STREAM):
        made.close()
        raise ProtocolError(
            f"SET_BACKEND_REQ_FD: {made.family!r}, {made.type!r}: expected a Unix stream socket"
        )
    return made
