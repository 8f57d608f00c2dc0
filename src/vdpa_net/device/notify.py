# SPDX-License-Identifier: Apache-2.0
"""The notification structure: doorbells of the queues (virtio 1.3, 4.1.4.4 and 4.1.5.2)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from vdpa_net.device.access import Place
from vdpa_net.device.function import NOTIFY_OFF_MULTIPLIER
from vdpa_net.migration.violations import ViolationLog
from vdpa_net.wire.layout import Access, Register

_STEP = NOTIFY_OFF_MULTIPLIER


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

    def places(self, offset: int, count: int) -> Iterator[Place]:
        """The doorbells that an access covers."""
        for queue in range(offset // _STEP, -(-(offset + count) // _STEP)):
            register = Register(f"doorbell[{queue}]", _STEP * queue, 2, Access.WO, clause="4.1.5.2")
            if register.end > offset and register.offset < offset + count:
                yield Place("notify", register, register.offset - offset)

    def _record(self, what: str, value: int, detail: str) -> None:
        self._violations.record("notify", what, value, "4.1.5.2", detail)
