# SPDX-License-Identifier: Apache-2.0
"""The driver's side of a split ring, and the guest's NIC on it, against a device of a few lines."""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Iterator

import pytest

from vdpa_net.errors import StateError
from vdpa_net.testing.frames import FrameMint, is_stamped, read_stamp
from vdpa_net.testing.guest_cpu import GuestCpu, Wires
from vdpa_net.testing.guest_memory import GuestMemory
from vdpa_net.testing.net_queues import NetQueues, Shapes
from vdpa_net.testing.ring import DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE, Segment
from vdpa_net.testing.split_ring import SplitRing

MIB = 1 << 20


class ModelQueue:
    """The device's side, straight from virtio 1.3, 2.7."""

    def __init__(self, memory: GuestMemory, ring: SplitRing) -> None:
        self.memory, self.ring = memory, ring
        self.last_avail = self.used = ring.used_idx

    def pop(self) -> tuple[int, list[tuple[int, int, bool]]] | None:
        memory, ring = self.memory, self.ring
        if memory.load_u16(ring.driver + 2) == self.last_avail:
            return None
        head = memory.load_u16(ring.driver + 4 + 2 * (self.last_avail % ring.size))
        self.last_avail = (self.last_avail + 1) & 0xFFFF
        table, slot = ring.desc, head
        chain = []
        while True:
            gpa, length, flags, following = struct.unpack("<QIHH", memory.read(table + 16 * slot, 16))
            if flags & DESC_F_INDIRECT:
                table, slot = gpa, 0
                continue
            chain.append((gpa, length, bool(flags & DESC_F_WRITE)))
            if not flags & DESC_F_NEXT:
                return head, chain
            slot = following

    def push(self, head: int, written: int) -> None:
        place = self.ring.device + 4 + 8 * (self.used % self.ring.size)
        self.memory.write(place, struct.pack("<II", head, written))
        self.used = (self.used + 1) & 0xFFFF
        self.memory.store_u16(self.ring.device + 2, self.used)

    def ask_for_kick_at(self, index: int) -> None:
        self.memory.store_u16(self.ring.device + 4 + 8 * self.ring.size, index)


class ModelLoopback:
    """Copies what is transmitted into receive buffers, merging as many as it needs."""

    def __init__(self, memory: GuestMemory, rx: SplitRing, tx: SplitRing) -> None:
        self.memory = memory
        self.rx, self.tx = ModelQueue(memory, rx), ModelQueue(memory, tx)

    def serve(self, *, damage: bool = False, lose: int = 0) -> int:
        count = 0
        while (chain := self.tx.pop()) is not None:
            head, segments = chain
            packet = bytearray(b"".join(self.memory.read(gpa, size) for gpa, size, _ in segments))
            if damage:
                packet[40] ^= 0xFF
            if count >= lose:
                self.deliver(packet)
            self.tx.push(head, 0)
            count += 1
        return count

    def deliver(self, packet: bytearray) -> None:
        buffers = []
        room = 0
        while room < len(packet):
            buffer = self.rx.pop()
            assert buffer is not None
            buffers.append(buffer)
            room += sum(size for _, size, _ in buffer[1])
        packet[10:12] = struct.pack("<H", len(buffers))
        for head, segments in buffers:
            before = len(packet)
            for gpa, size, writable in segments:
                assert writable
                self.memory.write(gpa, bytes(packet[:size]))
                del packet[:size]
            self.rx.push(head, before - len(packet))


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory([(0, 4 * MIB)]) as made:
        yield made


def test_chain_reaches_the_device_as_it_was_added(memory: GuestMemory) -> None:
    ring = SplitRing.allocate(memory, 8)
    device = ModelQueue(memory, ring)
    segments = [Segment(0x1000, 10), Segment(0x2001, 20, True), Segment(0x5000, 30, True)]
    head = ring.add(segments)
    assert device.pop() is None
    ring.publish()
    assert device.pop() == (head, [tuple(segment) for segment in segments])


def test_indirect_chain_takes_one_descriptor(memory: GuestMemory) -> None:
    ring = SplitRing.allocate(memory, 8)
    device = ModelQueue(memory, ring)
    head = ring.add([Segment(0x1000 * n, 10) for n in range(1, 6)], indirect=True)
    ring.publish()
    assert ring.free_descriptors == 7
    popped = device.pop()
    assert popped is not None
    assert popped[0] == head
    assert [gpa for gpa, _, _ in popped[1]] == [0x1000 * n for n in range(1, 6)]


