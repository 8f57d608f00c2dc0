# SPDX-License-Identifier: Apache-2.0
"""How many queue pairs receive packets (virtio 1.3, 5.1.6.5.5)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vdpa_net.backend import Backend
from vdpa_net.device.queues import QueueSet

if TYPE_CHECKING:
    from vdpa_net._native import DataPlane


class ActivePairs:
    """The first `count` pairs receive; one after a reset. The caller holds the device's lock."""

    def __init__(self, plane: DataPlane, backend: Backend, queues: QueueSet, queue_pairs: int) -> None:
        self._plane = plane
        self._backend = backend
        self._queues = queues
        self.max_count = queue_pairs
        self.count = queue_pairs
        self._commanded = False
        self.reset()

    def reset(self) -> None:
        """One pair, until something else is asked for. Raises BackendError."""
        self._commanded = False
        self._set(1)

    def command(self, count: int) -> None:
        """The driver has said how many (VQ_PAIRS_SET, or a register of the profile). Raises BackendError."""
        self._commanded = True
        self._set(count)

    def _set(self, count: int) -> None:
        """On return packets are received on the first `count` pairs alone.

        Pairs that become inactive deliver what has come for them, as far as there are buffers.
        """
        if count == self.count:
            return
        # A worker must never wait for a queue of a tap that is detached: that is an error to it.
        if count > self.count:
            self._backend.set_active_pairs(count)
            self._plane.set_active_pairs(count)
        else:
            self._plane.set_active_pairs(count)
            self._backend.set_active_pairs(count)
        self.count = count

    def follow_queues(self) -> None:
        """Let those pairs receive that are enabled, unless a command has said how many.

        For drivers without a control queue. Stopping queues in ascending order changes nothing until the
        last one: queues that are drained one after the other for a migration shall not be detached from
        their back end meanwhile. Raises BackendError.
        """
        enabled = [queue.index for queue in self._queues if queue.enabled and queue.index % 2 == 0]
        if enabled and not self._commanded:
            self._set(min(enabled[-1] // 2 + 1, self.max_count))
