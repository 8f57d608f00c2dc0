# SPDX-License-Identifier: Apache-2.0
"""vfio-user: the message table (docs/interop/vfio-user.rst of QEMU, "Protocol Specification", version 0.0).

`COMMANDS` has one descriptor per command: the layouts of request and reply, how many bytes and how many file
descriptors a request may carry. Whatever checks messages does it from this table. Constants of VFIO keep the
names of <linux/vfio.h> without their prefix.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from enum import IntEnum, IntFlag

from vdpa_net.record import Record
from vdpa_net.wire.layout import Field, Layout

VERSION_MAJOR = 0
VERSION_MINOR = 0

MAX_MSG_FDS = 16
MAX_DATA_XFER_SIZE_BYTES = 1 << 20
MAX_DMA_MAPS = 65535
PGSIZES = 4096
"""What we announce. QEMU's client refuses max_msg_fds above 16 and max_dma_maps above 65535."""

DEFAULT_MAX_MSG_FDS = 1
"""What a peer can take that does not say (clause "VFIO_USER_VERSION")."""

MAX_MSIX_VECTORS = 2048
MAX_MULTI_WRITES = 200
MAX_VERSION_DATA_BYTES = 4096


class Command(IntEnum):
    """Command numbers (clause "Commands"; 14 is of an earlier version of the protocol)."""

    VERSION = 1
    DMA_MAP = 2
    DMA_UNMAP = 3
    DEVICE_GET_INFO = 4
    DEVICE_GET_REGION_INFO = 5
    DEVICE_GET_REGION_IO_FDS = 6
    DEVICE_GET_IRQ_INFO = 7
    DEVICE_SET_IRQS = 8
    REGION_READ = 9
    REGION_WRITE = 10
    DMA_READ = 11
    DMA_WRITE = 12
    DEVICE_RESET = 13
    DIRTY_PAGES = 14
    REGION_WRITE_MULTI = 15
    DEVICE_FEATURE = 16
    MIG_DATA_READ = 17
    MIG_DATA_WRITE = 18


TYPE_MASK = 0xF
TYPE_COMMAND = 0x0
TYPE_REPLY = 0x1
FLAG_NO_REPLY = 0x10
FLAG_ERROR = 0x20


class DmaMapFlag(IntFlag):
    """Flags of DMA_MAP."""

    READ = 1 << 0
    WRITE = 1 << 1


class DmaUnmapFlag(IntFlag):
    """Flags of DMA_UNMAP. The specification has none; QEMU sends VFIO's ALL with address and size 0."""

    ALL = 1 << 1


class DeviceFlag(IntFlag):
    """Flags of DEVICE_GET_INFO."""

    RESET = 1 << 0
    PCI = 1 << 1


class RegionFlag(IntFlag):
    """Flags of DEVICE_GET_REGION_INFO."""

    READ = 1 << 0
    WRITE = 1 << 1
    MMAP = 1 << 2
    CAPS = 1 << 3


class IrqInfoFlag(IntFlag):
    """Flags of DEVICE_GET_IRQ_INFO."""

    EVENTFD = 1 << 0
    MASKABLE = 1 << 1
    AUTOMASKED = 1 << 2
    NORESIZE = 1 << 3


class IrqSetFlag(IntFlag):
    """Flags of DEVICE_SET_IRQS: exactly one DATA and one ACTION bit."""

    DATA_NONE = 1 << 0
    DATA_BOOL = 1 << 1
    DATA_EVENTFD = 1 << 2
    ACTION_MASK = 1 << 3
    ACTION_UNMASK = 1 << 4
    ACTION_TRIGGER = 1 << 5


IRQ_DATA_MASK = IrqSetFlag.DATA_NONE | IrqSetFlag.DATA_BOOL | IrqSetFlag.DATA_EVENTFD
IRQ_ACTION_MASK = IrqSetFlag.ACTION_MASK | IrqSetFlag.ACTION_UNMASK | IrqSetFlag.ACTION_TRIGGER


class RegionIndex(IntEnum):
    """Regions of a PCI device; `len(RegionIndex)` is VFIO_PCI_NUM_REGIONS."""

    BAR0 = 0
    BAR1 = 1
    BAR2 = 2
    BAR3 = 3
    BAR4 = 4
    BAR5 = 5
    ROM = 6
    CONFIG = 7
    VGA = 8


class IrqIndex(IntEnum):
    """Interrupt types of a PCI device; `len(IrqIndex)` is VFIO_PCI_NUM_IRQS."""

    INTX = 0
    MSI = 1
    MSIX = 2
    ERR = 3
    REQ = 4


IO_FD_TYPE_IOEVENTFD = 0
IO_EVENTFD_FLAG_DATAMATCH = 1

