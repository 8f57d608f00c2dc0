# SPDX-License-Identifier: Apache-2.0
"""A whole chain in one process: guest driver, device, loopback. What is sent comes back."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

from vdpa_net.backend import Backend
from vdpa_net.backend.loopback import Loopback
from vdpa_net.closing import Closing
from vdpa_net.device.net_device import NetDevice
from vdpa_net.driver.in_process import InProcessHandle
from vdpa_net.testing.dirty_log import DirtyLog
from vdpa_net.testing.guest_cpu import RX, TX
from vdpa_net.testing.guest_driver import WANTED, GuestDriver
from vdpa_net.testing.guest_memory import GuestMemory
from vdpa_net.testing.net_queues import Shapes
from vdpa_net.wire import virtio_net

LOG_IOVA = 1 << 44
MAC = "52:54:00:00:00:01"
_MEMORY = ((0, 1 << 20), (1 << 32, 4 << 20))


class LoopbackGuest(Closing):
    """`device` and `handle` are replaced when the guest moves; memory, rings and frames under way stay.

    With `first_index` the rings have been in use before and start there; `start` restores that. What of the
    features is off by default, the device is made to offer.
    """

    def __init__(
        self,
        *,
        seed: int = 0,
        shapes: Shapes | None = None,
        features: int = WANTED,
        queue_size: int = 256,
        first_index: int = 0,
        mtu: int = 1500,
        make_backend: Callable[[], Backend] = Loopback,
    ) -> None:
        self._stack = ExitStack()
        with self._stack as building:
            self.memory = building.enter_context(GuestMemory(_MEMORY))
            self.log = DirtyLog.for_memory_end(self.memory.regions[-1].end, 4096)
            building.callback(self.log.close)
            self._enabled = frozenset(
                name
                for name, bit in virtio_net.QEMU_PROPERTIES.items()
                if bit in virtio_net.OFF_BY_DEFAULT and features >> bit & 1
            )
            self._mtu = mtu
            self._make_backend = make_backend
            self.device, self.handle = self._make_device(building)
            self.driver = GuestDriver(
                self.handle,
                self.memory,
                features=features,
                queue_size=queue_size,
                seed=seed,
                shapes=shapes,
                first_index=first_index,
                region=1,
            )
            building.callback(self.driver.close)
            self._stack = building.pop_all()
        self._first_states = {queue: self.driver.rings[queue].state for queue in (RX, TX) if first_index}

    def _make_device(self, stack: ExitStack) -> tuple[NetDevice, InProcessHandle]:
        backend = self._make_backend()
        stack.callback(backend.close)
        device = NetDevice(backend, mac=MAC, mtu=self._mtu, enabled_features=self._enabled)
        stack.callback(device.close)
        handle = InProcessHandle(device)
        stack.callback(handle.close)
        return device, handle

    def start(self, states: dict[int, int] | None = None) -> None:
        """Bring the device up, at these LM_RING_STATE values or at `first_index`."""
        self.driver.start(self._first_states if states is None else states)

    def start_logging(self) -> bool:
        """Map the log and log to it; whether the device does."""
        size = -(-self.log.size_bytes // 4096) * 4096
        self.handle.dma_map(LOG_IOVA, size, self.log.fd, self.log.offset_bytes)
        return self.driver.start_logging(LOG_IOVA, LOG_IOVA + self.log.size_bytes)

    def stop(self, order: tuple[int, ...] = (RX, TX)) -> dict[int, int]:
        """Stop the queues; their LM_RING_STATE."""
        states = self.driver.stop_queues(order)
        return {queue: used << 16 | avail for queue, (avail, used) in states.items()}

    def move(self, states: dict[int, int]) -> None:
        """Go over to a new device on a loopback of its own, restored to these states, and start it."""
        self.device, self.handle = self._make_device(self._stack)
        self.driver.attach(self.handle)
        self.driver.start(states)

    def close(self) -> None:
        """End devices and memory."""
        self._stack.close()
