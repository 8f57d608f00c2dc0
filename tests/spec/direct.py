# SPDX-License-Identifier: Apache-2.0
"""A device with its real data plane on loopback, a guest's memory and driver, and a log.

No server between.
"""

# ruff: noqa: ARG002 - Handle has the signatures of the DeviceHandle protocol

from __future__ import annotations

import os
import select
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

from vdpa_net.backend import Backend
from vdpa_net.backend.loopback import Loopback
from vdpa_net.device.function import lm_place
from vdpa_net.device.net_device import NetDevice
from vdpa_net.testing.dirty_log import DirtyLog
from vdpa_net.testing.guest_driver import WANTED, GuestDriver
from vdpa_net.testing.guest_memory import GuestMemory
from vdpa_net.testing.net_queues import Shapes
from vdpa_net.wire.virtio_pci import COMMON_CFG

RX, TX, CTRL_QUEUE = 0, 1, 2
MEMORY_BYTES = 4 << 20
LOG_IOVA = 1 << 44
BLOCK = 0x4000
CTRL, BASE, END, RING_STATE = 0x0, 0x10, 0x18, 0x20
MAC = "52:54:00:00:00:01"
DEADLINE_SECONDS = 10
PLAIN = Shapes(mergeable=True, indirect=False)


class Handle:
    """The DeviceHandle protocol straight onto a NetDevice."""

    def __init__(self, device: NetDevice) -> None:
        self.device = device

    def read(self, region: int, offset: int, size: int) -> bytes:
        return self.device.region_read(region, offset, size)

    def write(self, region: int, offset: int, data: bytes, *, posted: bool = False) -> None:
        self.device.region_write(region, offset, data)

    def region_size(self, region: int) -> int:
        info = self.device.region_info(region)
        return 0 if info is None else info.size

    def dma_map(
        self, iova: int, size: int, fd: int, offset: int, *, readable: bool = True, writable: bool = True
    ) -> None:
        self.device.dma_map(iova, size, fd, offset, readable=readable, writable=writable)

    def dma_unmap(self, iova: int, size: int) -> None:
        self.device.dma_unmap(iova, size)

    def set_irqs(self, start: int, fds: list[int | None]) -> None:
        self.device.set_irqs(start, fds)

    def attach_kick(self, queue: int, fd: int | None, doorbell_region: int, doorbell_offset: int) -> None:
        self.device.set_kick(queue, fd)

    def reset(self) -> None:
        self.device.reset()

    def close(self) -> None:
        self.device.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Rig:
    """`driver` is the guest, `log` its VMM's dirty log of all its memory, in two pages behind each other."""

    def __init__(
        self,
        features: int = WANTED,
        first_index: int = 0,
        backend: Backend | None = None,
        **options: Any,
    ) -> None:
        self.backend = backend or Loopback()
        self.device = NetDevice(self.backend, **{"mac": MAC, **options})
        self.memory = GuestMemory([(0, MEMORY_BYTES)])
        self.log = DirtyLog.for_memory_end(MEMORY_BYTES, 4096)
        self.driver = GuestDriver(
            Handle(self.device),
            self.memory,
            features=features,
            queue_size=64,
            shapes=PLAIN,
            first_index=first_index,
        )
        self.violations = self.device.violations
        self.profile = self.device.options.profile
        self.lm_bar, self.lm_offset = lm_place(self.profile)

    def close(self) -> None:
        self.device.close()
        self.driver.close()
        self.log.close()
        self.memory.close()

    def read(self, offset: int, size: int = 4) -> int:
        """An LM register."""
        return int.from_bytes(self.device.region_read(self.lm_bar, self.lm_offset + offset, size), "little")

    def write(self, offset: int, value: int, size: int = 4) -> None:
        """Write an LM register."""
        self.device.region_write(self.lm_bar, self.lm_offset + offset, value.to_bytes(size, "little"))

    def common(self, name: str) -> int:
        """A field of the common configuration."""
        register = COMMON_CFG[name]
        return int.from_bytes(
            self.device.region_read(self.profile.virtio_bar, register.offset, register.width), "little"
        )

    def set_common(self, name: str, value: int) -> None:
        """Write a field of the common configuration."""
        register = COMMON_CFG[name]
        data = value.to_bytes(register.width, "little")
        self.device.region_write(self.profile.virtio_bar, register.offset, data)

    def map_log(self, iova: int = LOG_IOVA, log: DirtyLog | None = None) -> int:
        """Map a log; returns its end address."""
        log = log or self.log
        self.device.dma_map(iova, 4096, log.fd, log.offset_bytes, readable=True, writable=True)
        return iova + log.size_bytes

    def start_log(self, base: int, end: int) -> int:
        """BASE, END, CTRL = 1; what CTRL reads then."""
        self.write(BASE, base, 8)
        self.write(END, end, 8)
        self.write(CTRL, 1)
        return self.read(CTRL)

    def exchange(self, count: int = 4, size: int = 700) -> None:
        """Send frames and receive them again; both queues have completed them on return."""
        frames = [bytes([index]) * size for index in range(1, count + 1)]
        assert self.driver.send(frames) == count
        assert self.driver.receive(count) == frames
        self.driver.finish_transmit()

    def first_frame(self) -> bytes:
        """The first frame that arrives, an announcement too."""
        self.driver.queues.post_receive()
        self.driver.publish()
        call = self.driver.call_fds[RX + 1]
        while not (frames := self.driver.queues.receive()):
            if not self.driver.rings[RX].arm():
                assert select.select([call], [], [], DEADLINE_SECONDS)[0], "no frame came"
                os.eventfd_read(call)
        return frames[0]

    def stop(self, queue: int) -> int:
        """queue_enable = 0; LM_RING_STATE."""
        self.set_common("queue_select", queue)
        self.set_common("queue_enable", 0)
        assert self.common("queue_enable") == 0
        return self.read(self.profile.ring_state(queue))

    def kinds(self) -> list[str]:
        """What was recorded, in order."""
        return [entry.what for entry in self.violations.entries]


@contextmanager
def rig(**options: Any) -> Iterator[Rig]:
    """A rig that is closed at the end."""
    made = Rig(**options)
    try:
        yield made
    finally:
        made.close()


def eventfd_count(fd: int) -> int:
    """Signals on an eventfd since the last look."""
    try:
        return os.eventfd_read(fd)
    except BlockingIOError:
        return 0
