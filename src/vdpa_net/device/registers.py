# SPDX-License-Identifier: Apache-2.0
"""The register engine: accesses of any width onto the registers of a RegisterMap.

Partial and wide accesses, byte order, read-only masks and holes are dealt with here and nowhere else. What a
register *does* is its `RegisterFile`'s business, which sees whole register values only.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from typing import Protocol

from vdpa_net.device.access import Place
from vdpa_net.migration.violations import ViolationLog
from vdpa_net.wire.layout import Access, Register, RegisterMap

_CHUNK = 4
_NATURAL = (1, 2, 4)
_WIDTHS = "accesses are of 1, 2, 4 or 8 bytes"


class RegisterFile(Protocol):
    """The behaviour behind a RegisterMap."""

    def load(self, register: Register) -> int:
        """Value of the whole register."""

    def store(self, register: Register, value: int, written: int) -> None:
        """Write the whole register; `written` masks the bits that the access covered."""


class Storage:
    """A RegisterFile that keeps what is written and does nothing."""

    def __init__(self, table: RegisterMap) -> None:
        self._reset = {register.name: register.reset for register in table}
        self.values = dict(self._reset)

    def load(self, register: Register) -> int:
        """The stored value."""
        return self.values[register.name]

    def store(self, register: Register, value: int, written: int) -> None:  # noqa: ARG002
        """Keep the value."""
        self.values[register.name] = value

    def reset(self) -> None:
        """Back to the table's reset values."""
        self.values = dict(self._reset)


class RegisterBlock:
    """Byte accesses to the registers of `table`, whose behaviour is `file`.

    Bytes that belong to no register read 0. With `violations`, a write to one of them or to a read-only
    register and a write of a width other than 1, 2, 4 or 8 bytes are recorded; without, such writes are
    ignored silently, as PCI has it for its configuration space. 8 bytes act as two accesses of 4, low half
    first.
    """

    def __init__(
        self, table: RegisterMap, file: RegisterFile, violations: ViolationLog | None = None
    ) -> None:
        self.table = table
        self._file = file
        self._violations = violations
        self._registers = list(table)
        self._offsets = [register.offset for register in self._registers]

    def places(self, offset: int, count: int) -> Iterator[Place]:
        """The registers that an access covers."""
        for register in self._covered(offset, count):
            yield Place(self.table.name, register, register.offset - offset)

    def read(self, offset: int, count: int) -> bytes:
        """`count` bytes at `offset`."""
        return b"".join(self._read(start, size) for start, size in _accesses(offset, count))

    def write(self, offset: int, data: bytes) -> None:
        """Write bytes at `offset`."""
        if self._violations is not None and len(data) not in (*_NATURAL, 8):
            self._record("bad_width", offset, len(data), _WIDTHS)
            return
        for start, size in _accesses(offset, len(data)):
            self._write(start, data[start - offset : start - offset + size])

    def _covered(self, offset: int, count: int) -> Iterator[Register]:
        index = max(0, bisect.bisect_right(self._offsets, offset) - 1)
        for register in self._registers[index : bisect.bisect_left(self._offsets, offset + count)]:
            if register.end > offset:
                yield register

    def _read(self, offset: int, count: int) -> bytes:
        word = 0
        for register in self._covered(offset, count):
            shift = 8 * (register.offset - offset)
            value = self._file.load(register)
            word |= value << shift if shift >= 0 else value >> -shift
        return (word & ((1 << 8 * count) - 1)).to_bytes(count, "little")

    def _write(self, offset: int, data: bytes) -> None:
        word = int.from_bytes(data, "little")
        every = (1 << 8 * len(data)) - 1
        covered = list(self._covered(offset, len(data)))
        if not covered:
            self._record("no_register", offset, word, "no register there")
        for register in covered:
            shift = 8 * (register.offset - offset)
            self._write_register(register, _shifted(word, shift), _shifted(every, shift))

    def _write_register(self, register: Register, bits: int, covered: int) -> None:
        written = covered & ((1 << 8 * register.width) - 1)
        if register.access in (Access.RO, Access.RC):
            self._record(f"read_only {register.name}", register.offset, bits & written, register.clause)
            return
        effective = written & register.mask
        value = (self._file.load(register) & ~effective) | (bits & effective)
        self._file.store(register, value, written)

    def _record(self, what: str, offset: int, value: int, clause: str) -> None:
        if self._violations is not None:
            self._violations.record(self.table.name, what, value, clause, f"write at offset {offset:#x}")


def _shifted(word: int, shift: int) -> int:
    return word >> shift if shift >= 0 else word << -shift


def _accesses(offset: int, count: int) -> Iterator[tuple[int, int]]:
    """Single accesses that make up one of `count` bytes: itself, or naturally aligned pieces of up to 4."""
    if count in _NATURAL:
        yield offset, count
        return
    end = offset + count
    while offset < end:
        size = min(_CHUNK - offset % _CHUNK, end - offset)
        yield offset, size
        offset += size
