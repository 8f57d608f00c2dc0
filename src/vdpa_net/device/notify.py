# SPDX-License-Identifier: Apache-2.0
"""The notification structure: doorbells of the queues (virtio 1.3, 4.1.4.4 and 4.1.5.2)."""

from __future__ import annotations

from collections.abc import Callable

from vdpa_net.device.function import NOTIFY_OFF_MULTIPLIER
from vdpa_net.migration.violations import ViolationLog


class Notify:
    """Writes kick the queue whose place they hit; what is written should be that queue's index."""

    def __init__(self, queues: int, kick: Callable[[int], None], violations: ViolationLog) -> None:
        self._queues = queues
        self._kick = kick
        self._violations = violations

    def read(self, offset: int, count: int) -> bytes:  # noqa: ARG002
        """Doorbells read 0."""
        return bytes(count)

    def write(self, offset: int, data: bytes) -> None:
        """Kick a queue.

        A wrong value is recorded and kicks all the same: a lost kick could hang the guest.
        """
        queue, inside = divmod(offset, NOTIFY_OFF_MULTIPLIER)
        value = int.from_bytes(data, "little")
        if queue >= self._queues or inside:
            self._record("no_doorbell", value, f"write at offset {offset:#x}")
            return
        if value != queue or len(data) not in (2, 4):
            self._record(
                "bad_doorbell_value", value, f"queue {queue}, {len(data)} bytes: expected its 16-bit index"
            )
        self._kick(queue)

    def _record(self, what: str, value: int, detail: str) -> None:
        self._violations.record("notify", what, value, "4.1.5.2", detail)
