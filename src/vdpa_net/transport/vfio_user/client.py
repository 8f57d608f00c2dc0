# SPDX-License-Identifier: Apache-2.0
"""A blocking vfio-user client."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vdpa_net.closing import Closing
from vdpa_net.errors import PeerError, PeerGone, ProtocolError
from vdpa_net.transport.fdsocket import FdSocket, close_fds
from vdpa_net.transport.vfio_user.decode import decode_capabilities
from vdpa_net.transport.vfio_user.requests import Header
from vdpa_net.transport.vfio_user.session import CAPABILITIES, encode_message, encode_version
from vdpa_net.wire import vfio_user as wire
from vdpa_net.wire.layout import Layout
from vdpa_net.wire.vfio_user import Command, IrqIndex

_HEADER = wire.compiled(wire.HEADER)
_ACCESS = wire.compiled(wire.REGION_ACCESS)
_MESSAGE_ID_MASK = 0xFFFF
_MAX_IO_FDS_BYTES = 1 << 16
DEFAULT_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class IoEventfd:
    """One doorbell that the server offers as an eventfd. `fd` is owned by whoever asked for it."""

    offset: int
    size_bytes: int
    fd: int
    datamatch: int | None


class VfioUserClient(Closing):
    """A connection to a vfio-user server; the version is negotiated on construction.

    Thread-safe: one request at a time. Raises PeerError with the server's errno when it refuses a request,
    PeerGone when it is not there (any more) or does not answer in time, ProtocolError when its answers make
    no sense; the connection is closed after the latter two.
    """

    def __init__(self, path: str | os.PathLike[str], *, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        self._lock = threading.Lock()
        self._next_id = 0
        self._sock = FdSocket.connect(path)
        self._sock.set_timeout(timeout_s)
        self.max_msg_fds = wire.DEFAULT_MAX_MSG_FDS
        self.max_data_xfer_size_bytes = wire.MAX_DATA_XFER_SIZE_BYTES
        try:
            self._negotiate()
        except BaseException:
            self._sock.close()
            raise

    @property
    def closed(self) -> bool:
        """True after `close` and after an error that ended the connection."""
        return self._sock.fileno() < 0

    def close(self) -> None:
        """Disconnect. Idempotent."""
        self._sock.shutdown()
        with self._lock:
            self._sock.close()

    def _negotiate(self) -> None:
        proposal = encode_version(wire.VERSION_MAJOR, wire.VERSION_MINOR, CAPABILITIES)
        reply = self._request(Command.VERSION, proposal)
        version = _unpack(wire.VERSION, reply)
        if version["major"] != wire.VERSION_MAJOR or version["minor"] > wire.VERSION_MINOR:
            raise ProtocolError(
                f"the server speaks version {version['major']}.{version['minor']}: expected 0.0"
            )
        offered = decode_capabilities(reply[wire.VERSION.size :])
        self.max_msg_fds = _limit(offered, "max_msg_fds", wire.DEFAULT_MAX_MSG_FDS, wire.MAX_MSG_FDS)
        most = wire.MAX_DATA_XFER_SIZE_BYTES
        self.max_data_xfer_size_bytes = _limit(offered, "max_data_xfer_size", most, most)

    def device_info(self) -> dict[str, int]:
        """flags, num_regions, num_irqs."""
        reply = self._request(Command.DEVICE_GET_INFO, wire.DEVICE_INFO.pack(argsz=wire.DEVICE_INFO.size))
        return _unpack(wire.DEVICE_INFO, reply)

    def region_info(self, index: int) -> dict[str, int]:
        """flags (wire.RegionFlag) and size in bytes of a region; size 0: there is none."""
        request = wire.REGION_INFO.pack(argsz=wire.REGION_INFO.size, index=index)
        return _unpack(wire.REGION_INFO, self._request(Command.DEVICE_GET_REGION_INFO, request))

    def irq_info(self, index: int) -> dict[str, int]:
        """flags (wire.IrqInfoFlag) and count of an interrupt type."""
        request = wire.IRQ_INFO.pack(argsz=wire.IRQ_INFO.size, index=index)
        return _unpack(wire.IRQ_INFO, self._request(Command.DEVICE_GET_IRQ_INFO, request))

    def dma_map(
        self,
        iova: int,
        size: int,
        fd: int | None,
        offset: int = 0,
        *,
        readable: bool = True,
        writable: bool = True,
    ) -> None:
        """Map a range of the file; without a file the server only learns that there is something."""
        flags = wire.DmaMapFlag.READ * readable | wire.DmaMapFlag.WRITE * writable
        request = wire.DMA_MAP.pack(
            argsz=wire.DMA_MAP.size, flags=flags, offset=offset, address=iova, size=size
        )
        self._request(Command.DMA_MAP, request, () if fd is None else (fd,))

    def dma_unmap(self, iova: int, size: int) -> None:
        """Remove maps; when this returns the server does not touch the range any more."""
        self._request(
            Command.DMA_UNMAP, wire.DMA_UNMAP.pack(argsz=wire.DMA_UNMAP.size, address=iova, size=size)
        )

    def dma_unmap_all(self) -> None:
        """Remove all maps (VFIO_DMA_UNMAP_FLAG_ALL)."""
        flags = wire.DmaUnmapFlag.ALL
        self._request(Command.DMA_UNMAP, wire.DMA_UNMAP.pack(argsz=wire.DMA_UNMAP.size, flags=flags))

    def set_irqs(self, start: int, fds: Sequence[int | None], index: int = IrqIndex.MSIX) -> None:
        """Bind interrupts from `start` on to eventfds; None unbinds.

        One message carries descriptors for all of its interrupts or for none, and at most as many as the
        server takes; so this may be several messages.
        """
        flags = wire.IrqSetFlag.DATA_EVENTFD | wire.IrqSetFlag.ACTION_TRIGGER
        for first, chunk in _irq_chunks(fds, max(1, self.max_msg_fds)):
            given = tuple(fd for fd in chunk if fd is not None)
            self._set_irqs(flags, index, start + first, len(chunk), fds=given)

    def trigger_irqs(self, start: int, flags: Sequence[bool], index: int = IrqIndex.MSIX) -> None:
        """Let the device raise interrupts now."""
        bits = wire.IrqSetFlag.DATA_BOOL | wire.IrqSetFlag.ACTION_TRIGGER
        self._set_irqs(bits, index, start, len(flags), data=bytes(flags))

    def disable_irqs(self, index: int = IrqIndex.MSIX) -> None:
        """Unbind all interrupts of a type."""
        self._set_irqs(wire.IrqSetFlag.DATA_NONE | wire.IrqSetFlag.ACTION_TRIGGER, index, 0, 0)

    def _set_irqs(
        self, flags: int, index: int, start: int, count: int, *, data: bytes = b"", fds: Sequence[int] = ()
    ) -> None:
        argsz = wire.IRQ_SET.size + len(data)
        request = wire.IRQ_SET.pack(argsz=argsz, flags=flags, index=index, start=start, count=count)
        self._request(Command.DEVICE_SET_IRQS, request + data, fds)

    def region_read(self, region: int, offset: int, count: int) -> bytes:
        """Read from a region; more than max_data_xfer_size is several messages."""
        parts: list[bytes] = []
        for first, size in _chunks(count, self.max_data_xfer_size_bytes):
            reply = self._request(Command.REGION_READ, _ACCESS.pack(offset + first, region, size))
            if len(reply) != wire.REGION_ACCESS.size + size:
                raise self._broken(f"REGION_READ of {size} bytes was answered with {len(reply)}")
            parts.append(reply[wire.REGION_ACCESS.size :])
        return b"".join(parts)

    def region_write(self, region: int, offset: int, data: bytes, *, posted: bool = False) -> None:
        """Write to a region; `posted` does not wait, and the server's error, if any, is not told."""
        for first, size in _chunks(len(data), self.max_data_xfer_size_bytes):
            request = _ACCESS.pack(offset + first, region, size) + data[first : first + size]
            if posted:
                self._post(Command.REGION_WRITE, request)
            else:
                self._request(Command.REGION_WRITE, request)

    def region_io_fds(self, index: int) -> list[IoEventfd]:
        """Doorbells of a region that are eventfds. The caller owns their descriptors."""
        argsz = wire.REGION_IO_FDS.size + self.max_msg_fds * wire.SUB_REGION_IOEVENTFD.size
        while True:
            fds: list[int] = []
            try:
                request = wire.REGION_IO_FDS.pack(argsz=argsz, index=index)
                reply = self._request(Command.DEVICE_GET_REGION_IO_FDS, request, taken=fds)
                head = _unpack(wire.REGION_IO_FDS, reply)
                if argsz < head["argsz"] <= _MAX_IO_FDS_BYTES:
                    argsz = head["argsz"]
                    continue
                return _io_eventfds(head["count"], reply, fds)
            finally:
                close_fds(fds)

    def reset(self) -> None:
        """Reset the device."""
        self._request(Command.DEVICE_RESET)

    def _post(self, command: Command, payload: bytes) -> None:
        with self._lock:
            try:
                self._send(command, wire.TYPE_COMMAND | wire.FLAG_NO_REPLY, payload)
            except PeerGone:
                self._sock.close()
                raise

    def _request(
        self, command: Command, payload: bytes = b"", fds: Sequence[int] = (), taken: list[int] | None = None
    ) -> bytes:
        """Send a command and return the payload of its reply; descriptors of the reply go to `taken`."""
        with self._lock:
            try:
                message_id = self._send(command, wire.TYPE_COMMAND, payload, fds)
                header = Header(*_HEADER.unpack(self._sock.recv_exact(wire.HEADER.size, taken)))
                self._check_reply(header, message_id, command)
                size = header.message_size - wire.HEADER.size
                reply = self._sock.recv_exact(size, taken) if size else b""
            except (PeerGone, ProtocolError):
                # The stream is at an unknown place: nothing that comes later could be trusted.
                self._sock.close()
                raise
        if header.flags & wire.FLAG_ERROR:
            number = header.error or errno.EIO
            raise PeerError(f"the server refused {command.name}: {os.strerror(number)}", errno=number)
        return reply

    def _send(self, command: Command, flags: int, payload: bytes, fds: Sequence[int] = ()) -> int:
        self._next_id = message_id = (self._next_id + 1) & _MESSAGE_ID_MASK
        self._sock.send(encode_message(message_id, command, flags, payload).data, fds)
        return message_id

    def _check_reply(self, header: Header, message_id: int, command: Command) -> None:
        if (header.message_id, header.command, header.type) != (message_id, command, wire.TYPE_REPLY):
            raise ProtocolError(
                f"reply #{header.message_id} {wire.command_name(header.command)} of type {header.type}:"
                f" expected the reply to #{message_id} {command.name}"
            )
        if not wire.HEADER.size <= header.message_size <= wire.MAX_MESSAGE_BYTES:
            raise ProtocolError(f"reply to {command.name} with message size {header.message_size}")

    def _broken(self, message: str) -> ProtocolError:
        self.close()
        return ProtocolError(message)


