# SPDX-License-Identifier: Apache-2.0
"""The virtqueues as registers see them, and their start, stop and ring state in the data plane."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vdpa_net.errors import DmaError, VdpaNetError
from vdpa_net.migration.violations import ViolationLog
from vdpa_net.wire.lm import pack_ring_state, unpack_ring_state
from vdpa_net.wire.virtio_pci import MSI_NO_VECTOR

if TYPE_CHECKING:
    from vdpa_net._native import DataPlane, DmaSpace

_USED_IDX = 2  # offset of idx in the used ring (virtio 1.3, 2.7.8)

Emit = Callable[[str, dict[str, object]], None]


@dataclass(slots=True)
class Queue:
    """Registers of one virtqueue.

    `last_avail_idx` and `used_idx` are where it starts, or where it stopped. With `used_idx_from_ring` only
    the former was given.
    """

    index: int
    max_size: int
    size: int = 0
    msix_vector: int = MSI_NO_VECTOR
    enabled: bool = False
    desc: int = 0
    driver: int = 0
    device: int = 0
    last_avail_idx: int = 0
    used_idx: int = 0
    state_written: bool = False
    used_idx_from_ring: bool = False
    started: bool = False
    stopped: bool = False

    def __post_init__(self) -> None:
        self.size = self.max_size


class QueueSet:
    """All queues of a device. The caller holds the device's lock."""

    def __init__(
        self, plane: DataPlane, space: DmaSpace, max_sizes: list[int], violations: ViolationLog, emit: Emit
    ) -> None:
        self._plane = plane
        self._space = space
        self._max_sizes = max_sizes
        self._violations = violations
        self._emit = emit
        self._queues: list[Queue] = [Queue(index, size) for index, size in enumerate(max_sizes)]

    def __len__(self) -> int:
        return len(self._queues)

    def __getitem__(self, index: int) -> Queue:
        return self._queues[index]

    def __iter__(self) -> Iterator[Queue]:
        return iter(self._queues)

    def get(self, index: int) -> Queue | None:
        """The queue, if there is one with this index."""
        return self._queues[index] if 0 <= index < len(self._queues) else None

    def start(self, queue: Queue, features: int) -> bool:
        """Start an enabled queue where its ring state says; True if that state was restored.

        Raises DmaError or StateError; the queue then does not run.
        """
        self._complete(queue)
        restored = queue.state_written and (queue.last_avail_idx, queue.used_idx) != (0, 0)
        if queue.state_written and not restored:
            self._check_used_idx(queue)
        queue.state_written = False
        self._plane.start_queue(
            queue.index,
            queue.size,
            queue.desc,
            queue.driver,
            queue.device,
            queue.last_avail_idx,
            queue.used_idx,
            features,
        )
        queue.started, queue.stopped = True, False
        self._emit("queue_started", {"queue": queue.index, "restored": restored, **_state(queue)})
        return restored

    def stop(self, queue: Queue) -> None:
        """Stop a queue if it was started and keep its state; mends one that broke.

        On return its DMA is over and its marks are made.
        """
        if not queue.started:
            return
        queue.last_avail_idx, queue.used_idx = self._plane.stop_queue(queue.index)
        queue.started = False
        queue.stopped = True
        self._emit("queue_stopped", {"queue": queue.index, **_state(queue)})

    def reset(self) -> None:
        """Stop everything and return every queue to its initial state."""
        for queue in self._queues:
            self.stop(queue)
            self._plane.set_call(queue.index, None)
        self._queues = [Queue(index, size) for index, size in enumerate(self._max_sizes)]

    def ring_state(self, queue: int) -> int:
        """LM_RING_STATE of a queue."""
        item = self._queues[queue]
        if item.started:
            return pack_ring_state(*self._plane.ring_state(queue))
        return pack_ring_state(item.last_avail_idx, item.used_idx)

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
        item.last_avail_idx, item.used_idx = unpack_ring_state(value)
        item.state_written = True
        item.stopped = False
        return True

    def _complete(self, queue: Queue) -> None:
        if not queue.used_idx_from_ring:
            return
        queue.used_idx_from_ring = False
        # A ring that can't be read is reported by the start.
        with contextlib.suppress(DmaError):
            queue.used_idx = int.from_bytes(self._space.read(queue.device + _USED_IDX, 2), "little")

    def _check_used_idx(self, queue: Queue) -> None:
        # To the data plane a written initial state is a fresh start; any other one it checks itself.
        try:
            used_idx = int.from_bytes(self._space.read(queue.device + _USED_IDX, 2), "little")
        except DmaError:
            return  # start_queue reports rings that are not mapped
        if used_idx:
            detail = f"restored used_idx is 0, but used->idx in memory is {used_idx}"
            self._violations.record(f"queue {queue.index}", "used_idx", 0, "LM_RING_STATE", detail)


def _state(queue: Queue) -> dict[str, object]:
    return {"last_avail_idx": queue.last_avail_idx, "used_idx": queue.used_idx}


def start_error(queue: Queue, error: VdpaNetError) -> str:
    """The detail of a violation for a queue that can't start."""
    return f"desc {queue.desc:#x}, driver {queue.driver:#x}, device {queue.device:#x}: {error}"
