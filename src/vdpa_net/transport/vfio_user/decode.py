# SPDX-License-Identifier: Apache-2.0
"""Bytes of a vfio-user client to requests: the syntax check.

`check_shape` applies the message table, the same way to every command. What is left for a decoder is what
fields say about each other. Nothing here knows a device.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Mapping, Sequence

from vdpa_net.errors import FramingError, ProtocolError
from vdpa_net.transport.vfio_user import requests as rq
from vdpa_net.wire import vfio_user as wire
from vdpa_net.wire.vfio_user import Command

_HEADER = wire.compiled(wire.HEADER)
_ACCESS = wire.compiled(wire.REGION_ACCESS)
_ADDRESS_SPACE_BYTES = 1 << 64
# Plain numbers: the complement of an IntFlag has no unknown bits.
_DMA_READ, _DMA_WRITE = int(wire.DmaMapFlag.READ), int(wire.DmaMapFlag.WRITE)
_DMA_MAP_FLAGS = _DMA_READ | _DMA_WRITE
_DMA_UNMAP_FLAGS = int(wire.DmaUnmapFlag.ALL)
_IRQ_SET_FLAGS = int(wire.IRQ_DATA_MASK | wire.IRQ_ACTION_MASK)


def decode_header(data: bytes) -> rq.Header:
    """The header of a message. Raises FramingError when what follows it can't be told."""
    if len(data) != wire.HEADER.size:
        raise FramingError(f"a header has {wire.HEADER.size} bytes, got {len(data)}")
    header = rq.Header(*_HEADER.unpack(data))
    if not wire.HEADER.size <= header.message_size <= wire.MAX_MESSAGE_BYTES:
        raise FramingError(
            f"message size {header.message_size} of {wire.command_name(header.command)}: expected"
            f' {wire.HEADER.size} to {wire.MAX_MESSAGE_BYTES} bytes (vfio-user, "Header")'
        )
    if header.type not in (wire.TYPE_COMMAND, wire.TYPE_REPLY):
        raise FramingError(
            f'message type {header.type}: expected command (0) or reply (1) (vfio-user, "Header")'
        )
    return header


def check_shape(header: rq.Header, payload: bytes, fds: Sequence[int]) -> wire.CommandSpec:
    """Check size and descriptors of a command against the message table. Raises ProtocolError."""
    spec = wire.COMMANDS.get(header.command)
    if spec is None:
        name = wire.command_name(header.command)
        reason = wire.REFUSED.get(header.command, "no such command")
        raise ProtocolError(f'{name} is refused: {reason} (vfio-user, "Commands")', errno=errno.ENOTSUP)
    if not spec.min_payload_bytes <= len(payload) <= spec.max_payload_bytes:
        raise ProtocolError(
            f"{spec.name} with a payload of {len(payload)} bytes: expected"
            f" {spec.min_payload_bytes} to {spec.max_payload_bytes}"
        )
    if len(fds) > spec.max_fds:
        raise ProtocolError(f"{spec.name} with {len(fds)} file descriptors: expected at most {spec.max_fds}")
    if spec.argsz_min_bytes:
        argsz = int.from_bytes(payload[:4], "little")
        if argsz < spec.argsz_min_bytes:
            raise ProtocolError(
                f"{spec.name} with argsz {argsz}: expected at least {spec.argsz_min_bytes}"
                ' (vfio-user, "Message sizes")'
            )
    return spec


def decode(header: rq.Header, payload: bytes, fds: Sequence[int]) -> rq.Body:
    """The body of a command. Raises ProtocolError with the errno to answer."""
    spec = check_shape(header, payload, fds)
    return _DECODERS[spec.code](payload, fds)


def _version(payload: bytes, _fds: Sequence[int]) -> rq.Body:
    fields = wire.VERSION.unpack(payload)
    return rq.Version(fields["major"], fields["minor"], decode_capabilities(payload[wire.VERSION.size :]))


