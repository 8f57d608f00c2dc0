# SPDX-License-Identifier: Apache-2.0
"""The virtqueues as registers see them, and their start, stop and ring state in the data plane."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from vdpa_net.errors import DmaError, VdpaNetError
from vdpa_net.migration.violations import ViolationLog
from vdpa_net.wire.lm import (
    initial_ring_state,
    is_within_packed_ring,
    pack_ring_state,
    unpack_ring_state,
)
from vdpa_net.wire.virtio_pci import F_RING_PACKED, MSI_NO_VECTOR

if TYPE_CHECKING:
    from vdpa_net._native import DataPlane, DmaSpace

_RING_IDX = 2  # offset of idx in the available and the used ring (virtio 1.3, 2.7.6 and 2.7.8)

Emit = Callable[[str, dict[str, object]], None]


class Queue:
    """Registers of one virtqueue.

    `ring_state` is LM_RING_STATE while the queue does not run: where it starts, or where it stopped. None: it
    was neither written nor has the queue run, so it is the initial one. With `used_idx_from_ring` only its
    avail half was given.
    """

    __slots__ = (
        "desc",
        "device",
        "driver",
        "enabled",
        "index",
        "max_size",
        "msix_vector",
        "ring_state",
        "size",
        "started",
        "state_written",
        "stopped",
        "used_idx_from_ring",
    )

    def __init__(self, index: int, max_size: int) -> None:
        self.index = index
        self.max_size = self.size = max_size
        self.msix_vector = MSI_NO_VECTOR
        self.enabled = self.started = self.stopped = False
        self.desc = self.driver = self.device = 0
        self.ring_state: int | None = None
        self.state_written = self.used_idx_from_ring = False


class QueueSet:
    """All queues of a device. The caller holds the device's lock."""

    def __init__(
        self, plane: DataPlane, space: DmaSpace, max_sizes: list[int], violations: ViolationLog, emit: Emit
    ) -> None:
        """`max_sizes`: of every queue that the device can have."""
        self._plane = plane
        self._space = space
        self._max_sizes = max_sizes
        self.total = len(max_sizes)
        self._violations = violations
        self._emit = emit
        self._queues: list[Queue] = [Queue(index, size) for index, size in enumerate(max_sizes)]
        self.features = 0
        """The negotiated features: whether RING_PACKED is among them decides what a ring state means."""

    def __len__(self) -> int:
        return len(self._queues)

    def lay_out(self, max_sizes: list[int]) -> None:
        """Have queues of these sizes until the reset: which there are depends on the negotiated features."""
        self._queues = [
            queue if queue.max_size == size else Queue(queue.index, size)
            for queue, size in zip(self._queues, max_sizes, strict=False)
        ]

    def __getitem__(self, index: int) -> Queue:
        return self._queues[index]

    def __iter__(self) -> Iterator[Queue]:
        return iter(self._queues)

    def get(self, index: int) -> Queue | None:
        """The queue, if there is one with this index."""
        return self._queues[index] if 0 <= index < len(self._queues) else None

    @property
    def is_packed(self) -> bool:
        """Whether the rings are packed ones."""
        return bool(self.features >> F_RING_PACKED & 1)

    def start(self, queue: Queue) -> bool:
        """Start an enabled queue where its ring state says; True if that is where another device stopped.

        Raises DmaError or StateError; the queue then does not run.
        """
        self._complete(queue)
        self._refuse_impossible_state(queue)
        initial = initial_ring_state(packed=self.is_packed)
        state = initial if queue.ring_state is None else queue.ring_state
        last_avail_idx, used_idx = unpack_ring_state(state)
        # A stack that always writes the register writes the initial state on a fresh start.
        moved = queue.state_written and state != initial
        queue.state_written = False
        self._plane.start_queue(
            queue.index,
            queue.size,
            queue.desc,
            queue.driver,
            queue.device,
            last_avail_idx,
            used_idx,
            self.features,
            queue.ring_state is not None,
        )
        queue.started, queue.stopped = True, False
        self._emit(
            "queue_started", {"queue": queue.index, "restored": moved, **_indices(state), **_place(queue)}
        )
        return moved

    def _refuse_impossible_state(self, queue: Queue) -> None:
        """A failed restore must not kill a NIC."""
        if queue.ring_state is None or not queue.state_written:
            return
        if self.is_packed:
            self._refuse_beyond(queue, queue.ring_state)
        else:
            self._refuse_unavailable(queue, queue.ring_state)

    def _refuse_unavailable(self, queue: Queue, state: int) -> None:
        """A last_avail_idx that the ring can't have: a queue that was stopped in order is at used->idx."""
        try:
            avail_idx = int.from_bytes(self._space.read(queue.driver + _RING_IDX, 2), "little")
            used_idx = int.from_bytes(self._space.read(queue.device + _RING_IDX, 2), "little")
        except DmaError:
            return  # the start reports rings that are not mapped
        last_avail_idx, _ = unpack_ring_state(state)
        if (avail_idx - last_avail_idx) & 0xFFFF <= queue.size:
            return
        detail = (
            f"last_avail_idx is {last_avail_idx:#x}, avail->idx {avail_idx:#x} in a ring of {queue.size}; "
            f"the queue starts at used->idx {used_idx:#x}"
        )
        self._violations.record(f"queue {queue.index}", "restored_avail_idx", state, "LM_RING_STATE", detail)
        queue.ring_state = pack_ring_state(used_idx, used_idx)

    def _refuse_beyond(self, queue: Queue, state: int) -> None:
        """A packed state beyond the ring is as good as none."""
        if is_within_packed_ring(state, queue.size):
            return
        detail = f"LM_RING_STATE lies beyond a packed ring of {queue.size}; the queue starts anew"
        self._violations.record(f"queue {queue.index}", "ring_state_beyond", state, "LM_RING_STATE", detail)
        queue.ring_state, queue.state_written = None, False

    def stop(self, queue: Queue) -> None:
        """Stop a queue if it was started and keep its state; mends one that broke.

        On return its DMA is over and its marks are made.
        """
        if not queue.started:
            return
        requested_ns = time.monotonic_ns()
        queue.ring_state = pack_ring_state(*self._plane.stop_queue(queue.index))
        queue.started = False
        queue.stopped = True
        stopped: dict[str, object] = {"queue": queue.index, "requested_ns": requested_ns}
        self._emit("queue_stopped", stopped | _indices(queue.ring_state))

    def reset_queue(self, queue: Queue) -> None:
        """Stop one queue and return it to its initial state (virtio 1.3, 2.6.1)."""
        self.stop(queue)
        self._queues[queue.index] = Queue(queue.index, queue.max_size)
        self._emit("queue_reset", {"queue": queue.index})

    def reset(self) -> None:
        """Stop everything and return every queue to its initial state."""
        for queue in self._queues:
            self.stop(queue)
            self._plane.set_call(queue.index, None)
        self._queues = [Queue(index, size) for index, size in enumerate(self._max_sizes)]
        self.features = 0

    def ring_state(self, queue: int) -> int:
        """LM_RING_STATE of a queue."""
        item = self._queues[queue]
        if item.started:
            return pack_ring_state(*self._plane.ring_state(queue))
        return initial_ring_state(packed=self.is_packed) if item.ring_state is None else item.ring_state

    def has_stopped(self, queue: int) -> bool:
        """Whether ring state is that of a queue that ran and was stopped."""
        return self._queues[queue].stopped

    def restore(self, queue: int, value: int, *, used_idx_from_ring: bool = False) -> bool:
        """Let a queue start at this LM_RING_STATE; False if it is enabled.

        `used_idx_from_ring`: the used half was not written. If no earlier write gave it, the ring does.
        """
        item = self._queues[queue]
        if item.enabled:
            return False
        item.used_idx_from_ring = used_idx_from_ring and (item.used_idx_from_ring or not item.state_written)
        item.ring_state = value
        item.state_written = True
        item.stopped = False
        return True

    def _complete(self, queue: Queue) -> None:
        """Only last_avail_idx was restored: a packed ring has no used index in memory, a split one has."""
        if not queue.used_idx_from_ring or queue.ring_state is None:
            return
        queue.used_idx_from_ring = False
        last_avail_idx, _ = unpack_ring_state(queue.ring_state)
        used_idx = last_avail_idx
        if not self.is_packed:
            # A ring that can't be read is reported by the start.
            with contextlib.suppress(DmaError):
                used_idx = int.from_bytes(self._space.read(queue.device + _RING_IDX, 2), "little")
        queue.ring_state = pack_ring_state(last_avail_idx, used_idx)


def _indices(state: int) -> dict[str, object]:
    last_avail_idx, used_idx = unpack_ring_state(state)
    return {"last_avail_idx": last_avail_idx, "used_idx": used_idx}


def _place(queue: Queue) -> dict[str, object]:
    return {"size": queue.size, "desc": queue.desc, "driver": queue.driver, "device": queue.device}


def start_error(queue: Queue, error: VdpaNetError) -> str:
    """The detail of a violation for a queue that can't start."""
    return f"desc {queue.desc:#x}, driver {queue.driver:#x}, device {queue.device:#x}: {error}"
