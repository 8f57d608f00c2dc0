# SPDX-License-Identifier: Apache-2.0
"""Doorbells that a client writes as messages: the data plane rings and answers them, without Python."""

from __future__ import annotations

from vdpa_net.closing import Closing
from vdpa_net.transport.fdsocket import FdSocket
from vdpa_net.transport.vfio_user.dispatch import Doorbell, PciFunction
from vdpa_net.wire import vfio_user as wire

_ACCESS = wire.compiled(wire.REGION_ACCESS)
_WIDTHS_BYTES = (2, 4)
"""Of a doorbell's write: the index alone, or in a whole register (virtio 1.3, 4.1.5.2)."""


class Bells(Closing):
    """Reads the messages of one client. It knows the doorbells' by heart; what else comes is returned.

    A write that is not exactly the right value at the right place is no doorbell here: the device has to see
    it, and records the violation. A client that has to be watched writes every doorbell into the device.
    """

    def __init__(self, sock: FdSocket, function: PciFunction) -> None:
        from vdpa_net._native import DoorbellSocket  # noqa: PLC0415

        self._socket = DoorbellSocket(sock.fileno(), wire.Command.REGION_WRITE, wire.REGION_ACCESS.size)
        for bell in function.doorbells():
            self._socket.add(_messages(bell), bell.fd)
        self._forget = function.on_watched(self._socket.set_watched)

    def close(self) -> None:
        """Give back what is held of the client's socket and of the device's doorbells."""
        self._forget()
        self._socket.close()

    def receive(self, fds: list[int]) -> bytes:
        """The beginning of the next message that is no doorbell, its header at least, or less at the end of
        the stream; descriptors that came with it are appended. Raises PeerGone, ProtocolError."""
        return self._socket.receive(fds)


def _messages(bell: Doorbell) -> list[bytes]:
    """Payloads of REGION_WRITE that ring it."""
    return [
        _ACCESS.pack(bell.offset, bell.region, width) + bell.queue.to_bytes(width, "little")
        for width in _WIDTHS_BYTES
    ]
