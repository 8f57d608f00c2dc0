# SPDX-License-Identifier: Apache-2.0
"""The receive and the transmit queue of a guest's NIC, with buffers in every shape that virtio allows.

Receive and transmit buffers lie on pages of their own: what changes in a receive buffer, a device wrote.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from vdpa_net.testing.guest_memory import GuestMemory
from vdpa_net.testing.ring import DriverRing, Segment, Used

HEADER_BYTES = 12
"""struct virtio_net_hdr with num_buffers (virtio 1.3, 5.1.6)."""

SLOT_BYTES = 8192
LARGE_BUFFER_BYTES = 1526
"""The least that holds any frame without MRG_RXBUF: 1514 bytes and the header (virtio 1.3, 5.1.6.3.1)."""

SMALL_BUFFER_BYTES = 520
"""With MRG_RXBUF some buffers are this small, so that a large frame takes three."""

_NUM_BUFFERS_OFFSET = 10


@dataclass(frozen=True)
class Shapes:
    """Which shapes buffers take. `plain` is one descriptor per buffer, for runs where only speed matters."""

    mergeable: bool = True
    indirect: bool = True
    plain: bool = False


class NetQueues:
    """Buffers on two rings. One thread at a time; `seed` decides all sizes, offsets and splits."""

    def __init__(
        self,
        memory: GuestMemory,
        rx: DriverRing,
        tx: DriverRing,
        *,
        seed: int = 0,
        shapes: Shapes | None = None,
        rx_slots: int = 192,
        tx_slots: int = 64,
        region: int = 0,
        slots: tuple[Sequence[int], Sequence[int]] | None = None,
    ) -> None:
        """`slots` are addresses of buffers for both queues, allocated by the caller."""
        self.memory, self.rx, self.tx = memory, rx, tx
        self.shapes = shapes or Shapes()
        self.rx_damaged: list[str] = []
        self.tx_damaged: list[str] = []
        self._random = random.Random(seed)
        rx_free, tx_free = slots or (
            [memory.allocate(SLOT_BYTES, region=region) for _ in range(count)]
            for count in (rx_slots, tx_slots)
        )
        self._rx_free, self._tx_free = deque(rx_free), deque(tx_free)
        self._rx_posted: dict[int, tuple[int, list[Segment]]] = {}
        self._tx_posted: dict[int, tuple[int, int]] = {}
        self._assembling: list[bytes] = []
        self._missing = 0

    def add_buffers(self, region: int, slots: int = 64) -> None:
        """Prefer new buffers from this region of memory for reception."""
        self._rx_free.extendleft(self.memory.allocate(SLOT_BYTES, region=region) for _ in range(slots))

    def move_to(self, memory: GuestMemory) -> None:
        """Go on in other memory that holds the same bytes: the guest has migrated."""
        self.memory = memory
        self.rx.move_to(memory)
        self.tx.move_to(memory)

    def forget(self, ring: DriverRing) -> None:
        """The ring was reset: its buffers are the driver's again, and a frame that was half there is gone."""
        if ring is self.rx:
            self._rx_free.extend(slot for slot, _ in self._rx_posted.values())
            self._rx_posted.clear()
            self._missing = 0
        else:
            self._tx_free.extend(slot for slot, _ in self._tx_posted.values())
            self._tx_posted.clear()

    # --- receive --------------------------------------------------------------------------------

    def post_receive(self, limit: int = 1 << 16) -> int:
        """Put free receive buffers into the ring until `limit` are posted; returns how many were put."""
        count = 0
        while self._rx_free and len(self._rx_posted) < limit and self.rx.free_descriptors >= 4:
            slot = self._rx_free.popleft()
            segments, indirect = self._receive_shape(slot)
            self._rx_posted[self.rx.add(segments, indirect=indirect)] = (slot, segments)
            count += 1
        return count

    @property
    def receive_posted(self) -> int:
        """Receive buffers that the device has."""
        return len(self._rx_posted)

    def _receive_shape(self, slot: int) -> tuple[list[Segment], bool]:
        if self.shapes.plain:
            return [Segment(slot, LARGE_BUFFER_BYTES, True)], False
        least = SMALL_BUFFER_BYTES if self.shapes.mergeable else LARGE_BUFFER_BYTES
        length = self._random.choice((least, LARGE_BUFFER_BYTES, self._random.randint(least, 4096)))
        start = slot + self._random.choice(
            (0, self._random.randint(0, SLOT_BYTES - length), 4096 - length // 2)
        )
        return self._split(start, length, writable=True)

    def _split(self, start: int, length: int, *, writable: bool) -> tuple[list[Segment], bool]:
        """One to three segments, cut anywhere, the header included (virtio 1.3, 2.7.4.1)."""
        cuts = sorted(self._random.sample(range(1, length), self._random.choice((0, 0, 1, 2))))
        edges = [0, *cuts, length]
        segments = [Segment(start + low, high - low, writable) for low, high in pairwise(edges)]
        return segments, self.shapes.indirect and self._random.random() < 0.3

    def receive(self) -> list[bytes]:
        """Frames that have arrived, each put together from its buffers, without its header."""
        return [frame for used in self.rx.reap() if (frame := self.take_receive(used)) is not None]

    def take_receive(self, used: Used) -> bytes | None:
        """Account for one used receive buffer; the frame, if it is complete with this buffer."""
        slot, segments = self._rx_posted.pop(used.head, (None, []))
        if slot is None:
            self.rx_damaged.append(f"used index {used.used_index}: head {used.head} was not posted")
            return None
        self._rx_free.append(slot)
        data = self._gather(segments, used.written)
        if len(data) < used.written:
            self.rx_damaged.append(f"used index {used.used_index}: {used.written} bytes in {len(data)}")
        if not self._missing:
            self._missing = self._buffers_announced(data, used)
            self._assembling = []
        self._assembling.append(data)
        self._missing -= 1
        return b"".join(self._assembling)[HEADER_BYTES:] if not self._missing else None

    def _buffers_announced(self, data: bytes, used: Used) -> int:
        announced = int.from_bytes(data[_NUM_BUFFERS_OFFSET:HEADER_BYTES], "little")
        if len(data) < HEADER_BYTES or announced < 1 or (announced > 1 and not self.shapes.mergeable):
            self.rx_damaged.append(
                f"used index {used.used_index}: {len(data)} bytes whose num_buffers is {announced}"
            )
            return 1
        return announced

    def _gather(self, segments: list[Segment], length: int) -> bytes:
        parts: list[bytes] = []
        for segment in segments:
            if length <= 0:
                break
            taken = min(length, segment.length)
            parts.append(self.memory.read(segment.gpa, taken))
            length -= taken
        return b"".join(parts)

    # --- transmit -------------------------------------------------------------------------------

    def transmit(self, frame: bytes, token: int = 0) -> bool:
        """Put a frame into the ring; False if there is no room. `token` comes back with its completion."""
        if not self._tx_free or self.tx.free_descriptors < 4:
            return False
        slot = self._tx_free.popleft()
        data = bytes(HEADER_BYTES) + frame
        spread = SLOT_BYTES - len(data)
        start = (
            slot if self.shapes.plain else slot + self._random.choice((0, self._random.randint(0, spread)))
        )
        self.memory.write(start, data)
        if self.shapes.plain:
            segments, indirect = [Segment(start, len(data))], False
        else:
            segments, indirect = self._split(start, len(data), writable=False)
        self._tx_posted[self.tx.add(segments, indirect=indirect)] = (slot, token)
        return True

    @property
    def transmit_posted(self) -> int:
        """Frames that the device has and did not complete."""
        return len(self._tx_posted)

    def take_transmit(self, used: Used) -> int | None:
        """Account for one used transmit buffer; its token, None if the device did not own it."""
        slot, token = self._tx_posted.pop(used.head, (None, None))
        if slot is None:
            self.tx_damaged.append(f"used index {used.used_index}: head {used.head} was not transmitted")
            return None
        self._tx_free.append(slot)
        return token
