# SPDX-License-Identifier: Apache-2.0
"""Requests of a vfio-user client, decoded: what `decode` makes of bytes and `dispatch` acts on.

Values are checked for syntax only. Numbers of regions, interrupts and addresses may still be nonsense.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import NamedTuple

from vdpa_net.record import Record
from vdpa_net.wire import vfio_user as wire


class Header(NamedTuple):
    """The header of a message, as it came."""

    message_id: int
    command: int
    message_size: int
    flags: int
    error: int

    @property
    def type(self) -> int:
        """wire.TYPE_COMMAND or wire.TYPE_REPLY (or what the peer made up)."""
        return self.flags & wire.TYPE_MASK

    @property
    def expects_reply(self) -> bool:
        """False for a posted command (No_reply)."""
        return not self.flags & wire.FLAG_NO_REPLY


class Version(NamedTuple):
    """VERSION: what the client proposes; `capabilities` as in its JSON."""

    major: int
    minor: int
    capabilities: Mapping[str, object]


class DmaMap(NamedTuple):
    """DMA_MAP; `fd` is None for memory that can't be mapped."""

    address: int
    size: int
    offset: int
    readable: bool
    writable: bool
    fd: int | None


class DmaUnmap(NamedTuple):
    """DMA_UNMAP; `payload` is echoed in the reply. `everything`: VFIO_DMA_UNMAP_FLAG_ALL."""

    address: int
    size: int
    everything: bool
    payload: bytes


class GetInfo(NamedTuple):
    """DEVICE_GET_INFO."""


class GetRegionInfo(Record):
    """DEVICE_GET_REGION_INFO."""

    index: int


class GetRegionIoFds(Record):
    """DEVICE_GET_REGION_IO_FDS; `argsz` is the largest reply payload in bytes that the client takes."""

    index: int
    argsz: int


class GetIrqInfo(Record):
    """DEVICE_GET_IRQ_INFO."""

    index: int


class IrqAction(Enum):
    """What a SET_IRQS is about."""

    MASK = wire.IrqSetFlag.ACTION_MASK
    UNMASK = wire.IrqSetFlag.ACTION_UNMASK
    TRIGGER = wire.IrqSetFlag.ACTION_TRIGGER


class IrqData(Enum):
    """What comes with a SET_IRQS."""

    NONE = wire.IrqSetFlag.DATA_NONE
    BOOL = wire.IrqSetFlag.DATA_BOOL
    EVENTFD = wire.IrqSetFlag.DATA_EVENTFD


class SetIrqs(Record):
    """DEVICE_SET_IRQS for interrupts [start, start + count) of a type.

    `bools` has `count` entries with IrqData.BOOL. `fds` has `count` entries or (unbind) none with EVENTFD.
    """

    index: int
    start: int
    count: int
    data: IrqData
    action: IrqAction
    bools: tuple[bool, ...] = ()
    fds: tuple[int, ...] = ()

    @property
    def disables_all(self) -> bool:
        """The special case of the specification: DATA_NONE with start and count 0.

        Of MASK and UNMASK it says nothing different, but they can't mean to disable.
        """
        nothing = self.data is IrqData.NONE and not self.start and not self.count
        return nothing and self.action is IrqAction.TRIGGER

    @property
    def binds_trigger(self) -> bool:
        """An eventfd, or none any more, to be signalled when the interrupt triggers."""
        return self.data is IrqData.EVENTFD and self.action is IrqAction.TRIGGER

    @property
    def flags(self) -> tuple[bool, ...]:
        """Which of the interrupts the action is for: what BOOL says, or (NONE) all of them."""
        return self.bools if self.data is IrqData.BOOL else (True,) * self.count


class RegionRead(Record):
    """REGION_READ."""

    region: int
    offset: int
    count: int


class RegionWrite(NamedTuple):
    """REGION_WRITE, or one write of a REGION_WRITE_MULTI."""

    region: int
    offset: int
    data: bytes


class RegionWriteMulti(NamedTuple):
    """REGION_WRITE_MULTI."""

    writes: tuple[RegionWrite, ...]


class Reset(NamedTuple):
    """DEVICE_RESET."""


Body = (
    Version
    | DmaMap
    | DmaUnmap
    | GetInfo
    | GetRegionInfo
    | GetRegionIoFds
    | GetIrqInfo
    | SetIrqs
    | RegionRead
    | RegionWrite
    | RegionWriteMulti
    | Reset
)


class Request(NamedTuple):
    """One message of a client."""

    header: Header
    body: Body