def decode_capabilities(data: bytes) -> Mapping[str, object]:
    """Capabilities of a VERSION message's data; it may be left out. Raises ProtocolError.

    Clause: "VFIO_USER_VERSION", a JSON object with terminating NUL.
    """
    if not data:
        return {}
    if data[-1]:
        raise ProtocolError(f"version data ends with byte {data[-1]:#x}: expected a terminating NUL")
    try:
        document = json.loads(data.rstrip(b"\0").decode())
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"version data is not JSON: {error}") from error
    capabilities = document.get("capabilities", {}) if isinstance(document, dict) else None
    if not isinstance(capabilities, dict):
        raise ProtocolError("version data: expected a JSON object with an object 'capabilities'")
    return capabilities


def _dma_map(payload: bytes, fds: Sequence[int]) -> rq.Body:
    fields = wire.DMA_MAP.unpack(payload)
    flags = fields["flags"]
    if not flags or flags & ~_DMA_MAP_FLAGS:
        raise ProtocolError(f"DMA_MAP flags {flags:#x}: expected readable (1), writeable (2) or both")
    _check_range("DMA_MAP", fields["address"], fields["size"])
    return rq.DmaMap(
        address=fields["address"],
        size=fields["size"],
        offset=fields["offset"],
        readable=bool(flags & _DMA_READ),
        writable=bool(flags & _DMA_WRITE),
        fd=fds[0] if fds else None,
    )


def _dma_unmap(payload: bytes, _fds: Sequence[int]) -> rq.Body:
    fields = wire.DMA_UNMAP.unpack(payload)
    address, size, flags = fields["address"], fields["size"], fields["flags"]
    if flags & ~_DMA_UNMAP_FLAGS:
        raise ProtocolError(f"DMA_UNMAP flags {flags:#x}: expected 0 or ALL (2)")
    everything = bool(flags)
    if not everything:
        _check_range("DMA_UNMAP", address, size)
    elif address or size:
        raise ProtocolError(
            f"DMA_UNMAP of all with address {address:#x} and size {size:#x}: expected 0 and 0"
        )
    return rq.DmaUnmap(address, size, everything, payload)


def _check_range(name: str, address: int, size: int) -> None:
    if not size or address + size > _ADDRESS_SPACE_BYTES:
        raise ProtocolError(f"{name} of address {address:#x} and size {size:#x}: empty or beyond 2^64")


def _get_info(_payload: bytes, _fds: Sequence[int]) -> rq.Body:
    return rq.GetInfo()


def _get_region_info(payload: bytes, _fds: Sequence[int]) -> rq.Body:
    return rq.GetRegionInfo(wire.REGION_INFO.unpack(payload)["index"])


def _get_region_io_fds(payload: bytes, _fds: Sequence[int]) -> rq.Body:
    fields = wire.REGION_IO_FDS.unpack(payload)
    if fields["flags"] or fields["count"]:
        raise ProtocolError(
            f"DEVICE_GET_REGION_IO_FDS with flags {fields['flags']:#x} and count {fields['count']}:"
            " expected 0 and 0"
        )
    return rq.GetRegionIoFds(fields["index"], fields["argsz"])


def _get_irq_info(payload: bytes, _fds: Sequence[int]) -> rq.Body:
    return rq.GetIrqInfo(wire.IRQ_INFO.unpack(payload)["index"])


def _set_irqs(payload: bytes, fds: Sequence[int]) -> rq.Body:
    fields = wire.IRQ_SET.unpack(payload)
    count = fields["count"]
    extra = payload[wire.IRQ_SET.size :]
    data, action = _irq_flags(fields["flags"])
    expected_extra = count if data is rq.IrqData.BOOL else 0
    if len(extra) != expected_extra:
        raise ProtocolError(f"DEVICE_SET_IRQS with {len(extra)} bytes of data: expected {expected_extra}")
    allowed_fds = (0, count) if data is rq.IrqData.EVENTFD else (0,)
    if len(fds) not in allowed_fds:
        raise ProtocolError(
            f"DEVICE_SET_IRQS of {count} with {len(fds)} file descriptors: expected {allowed_fds}"
        )
    return rq.SetIrqs(
        index=fields["index"],
        start=fields["start"],
        count=count,
        data=data,
        action=action,
        bools=tuple(map(bool, extra)),
        fds=tuple(fds),
    )


