# SPDX-License-Identifier: Apache-2.0
"""The lab's UDP sockets: roomy, and with the kernel's own time of each arrival."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterator

from vdpa_net.errors import LabError

SOCKET_BUFFER_BYTES = 8 << 20
_SO_RCVBUFFORCE = 33
_SO_TIMESTAMPNS = 35
_TIMESPEC = struct.Struct("qq")


def open_udp(address: tuple[str, int]) -> socket.socket:
    """A bound socket that does not block. Raises LabError."""
    opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    try:
        opened.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, SOCKET_BUFFER_BYTES)
    except PermissionError:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BUFFER_BYTES)
    # The kernel's time of arrival: what this process was busy with meanwhile does not show in it.
    opened.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
    try:
        opened.bind(address)
    except OSError as error:
        opened.close()
        raise LabError(
            f"the traffic's socket can't be bound to {address[0]}:{address[1]}: {error}"
        ) from error
    return opened


def drain(opened: socket.socket) -> Iterator[tuple[bytes, int]]:
    """What has arrived, with the time of its arrival (CLOCK_REALTIME, ns)."""
    while True:
        try:
            data, ancillary, _, _ = opened.recvmsg(2048, 64)
        except BlockingIOError:
            return
        except ConnectionError:
            # An ICMP error of an earlier datagram: nobody listened there yet.
            continue
        stamp = next((value for _, kind, value in ancillary if kind == _SO_TIMESTAMPNS), None)
        if stamp is None:
            yield data, time.time_ns()
        else:
            seconds, nanoseconds = _TIMESPEC.unpack(stamp[: _TIMESPEC.size])
            yield data, seconds * 1_000_000_000 + nanoseconds
