# SPDX-License-Identifier: Apache-2.0
"""Declared layouts: one field table per structure, from which offsets, sizes, packing and docs derive.

Two kinds of table live in `wire/`: a `Layout` describes a message or a structure in memory, a `RegisterMap`
describes registers with access rules. All values are little-endian (virtio 1.3, 1.4; on the hosts that the
package supports this is also the host order that vfio-user and vhost-user use).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from enum import Enum
from itertools import pairwise

from vdpa_net.record import Record


class Field(Record):
    """One field: `width` in bytes; `blob` fields are bytes of exactly that width."""

    name: str
    width: int
    blob: bool = False


class Layout:
    """A packed little-endian structure.

    >>> header = Layout("header", Field("request", 4), Field("flags", 4), Field("size", 4))
    >>> header.size, header.offset("flags")
    (12, 4)
    >>> header.unpack(header.pack(request=1, flags=1, size=0))["request"]
    1
    """

    def __init__(self, name: str, *fields: Field) -> None:
        self.name = name
        self.fields = fields
        self._offsets: dict[str, int] = {}
        offset = 0
        for item in fields:
            if item.name in self._offsets:
                raise ValueError(f"{name}: field {item.name} is declared twice")
            self._offsets[item.name] = offset
            offset += item.width
        self.size = offset
        self._struct = _struct_of(fields)

    def offset(self, name: str) -> int:
        """Offset of a field in bytes."""
        return self._offsets[name]

    def pack(self, **values: int | bytes) -> bytes:
        """Bytes of the structure; a field that is not given is zero. Raises ValueError for a bad value."""
        if unknown := values.keys() - self._offsets.keys():
            raise ValueError(f"{self.name} has no field {sorted(unknown)}")
        return b"".join(self._pack_field(item, values.get(item.name)) for item in self.fields)

    def _pack_field(self, item: Field, value: int | bytes | None) -> bytes:
        if value is None:
            return bytes(item.width)
        if isinstance(value, int):
            try:
                return value.to_bytes(item.width, "little")
            except OverflowError as error:
                raise ValueError(f"{self.name}.{item.name} = {value:#x}: {error}") from error
        if len(value) != item.width:
            raise ValueError(f"{self.name}.{item.name} takes {item.width} bytes, got {len(value)}")
        return bytes(value)

    def unpack(self, data: bytes | bytearray | memoryview, offset: int = 0) -> dict[str, int]:
        """Integer fields by name. Raises ValueError if there are fewer than `size` bytes at `offset`."""
        if len(data) - offset < self.size:
            raise ValueError(f"{self.name} takes {self.size} bytes, got {max(0, len(data) - offset)}")
        values = self._struct.unpack_from(data, offset)
        return {
            item.name: value if type(value) is int else int.from_bytes(value, "little")
            for item, value in zip(self.fields, values, strict=True)
            if not item.blob
        }

    def blob(self, data: bytes, name: str, offset: int = 0) -> bytes:
        """The bytes of one field."""
        width = next(item.width for item in self.fields if item.name == name)
        start = offset + self._offsets[name]
        return bytes(data[start : start + width])


def _struct_of(fields: tuple[Field, ...]) -> struct.Struct:
    codes = {1: "B", 2: "H", 4: "I", 8: "Q"}
    # What is not as wide as a number of C is bytes.
    return struct.Struct("<" + "".join(codes.get(item.width, f"{item.width}s") for item in fields))


class Access(Enum):
    """What a driver may do with a register."""

    RO = "read-only"
    RW = "read-write"
    WO = "write-only"
    RC = "read-clears"


class BitField(Record):
    """Bits of a register that are a number of their own: from bit `low` on, `width` of them."""

    name: str
    low: int
    width: int

    def of(self, value: int) -> int:
        """The number in a register's value."""
        return value >> self.low & ((1 << self.width) - 1)


class Register(Record):
    """One register: where it is, how wide (bytes), who may write it, what it is after a reset, which clause.

    `writable_mask` limits the bits that a write changes (None: all of them). `fields` says what its bits are,
    where they are not one number.
    """

    name: str
    offset: int
    width: int
    access: Access = Access.RW
    reset: int = 0
    clause: str = ""
    writable_mask: int | None = None
    fields: tuple[BitField, ...] = ()

    @property
    def end(self) -> int:
        """First offset behind the register."""
        return self.offset + self.width

    @property
    def mask(self) -> int:
        """Bits that a write changes."""
        if self.access in (Access.RO, Access.RC):
            return 0
        return self.writable_mask if self.writable_mask is not None else (1 << (8 * self.width)) - 1


class RegisterMap:
    """A named set of registers that do not overlap."""

    def __init__(self, name: str, registers: tuple[Register, ...]) -> None:
        self.name = name
        self.registers = registers
        ordered = sorted(registers, key=lambda register: register.offset)
        for low, high in pairwise(ordered):
            if low.end > high.offset:
                raise ValueError(f"{name}: {low.name} and {high.name} overlap")
        self.by_name: Mapping[str, Register] = {register.name: register for register in ordered}
        self.size = ordered[-1].end if ordered else 0

    def __iter__(self) -> Iterator[Register]:
        return iter(self.by_name.values())

    def __getitem__(self, name: str) -> Register:
        return self.by_name[name]

    def at(self, offset: int) -> Register | None:
        """The register that covers this offset."""
        for register in self.by_name.values():
            if register.offset <= offset < register.end:
                return register
        return None