def _irq_flags(flags: int) -> tuple[rq.IrqData, rq.IrqAction]:
    """Exactly one bit of each set (clause "VFIO_USER_DEVICE_SET_IRQS": "mutually exclusive")."""
    try:
        data = rq.IrqData(wire.IrqSetFlag(flags & wire.IRQ_DATA_MASK))
        action = rq.IrqAction(wire.IrqSetFlag(flags & wire.IRQ_ACTION_MASK))
    except ValueError:
        raise ProtocolError(
            f"DEVICE_SET_IRQS flags {flags:#x}: expected one DATA and one ACTION bit"
        ) from None
    if flags & ~_IRQ_SET_FLAGS:
        raise ProtocolError(f"DEVICE_SET_IRQS flags {flags:#x}: unknown bits")
    return data, action


def _region_read(payload: bytes, _fds: Sequence[int]) -> rq.Body:
    offset, region, count = _ACCESS.unpack(payload)
    if not 0 < count <= wire.MAX_DATA_XFER_SIZE_BYTES:
        raise ProtocolError(f"REGION_READ of {count} bytes: expected 1 to {wire.MAX_DATA_XFER_SIZE_BYTES}")
    return rq.RegionRead(region, offset, count)


def _region_write(payload: bytes, _fds: Sequence[int]) -> rq.Body:
    offset, region, count = _ACCESS.unpack_from(payload)
    data = payload[wire.REGION_ACCESS.size :]
    if not count or count != len(data):
        raise ProtocolError(
            f"REGION_WRITE of {count} bytes came with {len(data)}: expected as many, and some"
        )
    return rq.RegionWrite(region, offset, data)


def _region_write_multi(payload: bytes, _fds: Sequence[int]) -> rq.Body:
    count = wire.WRITE_MULTI.unpack(payload)["wr_cnt"]
    expected = wire.WRITE_MULTI.size + count * wire.WRITE_ONE.size
    if not count or len(payload) != expected:
        raise ProtocolError(
            f"REGION_WRITE_MULTI of {count} writes in {len(payload)} bytes: expected {expected}"
        )
    offsets = range(wire.WRITE_MULTI.size, len(payload), wire.WRITE_ONE.size)
    return rq.RegionWriteMulti(tuple(_one_write(payload, offset) for offset in offsets))


def _one_write(payload: bytes, position: int) -> rq.RegionWrite:
    fields = wire.WRITE_ONE.unpack(payload, position)
    data = wire.WRITE_ONE.blob(payload, "data", position)
    if not 0 < fields["count"] <= len(data):
        raise ProtocolError(
            f"REGION_WRITE_MULTI with a write of {fields['count']} bytes: expected 1 to {len(data)}"
        )
    return rq.RegionWrite(fields["region"], fields["offset"], data[: fields["count"]])


def _reset(_payload: bytes, _fds: Sequence[int]) -> rq.Body:
    return rq.Reset()


_DECODERS: Mapping[Command, Callable[[bytes, Sequence[int]], rq.Body]] = {
    Command.VERSION: _version,
    Command.DMA_MAP: _dma_map,
    Command.DMA_UNMAP: _dma_unmap,
    Command.DEVICE_GET_INFO: _get_info,
    Command.DEVICE_GET_REGION_INFO: _get_region_info,
    Command.DEVICE_GET_REGION_IO_FDS: _get_region_io_fds,
    Command.DEVICE_GET_IRQ_INFO: _get_irq_info,
    Command.DEVICE_SET_IRQS: _set_irqs,
    Command.REGION_READ: _region_read,
    Command.REGION_WRITE: _region_write,
    Command.DEVICE_RESET: _reset,
    Command.REGION_WRITE_MULTI: _region_write_multi,
}
