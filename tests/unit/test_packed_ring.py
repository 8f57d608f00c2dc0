# SPDX-License-Identifier: Apache-2.0
"""The driver's side of a packed ring against a device of a few lines."""

from __future__ import annotations

import random
import struct
from collections import deque
from collections.abc import Iterator
from itertools import count

import pytest

from vdpa_net.errors import StateError
from vdpa_net.testing.guest_memory import GuestMemory
from vdpa_net.testing.packed_ring import (
    DESC_F_AVAIL,
    DESC_F_USED,
    EVENT_DESC,
    EVENT_DISABLE,
    WRAP,
    PackedRing,
)
from vdpa_net.testing.ring import DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE, Segment
from vdpa_net.testing.ring_formats import allocate_ring

MIB = 1 << 20
Chain = tuple[int, int, list[tuple[int, int, bool]]]


class ModelQueue:
    """The device's side, straight from virtio 1.3, 2.8. `passed` counts descriptors from the ring's start."""

    def __init__(self, memory: GuestMemory, ring: PackedRing, passed: int = 0) -> None:
        self.memory, self.ring = memory, ring
        self.avail = self.used = passed

    def wrap(self, passed: int) -> bool:
        return passed // self.ring.size % 2 == 0

    def read(self, passed: int) -> tuple[int, int, int, int]:
        place = self.ring.desc + 16 * (passed % self.ring.size)
        gpa, length, buffer_id, flags = struct.unpack("<QIHH", self.memory.read(place, 16))
        return gpa, length, buffer_id, flags

    def pop(self) -> Chain | None:
        """Buffer id, descriptors, and the buffers of the next chain."""
        chain, start = [], self.avail
        while True:
            gpa, length, buffer_id, flags = self.read(self.avail)
            wrap = self.wrap(self.avail)
            if bool(flags & DESC_F_AVAIL) != wrap or bool(flags & DESC_F_USED) == wrap:
                assert self.avail == start, "a part of a chain"
                return None
            self.avail += 1
            if flags & DESC_F_INDIRECT:
                for at in range(gpa, gpa + length, 16):
                    address, size, _, inner = struct.unpack("<QIHH", self.memory.read(at, 16))
                    chain.append((address, size, bool(inner & DESC_F_WRITE)))
            else:
                chain.append((gpa, length, bool(flags & DESC_F_WRITE)))
            if not flags & DESC_F_NEXT:
                return buffer_id, self.avail - start, chain

    def push(self, buffer_id: int, slots: int, written: int) -> None:
        flags = DESC_F_AVAIL | DESC_F_USED if self.wrap(self.used) else 0
        place = self.ring.desc + 16 * (self.used % self.ring.size)
        self.memory.write(place + 8, struct.pack("<IH", written, buffer_id))
        self.memory.store_u16(place + 14, flags)
        self.used += slots

    def encode(self, passed: int) -> int:
        return passed % self.ring.size | (WRAP if self.wrap(passed) else 0)

    def ask_for_kicks(self, place: int, flags: int) -> None:
        self.memory.write(self.ring.device, struct.pack("<HH", place, flags))


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory([(0, 4 * MIB)]) as made:
        yield made


def test_formats_are_chosen_by_a_flag(memory: GuestMemory) -> None:
    assert [allocate_ring(memory, 8, packed=packed).is_packed for packed in (False, True)] == [False, True]


def test_chain_reaches_the_device_as_it_was_added_and_not_before_it_is_published(memory: GuestMemory) -> None:
    ring = PackedRing.allocate(memory, 5)
    device = ModelQueue(memory, ring)
    segments = [Segment(0x1000, 10), Segment(0x2001, 20, True), Segment(0x5000, 30, True)]
    buffer_id = ring.add(segments)
    assert device.pop() is None
    ring.publish()
    assert device.pop() == (buffer_id, 3, [tuple(segment) for segment in segments])


def test_indirect_chain_takes_one_descriptor(memory: GuestMemory) -> None:
    ring = PackedRing.allocate(memory, 5)
    device = ModelQueue(memory, ring)
    segments = [Segment(0x1000 * n, 10) for n in range(1, 6)]
    buffer_id = ring.add(segments, indirect=True)
    ring.publish()
    assert ring.free_descriptors == 4
    assert device.pop() == (buffer_id, 1, [tuple(segment) for segment in segments])


