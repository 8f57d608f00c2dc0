# SPDX-License-Identifier: Apache-2.0
"""What vfio-user requests mean to a PCI function: the semantic side of the server."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from vdpa_net.errors import AccessError, ProtocolError
from vdpa_net.transport.vfio_user import requests as rq
from vdpa_net.transport.vfio_user.session import ServerSession
from vdpa_net.wire import vfio_user as wire
from vdpa_net.wire.vfio_user import IrqIndex, RegionIndex

_ACCESS = wire.compiled(wire.REGION_ACCESS)


class RegionInfo(Protocol):
    """A region: its size in bytes and what a client may do with it."""

    @property
    def size(self) -> int: ...
    @property
    def readable(self) -> bool: ...
    @property
    def writable(self) -> bool: ...


class Doorbell(Protocol):
    """A register whose writes may be replaced by a signal on an eventfd (borrowed)."""

    @property
    def region(self) -> int: ...
    @property
    def offset(self) -> int: ...
    @property
    def size_bytes(self) -> int: ...
    @property
    def queue(self) -> int: ...
    @property
    def fd(self) -> int: ...


class PciFunction(Protocol):
    """The device behind a server: what `device.NetDevice` is structurally.

    Calls come from one thread. File descriptors are lent for the call: a function that needs one for longer
    duplicates it. Errors of the package are answered with their errno.
    """

    @property
    def num_vectors(self) -> int:
        """MSI-X vectors."""

    def region_info(self, index: int) -> RegionInfo | None:
        """The region with VFIO index 0 to 8; None if there is none."""

    def region_read(self, index: int, offset: int, count: int) -> bytes:
        """Exactly `count` bytes."""

    def region_write(self, index: int, offset: int, data: bytes) -> None:
        """Write bytes; on return the device has acted on them."""

    def dma_map(
        self, iova: int, size: int, fd: int | None, offset: int, *, readable: bool, writable: bool
    ) -> None:
        """Map a range of a file, or note that there is memory that can't be reached (no fd).

        Raises DmaError(EEXIST) when it overlaps a map, DmaError(ENOSPC) when there are too many.
        """

    def dma_unmap_within(self, iova: int, size: int) -> int:
        """Remove the maps inside of the range; on return nothing touches them.

        Raises DmaError when a map is only partly inside.
        """

    def dma_unmap_all(self) -> int:
        """Remove all maps."""

    def map_space(self) -> object | None:
        """The data plane's space (`_native.DmaSpace`) that `dma_map` and `dma_unmap_within` change and do
        nothing besides; None: they have to be called."""

    def set_irqs(self, start: int, fds: Sequence[int | None]) -> None:
        """Bind MSI-X vectors to eventfds; None unbinds."""

    def trigger_irqs(self, start: int, flags: Sequence[bool]) -> None:
        """Raise vectors now."""

    def mask_irqs(self, start: int, flags: Sequence[bool], *, masked: bool) -> None:
        """Mask or unmask vectors; what is due on a masked one is raised when it is unmasked."""

    def notify_mask(self, start: int, fds: Sequence[int | None], *, masked: bool) -> None:
        """Signal eventfds when vectors become masked (or unmasked); None unbinds."""

    def disable_irqs(self) -> None:
        """Unbind and unmask all vectors."""

    def doorbells(self) -> Sequence[Doorbell]:
        """The doorbells that may be signalled instead of written."""

    def queue_bell(self, queue: int) -> object | None:
        """What rings a queue's doorbell on the thread that hears of it (`_native.QueueBell`); None: only its
        eventfd does."""

    def on_watched(self, tell: Callable[[bool], None]) -> Callable[[], None]:
        """Tell now, and whenever it changes, whether each register access has to be seen: then doorbells must
        be written. `tell` must be quick, and may come from any thread. Returns a function that ends it."""

    def reset(self) -> None:
        """Reset the device."""

    def detach_client(self) -> None:
        """The client is gone: release all that was its."""


class Answer(NamedTuple):
    """Payload of a reply and the descriptors that go with it."""

    payload: bytes = b""
    fds: tuple[int, ...] = ()


class Dispatcher:
    """Acts on the requests of one client."""

    def __init__(self, session: ServerSession, function: PciFunction) -> None:
        self._session = session
        self._function = function

    def handle(self, body: rq.Body) -> Answer:  # noqa: PLR0911 - a return for each kind of request
        """Act on a request. Raises an error of the package, or whatever the function raises."""
        match body:
            case rq.RegionWrite():
                return self._region_write(body)
            case rq.RegionRead():
                return self._region_read(body)
            case rq.RegionWriteMulti(writes):
                for write in writes:
                    self._region_write(write)
                return Answer(wire.WRITE_MULTI.pack(wr_cnt=len(writes)))
            case rq.DmaMap():
                return self._dma_map(body)
            case rq.DmaUnmap():
                return self._dma_unmap(body)
            case rq.SetIrqs():
                return self._set_irqs(body)
            case rq.Reset():
                self._function.reset()
                return Answer()
            case _:
                return self._query(body)

    def _query(
        self, body: rq.Version | rq.GetInfo | rq.GetRegionInfo | rq.GetRegionIoFds | rq.GetIrqInfo
    ) -> Answer:
        match body:
            case rq.Version():
                return Answer(self._session.version_reply(body))
            case rq.GetInfo():
                return _device_info()
            case rq.GetRegionInfo(index):
                return self._region_info(index)
            case rq.GetRegionIoFds(index, argsz):
                return self._region_io_fds(index, argsz)
            case rq.GetIrqInfo(index):
                return self._irq_info(index)

    def _region_read(self, body: rq.RegionRead) -> Answer:
        _check_region(body.region)
        data = self._function.region_read(body.region, body.offset, body.count)
        if len(data) != body.count:
            raise AccessError(f"the device read {len(data)} bytes of {body.count}", errno=errno.EIO)
        return Answer(_ACCESS.pack(body.offset, body.region, body.count) + data)

    def _region_write(self, body: rq.RegionWrite) -> Answer:
        _check_region(body.region)
        self._function.region_write(body.region, body.offset, body.data)
        return Answer(_ACCESS.pack(body.offset, body.region, len(body.data)))

    def _dma_map(self, body: rq.DmaMap) -> Answer:
        self._function.dma_map(
            body.address, body.size, body.fd, body.offset, readable=body.readable, writable=body.writable
        )
        return Answer()

    def _dma_unmap(self, body: rq.DmaUnmap) -> Answer:
        """Remove the maps inside of the range.

        The specification wants exactly one map. QEMU behaves as Linux' VFIO allows: with a vIOMMU it unmaps
        large ranges with many maps in them, or none, and takes an error for a failure of the device.
        """
        if body.everything:
            self._function.dma_unmap_all()
        else:
            self._function.dma_unmap_within(body.address, body.size)
        return Answer(body.payload)

    def _region_info(self, index: int) -> Answer:
        _check_region(index)
        info = self._function.region_info(index)
        if info is None:
            return Answer(wire.REGION_INFO.pack(argsz=wire.REGION_INFO.size, index=index))
        flags = wire.RegionFlag.READ * info.readable | wire.RegionFlag.WRITE * info.writable
        return Answer(
            wire.REGION_INFO.pack(argsz=wire.REGION_INFO.size, flags=flags, index=index, size=info.size)
        )

    def _region_io_fds(self, index: int, argsz: int) -> Answer:
        """Doorbells of a region as ioeventfds, as many as the client takes descriptors in one message.

        The others are written as registers. Clause "Message sizes": an argsz that is too small gets the
        needed one and no array.
        """
        _check_region(index)
        doorbells = [bell for bell in self._function.doorbells() if bell.region == index]
        doorbells = doorbells[: self._session.client_max_msg_fds]
        needed = wire.REGION_IO_FDS.size + len(doorbells) * wire.SUB_REGION_IOEVENTFD.size
        if argsz < needed:
            return Answer(wire.REGION_IO_FDS.pack(argsz=needed, index=index))
        head = wire.REGION_IO_FDS.pack(argsz=needed, index=index, count=len(doorbells))
        subs = (
            wire.SUB_REGION_IOEVENTFD.pack(
                offset=bell.offset, size=bell.size_bytes, fd_index=position, type=wire.IO_FD_TYPE_IOEVENTFD
            )
            for position, bell in enumerate(doorbells)
        )
        return Answer(head + b"".join(subs), tuple(bell.fd for bell in doorbells))

    def _irq_count(self, index: int) -> int:
        """Interrupts of a type. QEMU warns unless ERR has one, and leaves REQ alone if there is none."""
        if index == IrqIndex.MSIX:
            return self._function.num_vectors
        if index == IrqIndex.ERR:
            return 1
        if 0 <= index < len(IrqIndex):
            return 0
        raise ProtocolError(f"interrupt index {index}: expected 0 to {len(IrqIndex) - 1}")

    def _irq_info(self, index: int) -> Answer:
        count = self._irq_count(index)
        flags = wire.IrqInfoFlag.EVENTFD if count else 0
        if index == IrqIndex.MSIX:
            flags |= wire.IrqInfoFlag.MASKABLE
        return Answer(wire.IRQ_INFO.pack(argsz=wire.IRQ_INFO.size, flags=flags, index=index, count=count))

    def _set_irqs(self, body: rq.SetIrqs) -> Answer:
        available = self._irq_count(body.index)
        if not body.disables_all and (not body.count or body.start + body.count > available):
            raise ProtocolError(
                f"DEVICE_SET_IRQS of {body.count} interrupts from {body.start} of index {body.index}:"
                f" expected some of {available}"
            )
        if body.index == IrqIndex.MSIX:
            self._set_vectors(body)
        elif not body.disables_all and not body.binds_trigger:
            raise ProtocolError(
                f"DEVICE_SET_IRQS {body.data.name} {body.action.name}: interrupt index {body.index} takes an"
                " eventfd to trigger, nothing else",
                errno=errno.ENOTSUP,
            )
        # ERR: the device has no error to report in this way, so an eventfd for it is never signalled.
        return Answer()

    def _set_vectors(self, body: rq.SetIrqs) -> None:
        unbind: Sequence[int | None] = [None] * body.count
        trigger = body.action is rq.IrqAction.TRIGGER
        masked = body.action is rq.IrqAction.MASK
        if body.disables_all:
            self._function.disable_irqs()
        elif body.data is rq.IrqData.EVENTFD:
            if trigger:
                self._function.set_irqs(body.start, body.fds or unbind)
            else:
                self._function.notify_mask(body.start, body.fds or unbind, masked=masked)
        elif trigger:
            self._function.trigger_irqs(body.start, body.flags)
        else:
            self._function.mask_irqs(body.start, body.flags, masked=masked)


def _device_info() -> Answer:
    return Answer(
        wire.DEVICE_INFO.pack(
            argsz=wire.DEVICE_INFO.size,
            flags=wire.DeviceFlag.RESET | wire.DeviceFlag.PCI,
            num_regions=len(RegionIndex),
            num_irqs=len(IrqIndex),
        )
    )


def _check_region(index: int) -> None:
    if not 0 <= index < len(RegionIndex):
        raise ProtocolError(f"region index {index}: expected 0 to {len(RegionIndex) - 1}")
