# SPDX-License-Identifier: Apache-2.0
"""A DHCP server for one machine (RFC 2131), as far as firmware that boots from the network needs one."""

from __future__ import annotations

import select
import socket
import struct
import time
from typing import Final

from vdpa_net.closing import Closing
from vdpa_net.wire.layout import Field, Layout

SERVER_PORT: Final = 67
CLIENT_PORT: Final = 68
BOOT_FILE: Final = b"boot.efi"
LEASE_SECONDS: Final = 3600

_HEADER: Final = Layout(
    "dhcp",
    *(Field(name, 1) for name in ("op", "htype", "hlen", "hops")),
    Field("xid", 4, blob=True),
    *(Field(name, 2) for name in ("secs", "flags")),
    *(Field(name, 4, blob=True) for name in ("ciaddr", "yiaddr", "siaddr", "giaddr")),
    Field("chaddr", 16, blob=True),
    Field("sname", 64, blob=True),
    Field("file", 128, blob=True),
    Field("cookie", 4, blob=True),
)
_COOKIE: Final = bytes((99, 130, 83, 99))
_REPLY: Final = 2
_END: Final = 255
_MESSAGE_TYPE: Final = 53
_NAMES: Final = {1: "DHCPDISCOVER", 3: "DHCPREQUEST"}
_ANSWERS: Final = {1: 2, 3: 5}
"""DHCPOFFER to a DHCPDISCOVER, DHCPACK to a DHCPREQUEST."""


class DhcpServer(Closing):
    """Offers one address, and the name of a boot file, to whoever asks on an interface.

    Raises OSError if the port is taken.
    """

    def __init__(self, interface: str, address: str, offered: str, mac: str) -> None:
        self._address = socket.inet_aton(address)
        self._offered = socket.inet_aton(offered)
        self._mac = bytes.fromhex(mac.replace(":", ""))
        self._sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode())
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        self._sock.bind(("", SERVER_PORT))

    def serve(self, mac: str, timeout_s: float) -> list[str]:
        """Answer this station until it has requested what it was offered; the messages that came from it."""
        station = bytes.fromhex(mac.replace(":", ""))
        seen: list[str] = []
        deadline = time.monotonic() + timeout_s
        while "DHCPREQUEST" not in seen:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._sock], [], [], left)[0]:
                break
            message = self._sock.recv(4096)
            if name := self._answer(message, station):
                seen.append(name)
        return seen

    def close(self) -> None:
        """Close the socket."""
        self._sock.close()

    def _answer(self, message: bytes, station: bytes) -> str:
        kind = message_type(message)
        if kind not in _ANSWERS or _HEADER.blob(message, "chaddr")[:6] != station:
            return ""
        reply = self._reply(message, _ANSWERS[kind])
        self._sock.sendto(reply, ("255.255.255.255", CLIENT_PORT))
        return _NAMES[kind]

    def _reply(self, message: bytes, kind: int) -> bytes:
        fields = _HEADER.unpack(message)
        head = _HEADER.pack(
            op=_REPLY,
            htype=fields["htype"],
            hlen=fields["hlen"],
            xid=_HEADER.blob(message, "xid"),
            flags=fields["flags"],
            yiaddr=self._offered,
            siaddr=self._address,
            chaddr=_HEADER.blob(message, "chaddr"),
            file=BOOT_FILE.ljust(128, b"\0"),
            cookie=_COOKIE,
        )
        options = (
            (_MESSAGE_TYPE, bytes([kind])),
            (54, self._address),  # server identifier
            (51, struct.pack(">I", LEASE_SECONDS)),
            (1, bytes((255, 255, 255, 0))),  # subnet mask
            (66, socket.inet_ntoa(self._address).encode()),  # TFTP server
            (67, BOOT_FILE),
        )
        return head + b"".join(bytes((code, len(data))) + data for code, data in options) + bytes([_END])


def message_type(message: bytes) -> int:
    """Option 53 of a DHCP message; 0 if it is none."""
    if len(message) < _HEADER.size or _HEADER.blob(message, "cookie") != _COOKIE:
        return 0
    at = _HEADER.size
    while at + 2 < len(message) and message[at] != _END:
        code, length = message[at], message[at + 1]
        if code == 0:
            at += 1
            continue
        if code == _MESSAGE_TYPE:
            return message[at + 2]
        at += 2 + length
    return 0