def _unpack(layout: Layout, reply: bytes) -> dict[str, int]:
    if len(reply) < layout.size:
        raise ProtocolError(
            f"the server answered {layout.name} with {len(reply)} bytes: expected {layout.size}"
        )
    return layout.unpack(reply)


def _limit(capabilities: object, name: str, default: int, most: int) -> int:
    value = capabilities.get(name, default) if isinstance(capabilities, dict) else default
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ProtocolError(f"the server's capability {name} is {value!r}: expected a number")
    return min(value, most)


def _chunks(total: int, limit: int) -> Iterator[tuple[int, int]]:
    """(first, size) of the pieces of `total` bytes."""
    return ((first, min(limit, total - first)) for first in range(0, total, limit))


def _irq_chunks(fds: Sequence[int | None], limit: int) -> Iterator[tuple[int, Sequence[int | None]]]:
    """Runs of only descriptors or only None, none longer than `limit`."""
    first = 0
    while first < len(fds):
        last = first + 1
        while last < len(fds) and last - first < limit and (fds[last] is None) == (fds[first] is None):
            last += 1
        yield first, fds[first:last]
        first = last


def _io_eventfds(count: int, reply: bytes, fds: Sequence[int]) -> list[IoEventfd]:
    """Entries of the array that are ioeventfds, with duplicates of their (possibly shared) descriptors."""
    if count == 0:
        return []
    stride = (len(reply) - wire.REGION_IO_FDS.size) // count
    if stride < wire.SUB_REGION_IOEVENTFD.size:
        raise ProtocolError(f"{count} doorbells in {len(reply)} bytes")
    found: list[IoEventfd] = []
    try:
        for position in range(count):
            item = wire.SUB_REGION_IOEVENTFD.unpack(reply, wire.REGION_IO_FDS.size + position * stride)
            if item["type"] != wire.IO_FD_TYPE_IOEVENTFD:
                continue
            if item["fd_index"] >= len(fds):
                raise ProtocolError(f"doorbell {position} names descriptor {item['fd_index']} of {len(fds)}")
            matches = item["flags"] & wire.IO_EVENTFD_FLAG_DATAMATCH
            found.append(
                IoEventfd(
                    offset=item["offset"],
                    size_bytes=item["size"],
                    fd=os.dup(fds[item["fd_index"]]),
                    datamatch=item["datamatch"] if matches else None,
                )
            )
    except BaseException:
        close_fds(item.fd for item in found)
        raise
    return found
