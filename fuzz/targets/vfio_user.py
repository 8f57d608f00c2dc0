# SPDX-License-Identifier: Apache-2.0
"""Messages of a vfio-user client, well-formed or not, to the real session, dispatcher and device."""

# ruff: noqa: PLR0917 - the arguments are those of the operations

from __future__ import annotations

import os
from functools import cache

from fuzz.invariants import MEMORY_BYTES, Invariants, Memory, expected, make_device
from fuzz.operations import Input, Language, Operation, perform
from vdpa_net.errors import FramingError
from vdpa_net.transport.vfio_user.responder import Responder
from vdpa_net.transport.vfio_user.session import ServerSession, encode_version
from vdpa_net.wire import vfio_user as wire
from vdpa_net.wire.vfio_user import Command
from vdpa_net.wire.virtio_pci import COMMON_CFG

LANGUAGE = Language(
    Operation("raw", "HIIIBB", blob=True),
    Operation("version", "BHHBB", blob=True),
    Operation("dma_map", "BBIHBHB"),
    Operation("dma_unmap", "BIHBB"),
    Operation("query", "BBHI"),
    Operation("set_irqs", "BBBHHBBB", blob=True),
    Operation("read", "BBIH"),
    Operation("write", "BBIB", blob=True),
    Operation("write_multi", "BBIBQ"),
    Operation("reset", "B"),
    Operation("common", "BBQ"),
    Operation("memory", "IB", blob=True),
    Operation("connect", "B"),
)
"""
raw           command, size that the header names (0: the true one), flags, error, descriptors, payload
version       flags, major, minor, capabilities (0: none, 1: ours, 2: the bytes), bytes
dma_map       flags, file, first page, page in the file, pages, argsz, access
dma_unmap     flags, first page, pages, argsz, unmap flags
query         flags, which, index, argsz
set_irqs      flags, data and action, index, start, count, descriptors, file, bools
read, write   flags, region, offset, count or data
write_multi   flags, region, offset, count, data
reset         flags
common        flags, register of the common configuration by number, value
memory        offset in the shared memory, bytes
connect       the client leaves and another one comes; 1: it says VERSION at once

`flags` are those of the header, in the bits of FLAG_NO_REPLY.
"""

PAGE = 4096
BAR = 4
_COMMON = list(COMMON_CFG)
_QUERIES = (
    (Command.DEVICE_GET_INFO, wire.DEVICE_INFO),
    (Command.DEVICE_GET_REGION_INFO, wire.REGION_INFO),
    (Command.DEVICE_GET_REGION_IO_FDS, wire.REGION_IO_FDS),
    (Command.DEVICE_GET_IRQ_INFO, wire.IRQ_INFO),
)
_OURS = {"max_msg_fds": 16, "max_data_xfer_size": 1 << 20, "write_multiple": True}


