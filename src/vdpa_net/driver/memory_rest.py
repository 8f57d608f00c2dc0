# SPDX-License-Identifier: Apache-2.0
"""Memory that is removed while rings run, and may be back in a moment: the rings rest meanwhile.

A front end that cuts its memory anew (QEMU, when a memory slot changes its size or its place) removes what
changes, message by message, and adds it again, message by message. The guest knows nothing of that, and its
buffers lie in memory that is gone for the time between two messages.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

from vdpa_net.driver.memory_table import MemoryTable
from vdpa_net.driver.timers import Timer
from vdpa_net.driver.vhost_rings import VhostRings
from vdpa_net.errors import VdpaNetError
from vdpa_net.wire.vhost_user import MemoryRegion

REST_S: Final = 0.5
"""How long after the last message rings wait for memory that does not come back: a front end sends what
belongs to one change without a pause of its own, but a busy machine may hold it up. What is too short costs a
queue, what is too long half a second of traffic when a guest gives up memory."""


class MemoryRest:
    """Rings rest from a removal until every address that went is in a region again, or REST_S at most.

    The caller holds the back end's lock, `lock`. `complain` is told of rings that don't go on.
    """

    def __init__(
        self,
        rings: VhostRings,
        memory: MemoryTable,
        lock: threading.RLock,
        complain: Callable[[str], None],
    ) -> None:
        self._rings = rings
        self._memory = memory
        self._lock = lock
        self._complain = complain
        self._gone: list[MemoryRegion] = []
        self._timer: Timer | None = None
        memory.on_remove = self._removing

    def added(self) -> None:
        """A region has come. Raises what the device raises."""
        if not self._gone:
            return
        if all(self._memory.has(region.guest_address, region.size) for region in self._gone):
            self.end()
        else:
            self._wait()

    def end(self) -> None:
        """Wait for nothing any more. Raises what the device raises."""
        self.forget()
        self._rings.go_on()

    def forget(self) -> None:
        """There are no rings that could go on."""
        self._gone.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _removing(self, region: MemoryRegion) -> None:
        if self._rings.rest():
            self._gone.append(region)
            self._wait()

    def _wait(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = Timer(REST_S, self._lock, self._time_is_up)

    def _time_is_up(self) -> None:
        try:
            self.end()
        except VdpaNetError as error:
            self._complain(f"rings that rested while memory was gone do not go on: {error}")
