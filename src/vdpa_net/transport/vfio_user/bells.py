# SPDX-License-Identifier: Apache-2.0
"""Doorbells and maps that come as messages: the data plane carries them out and answers, without Python.

A guest behind an IOMMU has one message for each page that it lends to the device, and one to take it back.
"""

from __future__ import annotations

from vdpa_net.closing import Closing
from vdpa_net.transport.fdsocket import FdSocket
from vdpa_net.transport.vfio_user.dispatch import Doorbell, PciFunction
from vdpa_net.wire import vfio_user as wire
from vdpa_net.wire.layout import Layout

_ACCESS = wire.compiled(wire.REGION_ACCESS)
_WIDTHS_BYTES = (2, 4)
"""Of a doorbell's write: the index alone, or in a whole register (virtio 1.3, 4.1.5.2)."""


_Shape = tuple[int, int, bytes, int, int]


def _shape(command: wire.Command, layout: Layout, flags: int) -> _Shape:
    """A message of that command with just these flags: what `DoorbellSocket.serve_maps` takes."""
    prefix = layout.size.to_bytes(4, "little") + flags.to_bytes(4, "little")
    return command, layout.size, prefix, layout.offset("address"), layout.offset("size")


_READ, _WRITE = wire.DmaMapFlag.READ, wire.DmaMapFlag.WRITE
_MAPS = [
    (
        _shape(wire.Command.DMA_MAP, wire.DMA_MAP, flags),
        wire.DMA_MAP.offset("offset"),
        bool(flags & _READ),
        bool(flags & _WRITE),
    )
    for flags in (_READ, _WRITE, _READ | _WRITE)
]
_UNMAPS = [_shape(wire.Command.DMA_UNMAP, wire.DMA_UNMAP, 0)]
_BATCHES = (
    wire.Command.REGION_WRITE_MULTI,
    wire.WRITE_MULTI.size,
    wire.WRITE_ONE.size,
    wire.WRITE_ONE.offset("count"),
    wire.MAX_MULTI_WRITES,
)
"""A write of REGION_WRITE_MULTI is laid out as a REGION_WRITE is: only the bytes behind its data differ."""


class Bells(Closing):
    """Reads the messages of one client. It knows doorbells, maps and unmaps by heart; the rest is returned.

    A write that is not exactly the right value at the right place is no doorbell here: the device has to see
    it, and records the violation. A map or unmap that can't be carried out has changed nothing; the function
    is asked for it, and says what is wrong. Of a client that has to be watched every message is returned.
    """

    def __init__(self, sock: FdSocket, function: PciFunction) -> None:
        from vdpa_net._native import DmaSpace, DoorbellSocket, QueueBell  # noqa: PLC0415

        self._socket = DoorbellSocket(sock.fileno(), wire.Command.REGION_WRITE, wire.REGION_ACCESS.size)
        for bell in function.doorbells():
            own = function.queue_bell(bell.queue)
            if isinstance(own, QueueBell):
                self._socket.add_queue(_messages(bell), own)
            else:
                self._socket.add(_messages(bell), bell.fd)
        self._socket.serve_batches(*_BATCHES)
        if isinstance(space := function.map_space(), DmaSpace):
            self._socket.serve_maps(space, _MAPS, _UNMAPS)
        self._forget = function.on_watched(self._socket.set_watched)

    def close(self) -> None:
        """Give back what is held of the client's socket and of the device's doorbells."""
        self._forget()
        self._socket.close()

    def receive(self, fds: list[int]) -> bytes:
        """The beginning of the next message that is the caller's, its header at least, or less at the end of
        the stream; descriptors that came with it are appended. Raises PeerGone, ProtocolError."""
        return self._socket.receive(fds)


def _messages(bell: Doorbell) -> list[bytes]:
    """Payloads of REGION_WRITE that ring it."""
    return [
        _ACCESS.pack(bell.offset, bell.region, width) + bell.queue.to_bytes(width, "little")
        for width in _WIDTHS_BYTES
    ]