class Target:
    """One device for all inputs; every input ends with its client gone."""

    def __init__(self) -> None:
        self.device = make_device("vdpa")
        self.invariants = Invariants(self.device)
        self.memory = Memory()
        self._next_id = 0
        self._connected = True
        names = ("raw", "version", "dma_map", "dma_unmap", "query", "set_irqs", "read", "write", "reset")
        self._handlers = {name: getattr(self, name) for name in (*names, "write_multi", "common", "connect")}
        self._handlers["memory"] = self.fill

    def run(self, source: Input) -> None:
        """One input."""
        self.memory.clear()
        self._greet(1)
        try:
            perform(LANGUAGE, self._handlers, source, self.invariants.hold)
        finally:
            self.device.detach_client()
        self.invariants.abandoned()

    def connect(self, greet: int) -> None:
        """A new client; the one before is gone."""
        self.device.detach_client()
        self.invariants.abandoned()
        self._greet(greet)

    def _greet(self, greet: int) -> None:
        self._session = ServerSession()
        self._responder = Responder(self._session, self.device, on_error=expected)
        self._connected = True
        if greet & 1:
            self.version(0, 0, 0, 1, b"")
            assert self._session.negotiated

    def send(
        self,
        command: int,
        payload: bytes,
        flags: int = 0,
        *,
        fds: list[int] | None = None,
        size: int = 0,
        error: int = 0,
    ) -> None:
        """One message, and what must be true of its reply."""
        if not self._connected:
            return
        self._next_id = self._next_id + 1 & 0xFFFF
        header = wire.HEADER.pack(
            message_id=self._next_id,
            command=command,
            message_size=size or wire.HEADER.size + len(payload),
            flags=flags,
            error=error,
        )
        was_negotiated = self._session.negotiated
        try:
            wanted = self._responder.payload_size(header)
            reply = self._responder.answer(header, payload[:wanted].ljust(wanted, b"\0"), fds or [])
        except FramingError:
            self._connected = False
            return
        if command != Command.VERSION:
            assert self._session.negotiated == was_negotiated, "only VERSION negotiates"
        assert (reply is None) == bool(flags & wire.FLAG_NO_REPLY), "a reply, unless none is wanted"
        if reply is not None:
            fields = wire.HEADER.unpack(reply.data)
            assert (fields["message_id"], fields["command"]) == (self._next_id, command)
            assert fields["message_size"] == len(reply.data)
            failed = bool(fields["flags"] & wire.FLAG_ERROR)
            assert fields["flags"] & wire.TYPE_MASK == wire.TYPE_REPLY
            assert failed == bool(fields["error"]), "an errno with every error, and with errors alone"
            assert not failed or len(reply.data) == wire.HEADER.size, "an error is a header and no more"
            assert failed or was_negotiated or command == Command.VERSION, "nothing is done before VERSION"
            assert len(reply.fds) <= wire.MAX_MSG_FDS

    def raw(self, command: int, size: int, flags: int, error: int, fds: int, payload: bytes) -> None:
        """Anything."""
        size = size % (1 << 16) if size else 0
        given = [self.memory.pick(number) for number in range(fds % 20)]
        self.send(command, payload, flags, fds=given, size=size, error=error)

    def version(self, flags: int, major: int, minor: int, kind: int, data: bytes) -> None:
        """VERSION."""
        ours = encode_version(major, minor, _OURS)
        head = wire.VERSION.pack(major=major, minor=minor)
        self.send(Command.VERSION, ours if kind == 1 else head + data * (kind == 2), flags & 0x10)

    def dma_map(
        self, flags: int, file: int, page: int, file_page: int, pages: int, argsz: int, access: int
    ) -> None:
        """DMA_MAP."""
        payload = wire.DMA_MAP.pack(
            argsz=argsz, flags=access, offset=file_page * PAGE, address=page * PAGE, size=pages * PAGE
        )
        fds = [] if file == 0xFF else [self.memory.pick(file)]
        self.send(Command.DMA_MAP, payload, flags & 0x10, fds=fds)

    def dma_unmap(self, flags: int, page: int, pages: int, argsz: int, how: int) -> None:
        """DMA_UNMAP."""
        payload = wire.DMA_UNMAP.pack(argsz=argsz, flags=how, address=page * PAGE, size=pages * PAGE)
        self.send(Command.DMA_UNMAP, payload, flags & 0x10)

    def query(self, flags: int, which: int, index: int, argsz: int) -> None:
        """One of the GET commands."""
        command, layout = _QUERIES[which % len(_QUERIES)]
        indexed = {"index": index} if "index" in {field.name for field in layout.fields} else {}
        self.send(command, layout.pack(argsz=argsz, **indexed), flags & 0x10)

    def set_irqs(
        self, flags: int, what: int, index: int, start: int, count: int, fds: int, file: int, bools: bytes
    ) -> None:
        """DEVICE_SET_IRQS."""
        payload = wire.IRQ_SET.pack(argsz=20 + len(bools), flags=what, index=index, start=start, count=count)
        given = [self.memory.eventfd if file else self.memory.null] * (fds % 20)
        self.send(Command.DEVICE_SET_IRQS, payload + bools, flags & 0x10, fds=given)

    def read(self, flags: int, region: int, offset: int, count: int) -> None:
        """REGION_READ."""
        payload = wire.REGION_ACCESS.pack(offset=offset, region=region, count=count)
        self.send(Command.REGION_READ, payload, flags & 0x10)

    def write(self, flags: int, region: int, offset: int, data: bytes) -> None:
        """REGION_WRITE."""
        payload = wire.REGION_ACCESS.pack(offset=offset, region=region, count=len(data)) + data
        self.send(Command.REGION_WRITE, payload, flags & 0x10)

    def write_multi(self, flags: int, region: int, offset: int, count: int, value: int) -> None:
        """REGION_WRITE_MULTI of two equal writes."""
        data = value.to_bytes(8, "little")
        one = wire.WRITE_ONE.pack(offset=offset, region=region, count=count, data=data)
        self.send(Command.REGION_WRITE_MULTI, wire.WRITE_MULTI.pack(wr_cnt=2) + one * 2, flags & 0x10)

    def reset(self, flags: int) -> None:
        """DEVICE_RESET."""
        self.send(Command.DEVICE_RESET, b"", flags & 0x10)
        if self._connected and self._session.negotiated:
            self.invariants.fresh()

    def common(self, flags: int, number: int, value: int) -> None:
        """A write of a register of the common configuration."""
        register = _COMMON[number % len(_COMMON)]
        data = (value & (1 << 8 * register.width) - 1).to_bytes(register.width, "little")
        self.write(flags, BAR, register.offset, data)

    def fill(self, offset: int, data: bytes) -> None:
        """Guest memory, as its CPU writes it."""
        os.pwrite(self.memory.ram, data, offset % (MEMORY_BYTES - len(data)))


@cache
def _target() -> Target:
    return Target()


def run(data: bytes) -> None:
    """One input."""
    _target().run(Input(data))
