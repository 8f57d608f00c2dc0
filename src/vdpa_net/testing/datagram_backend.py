# SPDX-License-Identifier: Apache-2.0
"""A back end whose frames come back through the kernel, read and written as those of a tap are."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, ClassVar

from vdpa_net.backend import Limits

if TYPE_CHECKING:
    from vdpa_net import _native


class DatagramLoopback:
    """One queue pair on a datagram socket that is connected to itself: what is transmitted is received,
    packets of 4096 bytes and more straight into the driver's buffers. Needs no privileges. Headers come back
    as they went.
    """

    name = "datagrams"
    queue_pairs = 1
    limits: ClassVar[Limits] = Limits(1, steers_itself=True, has_network=False)

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        # The empty address is one that the kernel makes up.
        self._socket.bind("")
        self._socket.connect(self._socket.getsockname())
        self._native: _native.Tap | None = None

    def native(self) -> _native.Tap:
        """The packet end in the data plane, which holds a duplicate of the socket."""
        if self._native is None:
            from vdpa_net import _native  # noqa: PLC0415 - the extension loads when a device is made

            self._native = _native.Tap([self._socket.fileno()])
        return self._native

    def set_carrier(self, on: bool) -> None:
        """Nothing around sees it."""

    def set_offloads(self, features: int) -> None:
        """Frames come back as they are."""

    def set_active_pairs(self, count: int) -> None:
        """There is one."""

    def close(self) -> None:
        """Forget the packet end."""
        self._native = None
        self._socket.close()