def test_used_descriptors_are_free_again_and_say_where_they_were_available(memory: GuestMemory) -> None:
    ring = SplitRing.allocate(memory, 4, first_index=0xFFFE)
    device = ModelQueue(memory, ring)
    for _ in range(6):
        ring.add([Segment(0x1000, 4), Segment(0x2000, 4)])
        ring.add([Segment(0x1000, 4), Segment(0x2000, 4)])
        with pytest.raises(StateError, match="0 are free"):
            ring.add([Segment(0x1000, 4)])
        ring.publish()
        assert ring.in_flight == 2
        first, second = device.pop(), device.pop()
        assert first is not None
        assert second is not None
        device.push(second[0], 1)
        device.push(first[0], 2)
        used = ring.reap()
        assert [element.written for element in used] == [1, 2]
        assert [element.avail_index for element in used] == [
            (used[0].used_index + 1) & 0xFFFF,
            used[0].used_index,
        ]
        assert ring.in_flight == 0


def test_head_that_the_device_does_not_own_is_unexpected(memory: GuestMemory) -> None:
    ring = SplitRing.allocate(memory, 4)
    device = ModelQueue(memory, ring)
    device.push(3, 0)
    assert [element.head for element in ring.reap()] == [3]
    assert [element.head for element in ring.unexpected] == [3]


@pytest.mark.parametrize("start", [0, 0xFFFD])
def test_kick_is_wanted_when_the_index_passes_the_event(memory: GuestMemory, start: int) -> None:
    ring = SplitRing.allocate(memory, 16, first_index=start)
    device = ModelQueue(memory, ring)
    wanted = []
    device.ask_for_kick_at((start + 2) & 0xFFFF)
    for _ in range(5):
        ring.add([Segment(0, 1)])
        wanted.append(ring.publish())
    assert wanted == [False, False, True, False, False]


def test_without_event_idx_the_flag_decides(memory: GuestMemory) -> None:
    ring = SplitRing.allocate(memory, 16, event_idx=False)
    ring.add([Segment(0, 1)])
    assert ring.publish()
    memory.store_u16(ring.device, 1)
    ring.add([Segment(0, 1)])
    assert not ring.publish()
    assert not ring.publish()


def test_areas_lie_on_pages_of_their_own(memory: GuestMemory) -> None:
    ring = SplitRing.allocate(memory, 256)
    memory.track_cpu_writes()
    for _ in range(256):
        ring.add([Segment(0, 1)], indirect=True)
    ring.publish()
    ring.arm()
    assert memory.take_cpu_writes()[0].isdisjoint(ring.device_pages())


def test_frame_with_any_byte_damaged_is_not_intact() -> None:
    frame = FrameMint(3).frame(9, 60)
    assert read_stamp(frame) == 9
    for place in range(len(frame)):
        damaged = bytearray(frame)
        damaged[place] ^= 1
        assert read_stamp(bytes(damaged)) is None
    assert read_stamp(frame[:-1]) is None
    assert not is_stamped(bytes(60))


@pytest.mark.parametrize("mergeable", [True, False])
@pytest.mark.parametrize("seed", range(5))
def test_frames_of_every_shape_come_back_whole(memory: GuestMemory, seed: int, mergeable: bool) -> None:
    rx, tx = (SplitRing.allocate(memory, 256, first_index=0xFFF0) for _ in range(2))
    queues = NetQueues(memory, rx, tx, seed=seed, shapes=Shapes(mergeable=mergeable))
    device = ModelLoopback(memory, rx, tx)
    mint = FrameMint(seed)
    for turn in range(20):
        queues.post_receive()
        frames = [mint.frame(seq, 60 + (seq * 97) % 1455) for seq in range(10 * turn, 10 * turn + 10)]
        for seq in range(10):
            assert queues.transmit(frames[seq], seq)
        rx.publish()
        tx.publish()
        device.serve()
        assert queues.receive() == frames
        assert [queues.take_transmit(used) for used in tx.reap()] == list(range(10))
    assert queues.rx_damaged == queues.tx_damaged == []


def test_frame_is_only_complete_with_its_last_buffer(memory: GuestMemory) -> None:
    rx, tx = (SplitRing.allocate(memory, 64) for _ in range(2))
    queues = NetQueues(memory, rx, tx, shapes=Shapes(plain=True))
    device = ModelQueue(memory, rx)
    queues.post_receive()
    rx.publish()
    parts = [bytes(10) + b"\2\0" + b"abc", b"def"]
    for place, part in enumerate(parts):
        popped = device.pop()
        assert popped is not None
        memory.write(popped[1][0][0], part)
        device.push(popped[0], len(part))
        assert queues.receive() == ([b"abcdef"] if place else [])


