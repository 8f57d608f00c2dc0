# SPDX-License-Identifier: Apache-2.0
"""Where a ring stands by guest RAM alone, with rings that a driver and a device made up here have written."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vdpa_net.lab.migrate.observe import QueueObservations
from vdpa_net.lab.migrate.ring_memory import (
    AVAIL,
    DESCRIPTOR_BYTES,
    FLAGS_OFFSET_BYTES,
    USED,
    GuestProgress,
    PackedMemory,
    SplitMemory,
    flip,
    used_position,
)
from vdpa_net.migration.verdict import Outcome

WRAP = 1 << 15
RING_AT = 0xF80
NOTHING = GuestProgress(0, 0, 0)


class Memory:
    """8 KiB of guest RAM."""

    size_bytes = 8192

    def __init__(self) -> None:
        self.content = bytearray(self.size_bytes)

    def read(self, address: int, size: int) -> bytes:
        assert address // 4096 == (address + size - 1) // 4096
        return bytes(self.content[address : address + size])

    def u16(self, address: int) -> int:
        return int.from_bytes(self.read(address, 2), "little")

    def differing_pages(self, other: Memory) -> list[int]:
        raise NotImplementedError


class Packed:
    """Both sides of a packed ring; chains are given back in order."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.ram = Memory()
        self.posted: list[int] = []
        self.driver = self.device = 0

    def post(self, slots: int) -> None:
        for at in range(self.driver, self.driver + slots):
            self._store(at, AVAIL if self._wrap(at) else USED)
        self.driver += slots
        self.posted.append(slots)

    def complete(self) -> None:
        self._store(self.device, AVAIL | USED if self._wrap(self.device) else 0)
        self.device += self.posted.pop(0)

    def position(self, at: int) -> int:
        return at % self.size | (WRAP if self._wrap(at) else 0)

    def memory(self) -> PackedMemory:
        return PackedMemory(self.ram, {"descriptor": RING_AT, "size": self.size})

    def flags(self) -> list[int]:
        return [self.ram.u16(self._at(index)) for index in range(self.size)]

    def _wrap(self, at: int) -> bool:
        return at // self.size % 2 == 0

    def _at(self, index: int) -> int:
        return RING_AT + DESCRIPTOR_BYTES * index + FLAGS_OFFSET_BYTES

    def _store(self, at: int, flags: int) -> None:
        start = self._at(at % self.size)
        self.ram.content[start : start + 2] = flags.to_bytes(2, "little")


def worked(size: int, moves: list[int], longest: int) -> Packed:
    """A ring after some moves: 0 gives a chain back, others post one of so many descriptors."""
    ring = Packed(size)
    for move in moves:
        if move == 0 and ring.posted:
            ring.complete()
        elif move and ring.driver - ring.device + min(move, longest) <= size:
            ring.post(min(move, longest))
    return ring


@given(st.integers(1, 40), st.lists(st.integers(0, 1), max_size=200))
def test_flags_of_single_descriptors_tell_both_positions(size: int, moves: list[int]) -> None:
    ring = worked(size, moves, 1)
    assert ring.memory().used(None) == ring.position(ring.device)
    assert flip(ring.flags(), AVAIL) == ring.position(ring.driver)


@given(st.integers(4, 40), st.lists(st.integers(0, 4), max_size=200))
def test_flags_of_longer_chains_tell_the_drivers_position_and_allow_the_devices(
    size: int, moves: list[int]
) -> None:
    ring = worked(size, moves, 4)
    reported = ring.position(ring.device)
    assert flip(ring.flags(), AVAIL) == ring.position(ring.driver)
    if flip(ring.flags(), USED) is None:
        assert used_position(ring.flags(), reported) == reported


@pytest.mark.parametrize("off", [-3, -1, 1, 3])
def test_a_wrong_position_is_not_taken_for_the_one_of_the_flags(off: int) -> None:
    ring = worked(16, [1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0], 1)
    assert ring.device == 4
    assert ring.memory().used(ring.position(4 + off)) == ring.position(4)


def test_flags_without_an_order_are_no_position() -> None:
    assert flip([USED, 0, USED, 0], USED) is None


def test_descriptors_are_counted_over_laps_and_never_too_many() -> None:
    ring = Packed(8)
    ring.post(3)
    start, seen = ring.position(0), NOTHING
    for _ in range(20):
        ring.post(1)
        ring.complete()
        ring.posted[:] = [1] * (ring.driver - ring.device)
        seen = ring.memory().look(start, seen)
    assert seen.posted == ring.driver
    assert seen.completed == ring.device
    assert seen.is_beyond_the_ring


def test_a_guest_that_stands_still_is_not_beyond_the_ring() -> None:
    ring = Packed(8)
    for _ in range(8):
        ring.post(1)
    seen = ring.memory().look(ring.position(0), NOTHING)
    assert seen == GuestProgress(8, 8, 0)
    assert not ring.memory().look(ring.position(0), seen).is_beyond_the_ring


def test_a_split_ring_tells_its_indices_modulo_65536() -> None:
    ram = Memory()
    ram.content[0x102:0x104] = (5).to_bytes(2, "little")
    ram.content[0x202:0x204] = (0xFFFE).to_bytes(2, "little")
    ring = SplitMemory(ram, {"driver": 0x100, "device": 0x200, "size": 256})
    assert ring.used(None) == 0xFFFE
    assert ring.posted_since(0xFFFE) == 7
    assert ring.look(0xFFFC, NOTHING) == GuestProgress(256, 9, 2)


PACKED_STATE = (WRAP | 7) << 16 | WRAP | 7
PACKED_QUEUE = QueueObservations(
    queue=0,
    used_in_ram=WRAP | 7,
    register_after_stop=PACKED_STATE,
    wire_get=PACKED_STATE,
    wire_set=PACKED_STATE,
    register_before_enable=PACKED_STATE,
    guest=GuestProgress(256, 300, 280),
    packed=True,
)


def test_observations_of_a_packed_ring_are_told_as_index_and_wrap_counter() -> None:
    line = PACKED_QUEUE.line()
    assert line.outcome is Outcome.PASS
    assert line.measured.startswith("8 of 8 observations are index 7 wrap 1")


@pytest.mark.parametrize("field", ["register_after_stop", "wire_get", "wire_set", "register_before_enable"])
@pytest.mark.parametrize("bit", [0, 15, 16, 31])
def test_each_part_of_a_packed_ring_state_is_compared(field: str, bit: int) -> None:
    line = replace(PACKED_QUEUE, **{field: PACKED_STATE ^ 1 << bit}).line()
    assert line.outcome is Outcome.FAIL
    assert len(line.detail) == 1
    half = "last_avail_idx" if bit < 16 else "used_idx"
    wrong = "index 7 wrap 0" if bit % 16 else "index 6 wrap 1"
    assert f"{half} is {wrong}, the position of the flags in RAM is index 7 wrap 1" in line.detail[0]


def test_a_ring_whose_ram_tells_nothing_is_not_run() -> None:
    assert replace(PACKED_QUEUE, used_in_ram=None).line().outcome is Outcome.NOT_RUN
