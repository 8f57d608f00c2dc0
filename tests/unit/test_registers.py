# SPDX-License-Identifier: Apache-2.0
"""The register engine, alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vdpa_net.device.registers import RegisterBlock, Storage
from vdpa_net.migration.violations import KEPT_ENTRIES, ViolationLog
from vdpa_net.wire.layout import Access, Register, RegisterMap

TABLE = RegisterMap(
    "block",
    (
        Register("byte", 0x0, 1),
        Register("fixed", 0x1, 1, Access.RO, reset=0x5A, clause="fixed is read-only"),
        Register("half", 0x2, 2, writable_mask=0x0FF0),
        Register("wide", 0x8, 8),
        Register("last", 0x14, 4),
    ),
)


def block() -> tuple[RegisterBlock, Storage, ViolationLog]:
    storage, violations = Storage(TABLE), ViolationLog()
    return RegisterBlock(TABLE, storage, violations), storage, violations


def test_partial_write_changes_only_its_bytes() -> None:
    registers, storage, _ = block()
    registers.write(0x8, bytes(range(1, 9)))
    registers.write(0xA, b"\xaa\xbb")
    assert storage.values["wide"].to_bytes(8, "little").hex() == "0102aabb05060708"
    assert registers.read(0xB, 2) == b"\xbb\x05"


def test_one_access_reaches_every_register_it_covers() -> None:
    registers, storage, violations = block()
    registers.write(0x0, b"\x11\x22\xff\xff")
    assert storage.values == {"byte": 0x11, "fixed": 0x5A, "half": 0x0FF0, "wide": 0, "last": 0}
    assert registers.read(0x0, 4) == b"\x11\x5a\xf0\x0f"
    assert [entry.what for entry in violations.entries] == ["read_only fixed"]
    assert violations.entries[0].clause == "fixed is read-only"
    assert violations.entries[0].value == 0x22


def test_eight_bytes_act_as_two_accesses_of_four_low_half_first() -> None:
    seen: list[tuple[int, int]] = []

    class Watched(Storage):
        def store(self, register: Register, value: int, written: int) -> None:
            seen.append((value, written))
            super().store(register, value, written)

    registers = RegisterBlock(TABLE, Watched(TABLE))
    registers.write(0x8, bytes.fromhex("0100000002000000"))
    assert seen == [(1, 0xFFFFFFFF), (0x2_0000_0001, 0xFFFFFFFF << 32)]


def test_bytes_that_are_no_register_read_zero_and_a_write_is_recorded() -> None:
    registers, _, violations = block()
    assert registers.read(0x4, 4) == bytes(4)
    assert violations.count == 0
    registers.write(0x4, b"\1\0\0\0")
    assert [(entry.what, entry.value) for entry in violations.entries] == [("no_register", 1)]


@pytest.mark.parametrize("width", [3, 5, 6, 7, 16])
def test_write_of_an_odd_width_is_recorded_without_effect(width: int) -> None:
    registers, storage, violations = block()
    registers.write(0x8, b"\xff" * width)
    assert storage.values["wide"] == 0
    assert [entry.what for entry in violations.entries] == ["bad_width"]


def test_silent_block_ignores_what_a_strict_one_records() -> None:
    storage = Storage(TABLE)
    registers = RegisterBlock(TABLE, storage)
    registers.write(0x0, b"\xff" * 8)
    assert storage.values["fixed"] == 0x5A
    assert registers.read(0x4, 4) == bytes(4)


@given(st.lists(st.tuples(st.integers(0, 0x1F), st.binary(min_size=1, max_size=9)), max_size=20))
def test_accesses_equal_those_of_masked_bytes(writes: list[tuple[int, bytes]]) -> None:
    """The oracle is a flat array of bytes with a mask per byte."""
    registers = RegisterBlock(TABLE, Storage(TABLE))
    flat, masks = bytearray(0x40), bytearray(0x40)
    for register in TABLE:
        place = slice(register.offset, register.end)
        flat[place] = register.reset.to_bytes(register.width, "little")
        masks[place] = register.mask.to_bytes(register.width, "little")
    for offset, data in writes:
        registers.write(offset, data)
        for at, byte in enumerate(data, offset):
            flat[at] = flat[at] & ~masks[at] | byte & masks[at]
        for count in (1, 2, 4, 8, 0x28):
            assert (
                registers.read(offset, min(count, 0x40 - offset))
                == flat[offset : offset + min(count, 0x40 - offset)]
            )


def test_violation_log_keeps_a_bounded_number_and_counts_all() -> None:
    violations = ViolationLog()
    for value in range(KEPT_ENTRIES + 5):
        violations.record("here", "again", value, "clause")
    assert len(violations.entries) == KEPT_ENTRIES
    assert violations.entries[-1].value == KEPT_ENTRIES - 1
    assert violations.count == violations.kinds["again"] == KEPT_ENTRIES + 5
