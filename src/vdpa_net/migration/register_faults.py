# SPDX-License-Identifier: Apache-2.0
"""Faults of the LM_RING_STATE registers: filters between what is true and what a driver reads."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from vdpa_net.migration.faults import LateRingState, RingState
from vdpa_net.record import Record
from vdpa_net.wire.lm import pack_ring_state, unpack_ring_state

_INDICES = 1 << 16
_OFFSET = (1 << 15) - 1


class RingShape(Record):
    """How the indices of a ring move: 16 bits that wrap, or in a packed ring of `size` descriptors an offset
    with the wrap counter in bit 15 (the vhost encoding)."""

    size: int
    is_packed: bool

    def move(self, index: int, entries: int) -> int:
        """The index so many entries on, or back."""
        if not self.is_packed:
            return (index + entries) % _INDICES
        turns, offset = divmod((index & _OFFSET) + entries, self.size)
        return offset | (index >> 15 ^ turns & 1) << 15

    def distance(self, start: int, end: int) -> int:
        """Entries from one index on to another; what goes round completely (packed: twice) is not seen."""
        if not self.is_packed:
            return (end - start) % _INDICES
        passed = (end & _OFFSET) - (start & _OFFSET) + self.size * ((start ^ end) >> 15)
        return passed % (2 * self.size)


Shapes = Callable[[int], RingShape]
"""The shape of a queue's ring, by the queue's index."""


class RegisterFault(Protocol):
    """What the LM block asks at each read of a stopped queue's ring state; it counts in `fired`."""

    fired: int

    def show(self, queue: int, value: int) -> int:
        """What is read instead of `value`."""


class ShiftedRingState:
    """`ring-state`: last_avail_idx reads wrong."""

    def __init__(self, fault: RingState, shapes: Shapes) -> None:
        self._fault = fault
        self._shapes = shapes
        self.fired = 0

    def show(self, queue: int, value: int) -> int:
        """See RegisterFault."""
        if queue != self._fault.queue:
            return value
        last_avail_idx, used_idx = unpack_ring_state(value)
        return pack_ring_state(self._shapes(queue).move(last_avail_idx, self._fault.delta), used_idx)


class LateRegister:
    """`late-ring-state`: after a stop the register reads old for a while.

    `on_event` hears the device's events.
    """

    def __init__(
        self, fault: LateRingState, shapes: Shapes, clock_ns: Callable[[], int] = time.monotonic_ns
    ) -> None:
        self._fault = fault
        self._shapes = shapes
        self._clock_ns = clock_ns
        self._started_at: dict[int, int] = {}
        self._late: dict[int, tuple[int, int]] = {}
        self.fired = 0

    def on_event(self, name: str, info: dict[str, object]) -> None:
        """Note where each queue started and how far it came until its stop."""
        if name not in ("queue_started", "queue_stopped"):
            return
        queue, used_idx = int(str(info["queue"])), int(str(info["used_idx"]))
        if name == "queue_started":
            self._started_at[queue] = used_idx
            self._late.pop(queue, None)
        else:
            moved = self._shapes(queue).distance(self._started_at.get(queue, used_idx), used_idx)
            until = self._clock_ns() + self._fault.ms * 1_000_000
            self._late[queue] = (min(moved, self._fault.entries), until)

    def show(self, queue: int, value: int) -> int:
        """See RegisterFault."""
        entries, until = self._late.get(queue, (0, 0))
        if self._clock_ns() >= until:
            return value
        last_avail_idx, used_idx = unpack_ring_state(value)
        move = self._shapes(queue).move
        return pack_ring_state(move(last_avail_idx, -entries), move(used_idx, -entries))