@pytest.mark.parametrize("size", [1, 3, 7, 8, 100])
@pytest.mark.parametrize("first_index", [0, 1, 6, 7, 8, 15, 1000])
def test_chains_go_round_from_any_start_in_a_ring_of_any_size(
    memory: GuestMemory, size: int, first_index: int
) -> None:
    ring = PackedRing.allocate(memory, size, first_index=first_index)
    device = ModelQueue(memory, ring, first_index)
    choose = random.Random(size)
    expected: deque[tuple[int, int]] = deque()
    for written in count(1):
        needed = choose.randint(1, min(3, size))
        if ring.free_descriptors < needed:
            with pytest.raises(StateError, match="are free"):
                ring.add([Segment(0x1000, 4)] * needed)
        else:
            ring.add([Segment(0x1000, 4, True)] * needed)
        ring.publish()
        while choose.random() < 0.6 and (chain := device.pop()) is not None:
            device.push(chain[0], chain[1], written)
            expected.append((chain[0], written))
        assert ring.completed == len(expected)
        assert ring.used_idx == device.encode(device.used)
        assert ring.state == ring.base == device.encode(device.used) * 0x10001
        for used in ring.reap():
            assert (used.head, used.written) == expected.popleft()
            assert used.avail_index == used.used_index
        assert ring.last_used_idx == device.encode(device.used)
        if device.used > first_index + 5 * size:
            break
    assert ring.unexpected == []


def test_buffers_that_are_used_out_of_order_say_where_they_were_available(memory: GuestMemory) -> None:
    ring = PackedRing.allocate(memory, 5)
    device = ModelQueue(memory, ring)
    ring.add([Segment(0x1000, 4), Segment(0x2000, 4)])
    ring.add([Segment(0x3000, 4)])
    ring.publish()
    assert ring.in_flight == 2
    first, second = device.pop(), device.pop()
    assert first is not None
    assert second is not None
    device.push(second[0], second[1], 1)
    device.push(first[0], first[1], 2)
    used = ring.reap()
    assert [(element.head, element.written) for element in used] == [(second[0], 1), (first[0], 2)]
    assert [element.used_index for element in used] == [WRAP, WRAP | 1]
    assert [element.avail_index for element in used] == [WRAP | 2, WRAP]
    assert (ring.in_flight, ring.free_descriptors) == (0, 5)


def test_buffer_id_that_the_device_does_not_own_is_unexpected(memory: GuestMemory) -> None:
    ring = PackedRing.allocate(memory, 5)
    device = ModelQueue(memory, ring)
    ring.add([Segment(0x1000, 4)])
    ring.publish()
    device.push(77, 1, 5)
    assert [element.head for element in ring.reap()] == [77]
    assert [element.head for element in ring.unexpected] == [77]


@pytest.mark.parametrize("first_index", [0, 3, 5, 9])
def test_kick_is_needed_exactly_for_the_descriptor_that_was_asked_for(
    memory: GuestMemory, first_index: int
) -> None:
    ring = PackedRing.allocate(memory, 5, first_index=first_index)
    device = ModelQueue(memory, ring, first_index)
    for ahead in (0, 1, 2):
        device.ask_for_kicks(device.encode(device.avail + ahead), EVENT_DESC)
        for step in range(3):
            ring.add([Segment(0x1000, 4)])
            assert ring.publish() == (step == ahead)
            chain = device.pop()
            assert chain is not None
            device.push(chain[0], chain[1], 0)
            ring.reap()


def test_kick_flags_hold_with_and_without_event_idx(memory: GuestMemory) -> None:
    for event_idx in (True, False):
        ring = PackedRing.allocate(memory, 5, event_idx=event_idx)
        device = ModelQueue(memory, ring)
        ring.add([Segment(0x1000, 4)])
        assert ring.publish()
        device.ask_for_kicks(0, EVENT_DISABLE)
        ring.add([Segment(0x1000, 4)])
        assert not ring.publish()


def test_arming_asks_for_the_next_used_descriptor_and_tells_of_one_that_is_there(memory: GuestMemory) -> None:
    ring = PackedRing.allocate(memory, 5, first_index=4)
    device = ModelQueue(memory, ring, 4)
    assert not ring.arm()
    assert memory.load_u32(ring.driver) == EVENT_DESC << 16 | WRAP | 4
    ring.disarm()
    assert memory.load_u32(ring.driver) >> 16 == EVENT_DISABLE
    ring.add([Segment(0x1000, 4)])
    ring.publish()
    chain = device.pop()
    assert chain is not None
    device.push(chain[0], chain[1], 0)
    assert ring.arm()


def test_reset_makes_the_ring_new(memory: GuestMemory) -> None:
    ring = PackedRing.allocate(memory, 5, first_index=3)
    ring.add([Segment(0x1000, 4)])
    ring.publish()
    ring.reset()
    assert memory.read(ring.desc, 80) == bytes(80)
    assert (ring.free_descriptors, ring.in_flight, ring.state) == (5, 0, 0x8000_8000)
    ring.add([Segment(0x1000, 4)])
    ring.publish()
    assert ModelQueue(memory, ring).pop() is not None
