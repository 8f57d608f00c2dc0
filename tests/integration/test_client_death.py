# SPDX-License-Identifier: Apache-2.0
"""A client that is killed in mid-traffic leaves a device that the next one can use, and nothing else."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from vdpa_net.backend.loopback import Loopback
from vdpa_net.device.net_device import NetDevice
from vdpa_net.driver.vfio_user import VfioUserHandle
from vdpa_net.testing.guest_cpu import GuestCpu
from vdpa_net.testing.guest_driver import GuestDriver
from vdpa_net.testing.guest_memory import GuestMemory
from vdpa_net.transport.vfio_user.server import VfioUserServer

PATIENCE_S = 20

KILLS = 100

CLIENTS = """
import os
import sys
from vdpa_net.driver.vfio_user import VfioUserHandle
from vdpa_net.testing.dirty_log import DirtyLog
from vdpa_net.testing.guest_cpu import GuestCpu
from vdpa_net.testing.guest_driver import GuestDriver
from vdpa_net.testing.guest_memory import GuestMemory

def client():
    memory = GuestMemory([(0, 8 << 20)])
    handle = VfioUserHandle(sys.argv[1])
    driver = GuestDriver(handle, memory)
    driver.start()
    log = DirtyLog.for_memory_end(8 << 20)
    handle.dma_map(1 << 44, 4096, log.fd, 0)
    assert driver.start_logging(1 << 44, (1 << 44) + log.size_bytes)
    cpu = GuestCpu(driver.queues)
    cpu.run(driver.wires())
    assert cpu.wait_for_frames(50)
    print(os.getpid(), flush=True)
    cpu.wait_for(lambda ledger: False, 60)

for line in sys.stdin:
    child = os.fork()
    if not child:
        client()
    os.waitpid(child, 0)
"""
"""A process for each line of its input, which is in mid-traffic when it tells its id: forks cost little."""


@dataclass
class Holdings:
    """What this process holds, by kind."""

    fds: int
    threads: int
    memfd_mappings: int

    @classmethod
    def now(cls) -> Holdings:
        gc.collect()
        maps = Path("/proc/self/maps").read_text().splitlines()
        return cls(
            _entries("/proc/self/fd"),
            _entries("/proc/self/task"),
            sum("memfd:guest-memory" in line or "memfd:dirty-log" in line for line in maps),
        )

    @classmethod
    def with_idle_client(cls, served: Served) -> Holdings:
        """What is held beside a client that does nothing.

        Once that one is answered, the one before it is cleared away to the last descriptor; the event that
        says that it is gone comes earlier.
        """
        with VfioUserHandle(served.path):
            now = cls.now()
        assert served.gone.acquire(timeout=PATIENCE_S)
        return now


def _entries(directory: str) -> int:
    return sum(1 for _ in Path(directory).iterdir())


class Served:
    """A device behind a vfio-user socket, and a semaphore that counts clients who went away."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "vfio-user"
        self.device = NetDevice(Loopback(), mac="52:54:00:00:00:01")
        self.gone = threading.Semaphore(0)
        self.device.on_event(self._on_event)
        self.server = VfioUserServer(self.path, self.device)

    def _on_event(self, name: str, _info: dict[str, object]) -> None:
        if name == "client_detached":
            self.gone.release()

    def close(self) -> None:
        self.server.stop()
        self.device.close()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    made = Served(tmp_path)
    yield made
    made.close()


class Clients:
    """Starts clients one after the other, and kills them in mid-traffic."""

    def __init__(self, served: Served) -> None:
        self._served = served
        self._process = subprocess.Popen(
            [sys.executable, "-c", CLIENTS, str(served.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def kill_one(self) -> None:
        """Start a client, kill it in mid-traffic, and wait until the device has noticed."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("next\n")
        self._process.stdin.flush()
        os.kill(int(self._process.stdout.readline()), signal.SIGKILL)
        assert self._served.gone.acquire(timeout=PATIENCE_S), "the device did not notice"

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.fixture
def clients(served: Served) -> Iterator[Clients]:
    made = Clients(served)
    yield made
    made.close()


def use_the_device(served: Served) -> None:
    with (
        GuestMemory([(0, 8 << 20)]) as memory,
        VfioUserHandle(served.path) as handle,
        GuestDriver(handle, memory) as driver,
    ):
        assert driver.read_lm(0) == 0
        assert driver.ring_state(0) == driver.ring_state(1) == (0, 0)
        driver.start()
        cpu = GuestCpu(driver.queues)
        try:
            cpu.run(driver.wires())
            assert cpu.wait_for_frames(100)
            cpu.stop_sending()
            assert cpu.wait_for(lambda ledger: len(ledger.received) == len(ledger.sent))
        finally:
            cpu.close()
        assert cpu.ledger.received == list(range(len(cpu.ledger.sent)))
    assert served.gone.acquire(timeout=PATIENCE_S)


def test_next_client_can_use_the_device_after_one_was_killed(served: Served, clients: Clients) -> None:
    clients.kill_one()
    use_the_device(served)
    assert served.device.violations.entries == []


def test_hundred_killed_clients_leave_no_descriptor_thread_or_mapping(
    served: Served, clients: Clients
) -> None:
    use_the_device(served)
    before = Holdings.with_idle_client(served)
    for _ in range(KILLS):
        clients.kill_one()
    assert Holdings.with_idle_client(served) == before
    assert before.memfd_mappings == 0
    assert served.device.space.mappings() == []
    assert served.device.space.log_range() is None
    use_the_device(served)
    assert served.device.violations.entries == []
