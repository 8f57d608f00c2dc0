# SPDX-License-Identifier: Apache-2.0
"""DMA_UNMAP while packets move: when it is answered, the device touches the range no more."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from vdpa_net.backend.loopback import Loopback
from vdpa_net.device.net_device import NetDevice
from vdpa_net.driver.vfio_user import VfioUserHandle
from vdpa_net.testing.guest_cpu import RX, TX, GuestCpu
from vdpa_net.testing.guest_driver import GuestDriver
from vdpa_net.testing.guest_memory import GuestMemory
from vdpa_net.transport.vfio_user.server import VfioUserServer
from vdpa_net.wire.virtio_pci import Status

ROUNDS = 20
MEMORY_BYTES = 8 << 20
PATIENCE_S = 20
STATUS = 0x14


class Served:
    """A device behind a socket, and the end of what it does with its memory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.device = NetDevice(Loopback(), mac="52:54:00:00:00:01")
        self.broken = threading.Event()
        self.device.on_event(lambda name, _info: self.broken.set() if name == "needs_reset" else None)
        self.server = VfioUserServer(path, self.device)

    def close(self) -> None:
        self.server.close()
        self.device.close()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    made = Served(tmp_path / "vfio-user")
    yield made
    made.close()


def contents(memory: GuestMemory) -> bytes:
    return memory.read(0, MEMORY_BYTES)


def lose_memory_under_traffic(served: Served, handle: VfioUserHandle) -> None:
    served.broken.clear()
    with GuestMemory([(0, MEMORY_BYTES)]) as memory, GuestDriver(handle, memory) as driver:
        driver.start()
        cpu = GuestCpu(driver.queues)
        try:
            cpu.run(driver.wires())
            assert cpu.wait_for_frames(50)
            handle.dma_unmap(0, MEMORY_BYTES)
        finally:
            cpu.pause()
        after_the_reply = contents(memory)
        # The guest may have stopped without a kick, and then nothing has to be looked at.
        for queue in (RX, TX):
            driver.kick(queue)
        assert served.broken.wait(PATIENCE_S), "nobody noticed"
        assert contents(memory) == after_the_reply
        assert handle.read(4, STATUS, 1)[0] & Status.DEVICE_NEEDS_RESET
        cpu.close()


def test_unmapping_under_traffic_is_complete_when_it_is_answered(served: Served) -> None:
    with VfioUserHandle(served.path) as handle:
        for _ in range(ROUNDS):
            lose_memory_under_traffic(served, handle)
    assert served.device.space.mappings() == []
    assert set(served.device.violations.kinds) <= {"dma", "queue_broken"}


def test_device_works_again_after_a_reset_and_a_new_map(served: Served) -> None:
    with VfioUserHandle(served.path) as handle:
        lose_memory_under_traffic(served, handle)
        with GuestMemory([(0, MEMORY_BYTES)]) as memory, GuestDriver(handle, memory) as driver:
            driver.start()
            assert driver.send([b"\x02" * 64]) == 1
            assert driver.receive(1) == [b"\x02" * 64]