HEADER = Layout(
    "vfio_user_header",
    Field("message_id", 2),
    Field("command", 2),
    Field("message_size", 4),
    Field("flags", 4),
    Field("error", 4),
)
VERSION = Layout("vfio_user_version", Field("major", 2), Field("minor", 2))
DMA_MAP = Layout(
    "vfio_user_dma_map",
    Field("argsz", 4),
    Field("flags", 4),
    Field("offset", 8),
    Field("address", 8),
    Field("size", 8),
)
DMA_UNMAP = Layout(
    "vfio_user_dma_unmap", Field("argsz", 4), Field("flags", 4), Field("address", 8), Field("size", 8)
)
DEVICE_INFO = Layout(
    "vfio_user_device_info",
    Field("argsz", 4),
    Field("flags", 4),
    Field("num_regions", 4),
    Field("num_irqs", 4),
)
REGION_INFO = Layout(
    "vfio_region_info",
    Field("argsz", 4),
    Field("flags", 4),
    Field("index", 4),
    Field("cap_offset", 4),
    Field("size", 8),
    Field("offset", 8),
)
REGION_IO_FDS = Layout(
    "vfio_user_region_io_fds", Field("argsz", 4), Field("flags", 4), Field("index", 4), Field("count", 4)
)
SUB_REGION_IOEVENTFD = Layout(
    "vfio_user_sub_region_ioeventfd",
    Field("offset", 8),
    Field("size", 8),
    Field("fd_index", 4),
    Field("type", 4),
    Field("flags", 4),
    Field("padding", 4),
    Field("datamatch", 8),
)
IRQ_INFO = Layout("vfio_irq_info", Field("argsz", 4), Field("flags", 4), Field("index", 4), Field("count", 4))
IRQ_SET = Layout(
    "vfio_irq_set",
    Field("argsz", 4),
    Field("flags", 4),
    Field("index", 4),
    Field("start", 4),
    Field("count", 4),
)
REGION_ACCESS = Layout("vfio_user_region_access", Field("offset", 8), Field("region", 4), Field("count", 4))
WRITE_MULTI = Layout("vfio_user_region_write_multi", Field("wr_cnt", 8))
WRITE_ONE = Layout(
    "vfio_user_region_write_one",
    Field("offset", 8),
    Field("region", 4),
    Field("count", 4),
    Field("data", 8, blob=True),
)
EMPTY = Layout("empty")


def compiled(layout: Layout) -> struct.Struct:
    """The layout as a Struct, for structures that every doorbell passes through."""
    codes = {1: "B", 2: "H", 4: "I", 8: "Q"}
    return struct.Struct("<" + "".join(f"{f.width}s" if f.blob else codes[f.width] for f in layout.fields))


class CommandSpec(Record):
    """What a request looks like: a fixed structure, up to `max_extra_bytes` behind it, and descriptors.

    `reply` is the fixed structure of the reply payload. `argsz_min_bytes` is the smallest value that the
    request's argsz field may have (0: the request has no such field).
    """

    code: Command
    request: Layout
    reply: Layout
    max_extra_bytes: int = 0
    max_fds: int = 0
    argsz_min_bytes: int = 0

    @property
    def name(self) -> str:
        """Name without the VFIO_USER_ prefix."""
        return self.code.name

    @property
    def min_payload_bytes(self) -> int:
        """Smallest payload of a request."""
        return self.request.size

    @property
    def max_payload_bytes(self) -> int:
        """Largest payload of a request."""
        return self.request.size + self.max_extra_bytes


def _queried(code: Command, layout: Layout) -> CommandSpec:
    return CommandSpec(code, layout, layout, argsz_min_bytes=layout.size)


_SPECS = (
    CommandSpec(Command.VERSION, VERSION, VERSION, max_extra_bytes=MAX_VERSION_DATA_BYTES),
    CommandSpec(Command.DMA_MAP, DMA_MAP, EMPTY, max_fds=1, argsz_min_bytes=DMA_MAP.size),
    _queried(Command.DMA_UNMAP, DMA_UNMAP),
    _queried(Command.DEVICE_GET_INFO, DEVICE_INFO),
    _queried(Command.DEVICE_GET_REGION_INFO, REGION_INFO),
    _queried(Command.DEVICE_GET_REGION_IO_FDS, REGION_IO_FDS),
    _queried(Command.DEVICE_GET_IRQ_INFO, IRQ_INFO),
    CommandSpec(
        Command.DEVICE_SET_IRQS,
        IRQ_SET,
        EMPTY,
        max_extra_bytes=MAX_MSIX_VECTORS,
        max_fds=MAX_MSG_FDS,
        argsz_min_bytes=IRQ_SET.size,
    ),
    CommandSpec(Command.REGION_READ, REGION_ACCESS, REGION_ACCESS),
    CommandSpec(Command.REGION_WRITE, REGION_ACCESS, REGION_ACCESS, max_extra_bytes=MAX_DATA_XFER_SIZE_BYTES),
    CommandSpec(Command.DEVICE_RESET, EMPTY, EMPTY),
    CommandSpec(
        Command.REGION_WRITE_MULTI,
        WRITE_MULTI,
        WRITE_MULTI,
        max_extra_bytes=MAX_MULTI_WRITES * WRITE_ONE.size,
    ),
)

COMMANDS: Mapping[int, CommandSpec] = {spec.code: spec for spec in _SPECS}
"""Commands that a client may send us; the others are answered with ENOTSUP."""

_MIGRATION = "the device's state moves through its LM registers, not through the VMM's migration"
REFUSED: Mapping[int, str] = {
    Command.DMA_READ: "a command of the server, not of the client",
    Command.DMA_WRITE: "a command of the server, not of the client",
    Command.DIRTY_PAGES: f"{_MIGRATION}, and the dirty log is the LM registers', too",
    Command.DEVICE_FEATURE: f"the device has no VFIO features; {_MIGRATION}",
    Command.MIG_DATA_READ: _MIGRATION,
    Command.MIG_DATA_WRITE: _MIGRATION,
}
"""Commands of the specification that are refused, and why."""

MAX_MESSAGE_BYTES = HEADER.size + max(spec.max_payload_bytes for spec in _SPECS)
"""Largest message; the sender of a larger one can't be followed."""


def command_name(code: int) -> str:
    """Name of a command for messages to people."""
    try:
        return Command(code).name
    except ValueError:
        return f"command {code}"
