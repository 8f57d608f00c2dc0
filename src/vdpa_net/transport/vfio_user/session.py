# SPDX-License-Identifier: Apache-2.0
"""The server's side of a vfio-user connection, without I/O.

    session = ServerSession()
    size = session.payload_size(header)                    # 16 bytes in; FramingError: close
    request = session.receive(header, payload, fds)        # ProtocolError: send error_reply(header, errno)
    message = session.reply(request, payload, fds)         # None for a posted command

The session knows message order, versions and capabilities. What requests mean to a device is `dispatch`'s
business. Descriptors are mere numbers here: who receives them closes them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from vdpa_net.errors import FramingError, ProtocolError
from vdpa_net.transport.vfio_user import requests as rq
from vdpa_net.transport.vfio_user.decode import decode, decode_header
from vdpa_net.wire import vfio_user as wire

_HEADER = wire.compiled(wire.HEADER)

CAPABILITIES: Mapping[str, object] = {
    "max_msg_fds": wire.MAX_MSG_FDS,
    "max_data_xfer_size": wire.MAX_DATA_XFER_SIZE_BYTES,
    "pgsizes": wire.PGSIZES,
    "max_dma_maps": wire.MAX_DMA_MAPS,
    "write_multiple": True,
}
"""What we answer a client that proposes all of it."""


class Outgoing(NamedTuple):
    """One message to send: its bytes, and descriptors (borrowed) that go with the first of them."""

    data: bytes
    fds: tuple[int, ...] = ()


def encode_message(
    message_id: int,
    command: int,
    flags: int,
    payload: bytes = b"",
    *,
    error: int = 0,
    fds: Sequence[int] = (),
) -> Outgoing:
    """Put a header before a payload."""
    header = _HEADER.pack(message_id, command, wire.HEADER.size + len(payload), flags, error)
    return Outgoing(header + payload, tuple(fds))


def encode_version(major: int, minor: int, capabilities: Mapping[str, object]) -> bytes:
    """Payload of a VERSION message."""
    document = json.dumps({"capabilities": capabilities}, separators=(",", ":"))
    return wire.VERSION.pack(major=major, minor=minor) + document.encode() + b"\0"


class ServerSession:
    """Protocol state of one connection."""

    def __init__(self) -> None:
        self.negotiated = False
        """True after a VERSION that we can serve."""
        self.refused = False
        """True after a VERSION that we can't serve: answer it and close the connection."""
        self.client_max_msg_fds = wire.DEFAULT_MAX_MSG_FDS
        """How many descriptors the client takes in one message."""

    def payload_size(self, header: bytes) -> int:
        """Bytes that follow this header. Raises FramingError."""
        return decode_header(header).message_size - wire.HEADER.size

    def receive(self, header: bytes, payload: bytes, fds: Sequence[int] = ()) -> rq.Request:
        """Decode one message of the client.

        Raises ProtocolError when the message deserves an error reply, FramingError when the connection has to
        be closed.
        """
        head = decode_header(header)
        if len(payload) != head.message_size - wire.HEADER.size:
            raise FramingError(
                f"a message of {head.message_size} bytes came with a payload of {len(payload)}"
            )
        if head.type == wire.TYPE_REPLY:
            # We send no commands, so this answers nothing, and answering it could go on for ever.
            raise FramingError(f"a reply to {wire.command_name(head.command)}, which was never sent")
        body = decode(head, payload, fds)
        self._check_order(body)
        if isinstance(body, rq.Version):
            self._negotiate(body)
        return rq.Request(head, body)

    def _check_order(self, body: rq.Body) -> None:
        """Clause "VFIO_USER_VERSION": it is the initial message, and an initial message comes once."""
        if isinstance(body, rq.Version) == self.negotiated:
            state = "a second VERSION" if self.negotiated else f"{type(body).__name__} before VERSION"
            raise ProtocolError(f'{state}: expected VERSION first and once (vfio-user, "VFIO_USER_VERSION")')

    def _negotiate(self, version: rq.Version) -> None:
        if version.major != wire.VERSION_MAJOR:
            self.refused = True
            raise ProtocolError(
                f"protocol version {version.major}.{version.minor}: expected {wire.VERSION_MAJOR}.x"
            )
        max_msg_fds = version.capabilities.get("max_msg_fds", wire.DEFAULT_MAX_MSG_FDS)
        if isinstance(max_msg_fds, bool) or not isinstance(max_msg_fds, int) or max_msg_fds < 0:
            raise ProtocolError(f"capability max_msg_fds {max_msg_fds!r}: expected a number")
        self.client_max_msg_fds = min(max_msg_fds, wire.MAX_MSG_FDS)
        self.negotiated = True

    def version_reply(self, version: rq.Version) -> bytes:
        """Payload of the answer to VERSION: our version, and of our capabilities those that were proposed.

        Clause "VFIO_USER_VERSION": a subset of the proposed ones. QEMU refuses a reply that is longer than
        its request, which this can't be as long as the request lists more.
        """
        capabilities = {name: value for name, value in CAPABILITIES.items() if name in version.capabilities}
        return encode_version(wire.VERSION_MAJOR, wire.VERSION_MINOR, capabilities)

    def reply(self, request: rq.Request, payload: bytes = b"", fds: Sequence[int] = ()) -> Outgoing | None:
        """The answer to a request; None when the client wants none."""
        head = request.header
        if not head.expects_reply:
            return None
        return encode_message(head.message_id, head.command, wire.TYPE_REPLY, payload, fds=fds)

    def error_reply(self, header: bytes, errno: int) -> Outgoing | None:
        """The answer to a message that failed: a header only (clause "Header"); None when none is wanted."""
        head = decode_header(header)
        if not head.expects_reply:
            return None
        flags = wire.TYPE_REPLY | wire.FLAG_ERROR
        return encode_message(head.message_id, head.command, flags, error=errno)