def test_damaged_header_and_foreign_heads_are_reported(memory: GuestMemory) -> None:
    rx, tx = (SplitRing.allocate(memory, 64) for _ in range(2))
    queues = NetQueues(memory, rx, tx)
    queues.post_receive(1)
    rx.publish()
    ModelQueue(memory, rx).push(0, 5)
    queues.receive()
    assert "num_buffers is 0" in queues.rx_damaged[0]
    ModelQueue(memory, tx).push(7, 0)
    assert [queues.take_transmit(used) for used in tx.reap()] == [None]
    assert "head 7 was not transmitted" in queues.tx_damaged[0]


class ServedGuest:
    """A guest CPU whose device is the model, served by a thread that waits for kicks."""

    def __init__(self, memory: GuestMemory) -> None:
        rx, tx = (SplitRing.allocate(memory, 256) for _ in range(2))
        self.guest = GuestCpu(NetQueues(memory, rx, tx), seed=1)
        self.device = ModelLoopback(memory, rx, tx)
        self.kicked = os.eventfd(0)
        self.calls = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(2)]
        self.signalled = list(self.calls)
        self.damage = False
        self.lose = 0
        self._ended = False
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def wires(self) -> Wires:
        return Wires(lambda _queue: os.eventfd_write(self.kicked, 1), self.calls)

    def _serve(self) -> None:
        while not self._ended:
            os.eventfd_read(self.kicked)
            while served := self.device.serve(damage=self.damage, lose=self.lose):
                self.lose = max(0, self.lose - served)
                self.device.tx.ask_for_kick_at(self.device.tx.last_avail)
                for call in self.signalled:
                    os.eventfd_write(call, 1)

    def close(self) -> None:
        self.guest.close()
        self._ended = True
        os.eventfd_write(self.kicked, 1)
        self._thread.join()
        for fd in (self.kicked, *self.calls):
            os.close(fd)


@pytest.fixture
def served(memory: GuestMemory) -> Iterator[ServedGuest]:
    made = ServedGuest(memory)
    yield made
    made.close()


def test_guest_accounts_for_every_frame_across_a_pause(served: ServedGuest) -> None:
    guest = served.guest
    guest.run(served.wires())
    assert guest.wait_for_frames(100)
    guest.pause(leave_unsent=5)
    assert guest.queues.tx.in_flight >= 5
    os.eventfd_write(served.kicked, 1)
    guest.run(served.wires())
    assert guest.wait_for_frames(100)
    guest.stop_sending()
    assert guest.wait_for(lambda ledger: len(ledger.completed) == len(ledger.sent) == len(ledger.received))
    guest.pause()
    assert guest.ledger.received == guest.ledger.completed == list(range(len(guest.ledger.sent)))
    assert guest.ledger.corrupted == []


def test_guest_notices_damage(served: ServedGuest) -> None:
    served.damage = True
    served.guest.run(served.wires())
    assert served.guest.wait_for(lambda ledger: len(ledger.corrupted) >= 5)
    served.guest.pause()
    assert served.guest.ledger.received == []


def test_guest_goes_on_when_all_that_was_under_way_is_lost(served: ServedGuest) -> None:
    served.lose = 40
    guest = served.guest
    guest.run(served.wires())
    assert guest.wait_for_frames(100)
    guest.pause()
    assert guest.ledger.received == guest.ledger.sent[40 : 40 + len(guest.ledger.received)]


def test_guest_waits_for_the_interrupt_of_frames_that_have_come(served: ServedGuest) -> None:
    guest = served.guest
    guest.run(served.wires())
    assert guest.wait_for_frames(100)
    del served.signalled[0]
    assert not guest.wait_for_frames(1_000_000, idle_s=1.0)
    guest.pause()
    assert guest.queues.rx.completed
    assert 0 < len(guest.ledger.sent) - len(guest.ledger.received) <= 24


def test_guest_names_the_buffer_that_came_back_first(served: ServedGuest) -> None:
    served.guest.watch_completion(1, 3)
    served.guest.run(served.wires())
    assert served.guest.wait_for_frames(20)
    served.guest.pause()
    assert served.guest.first_completion == {1: 3}
    with pytest.raises(StateError):
        served.guest.run(served.wires())
        served.guest.run(served.wires())
