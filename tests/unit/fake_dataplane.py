# SPDX-License-Identifier: Apache-2.0
"""A data plane without a ring: keeps the calls that a device makes, and what a test lets it answer.

Signatures are those of the extension module, whether or not a fake needs the argument.
"""

# ruff: noqa: ARG002, PLR0917

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Any

from vdpa_net.backend import Limits
from vdpa_net.device.engine import Engine
from vdpa_net.device.net_device import NetDevice
from vdpa_net.errors import DmaError
from vdpa_net.wire.virtio_pci import COMMON_CFG

MAC = "52:54:00:aa:bb:cc"


class FakeSpace:
    """A DMA space of byte arrays."""

    def __init__(self) -> None:
        self.maps: dict[int, bytearray] = {}
        self.without_file: list[range] = []
        self.calls: list[str] = []
        self.log: tuple[int, int] | None = None
        self.violations: list[Any] = []
        self.miss_fd: int | None = None
        self.answers: list[tuple[str, int, bool]] = []
        self._misses: list[tuple[int, bool]] = []

    def watch_misses(self, event_fd: int | None) -> None:
        self.miss_fd = event_fd

    def miss(self, *misses: tuple[int, bool]) -> None:
        """The data plane misses these."""
        assert self.miss_fd is not None
        self._misses += misses
        os.eventfd_write(self.miss_fd, 1)

    def take_misses(self, most: int) -> list[tuple[int, bool]]:
        taken, self._misses = self._misses[:most], self._misses[most:]
        return taken

    def forget_misses(self) -> None:
        """Their pages have been mapped."""
        self._misses.clear()

    def retry_miss(self, iova: int, write: bool) -> None:
        self.answers.append(("retry", iova, write))

    def refuse_miss(self, iova: int, write: bool) -> None:
        self.answers.append(("refuse", iova, write))

    def map(self, iova: int, size: int, fd: int, offset: int, readable: bool, writable: bool) -> None:
        self.maps[iova] = bytearray(size)

    def unmap(self, iova: int, size: int) -> None:
        if iova not in self.maps:
            raise DmaError("no such map", errno=errno.ENOENT)
        del self.maps[iova]

    def reserve(self, iova: int, size: int) -> None:
        self.without_file.append(range(iova, iova + size))

    def is_without_file(self, iova: int) -> bool:
        return any(iova in reserved for reserved in self.without_file)

    def unmap_within(self, iova: int, size: int) -> int:
        inside = [
            start for start, data in self.maps.items() if iova <= start < start + len(data) <= iova + size
        ]
        for start in inside:
            del self.maps[start]
        return len(inside)

    def map_count(self) -> int:
        return len(self.maps)

    def unmap_all(self) -> int:
        self.calls.append("unmap_all")
        count = len(self.maps)
        self.maps.clear()
        return count

    def is_mapped(self, iova: int, size: int, writable: bool) -> bool:
        return any(start <= iova and iova + size <= start + len(data) for start, data in self.maps.items())

    def read(self, iova: int, size: int) -> bytes:
        for start, data in self.maps.items():
            if start <= iova and iova + size <= start + len(data):
                return bytes(data[iova - start : iova - start + size])
        raise DmaError(f"{iova:#x} is not mapped", errno=errno.EFAULT)

    def start_log(self, base: int, end: int) -> None:
        if end <= base or not self.is_mapped(base, end - base, True):
            raise DmaError(f"log {base:#x} to {end:#x} is not mapped writable", errno=errno.EFAULT)
        self.calls.append("start_log")
        self.log = (base, end)

    def stop_log(self) -> None:
        self.calls.append("stop_log")
        self.log = None

    def barrier(self) -> None:
        self.calls.append("barrier")

    def log_counters(self) -> dict[str, int]:
        return {"marks": 0, "marks_dropped_by_fault": 7}

    def take_violations(self) -> list[Any]:
        taken, self.violations = self.violations, []
        return taken


class FakePlane:
    """Queues that run or not. `calls` is what happened, in order; `final` what a stop answers."""

    def __init__(self, space: FakeSpace, backend: Any, queue_pairs: int, control_queue: bool) -> None:
        self.space = space
        self.calls: list[tuple[Any, ...]] = space.calls  # type: ignore[assignment]
        self.running: dict[int, tuple[int, ...]] = {}
        self.final: dict[int, tuple[int, int]] = {}
        self.snapshot: dict[int, tuple[int, int]] = {}
        self.call_fds: dict[int, int | None] = {}
        self.kick_override: dict[int, int | None] = {}
        self.restored: list[int] = []
        self.broken: list[int] = []
        self.due: set[int] = set()
        self.violations: list[Any] = []
        self.commands: list[bytes] = []
        self.acks: list[bytes] = []
        self.frames: list[bytes] = []
        self.on_transmit: Callable[[bytes], None] = lambda _: None
        self._event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._kicks = [os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in range(2 * queue_pairs + 1)]
        self.multiqueue = True
        self.fail_start: Exception | None = None
        self.faults: list[tuple[str, int, float, int]] = []

    def install_fault(self, name: str, queue: int, value: float, seed: int) -> None:
        self.faults.append((name, queue, value, seed))

    def fault_counts(self) -> dict[tuple[str, int], int]:
        return {(name, queue): 7 for name, queue, *_ in self.faults}

    def start_queue(
        self,
        index: int,
        size: int,
        desc: int,
        driver: int,
        device: int,
        last_avail_idx: int,
        used_idx: int,
        features: int,
        restored: bool,
    ) -> None:
        if self.fail_start is not None:
            raise self.fail_start
        self.calls.append(("start", index))
        self.running[index] = (size, desc, driver, device, last_avail_idx, used_idx, features)
        if restored:
            self.restored.append(index)

    def stop_queue(self, index: int) -> tuple[int, int]:
        self.calls.append(("stop", index))
        started = self.running.pop(index, (0,) * 7)
        return self.final.get(index, (started[4], started[5]))

    def ring_state(self, index: int) -> tuple[int, int]:
        return self.snapshot.get(index, (0, 0))

    def is_running(self, index: int) -> bool:
        return index in self.running

    def set_kick(self, index: int, fd: int | None) -> None:
        self.kick_override[index] = fd

    def kick(self, index: int) -> None:
        self.calls.append(("kick", index))

    def bell(self, index: int) -> None:
        """None of its own: `kick_fd` is what a server signals."""
        self.kick_fd(index)

    def kick_fd(self, index: int) -> int:
        return self._kicks[index]

    def set_call(self, index: int, fd: int | None) -> None:
        self.call_fds[index] = fd

    def process_control(self, handler: Callable[[bytes], bytes]) -> int:
        self.calls.append(("control",))
        taken, self.commands = self.commands, []
        self.acks += [handler(command) for command in taken]
        return len(taken)

    def set_multiqueue(self, on: bool) -> None:
        self.multiqueue = on

    def set_poll_us(self, poll_us: int) -> None:
        self.poll_us = poll_us

    def set_coalesce_us(self, coalesce_us: int) -> None:
        self.coalesce_us = coalesce_us

    def set_active_pairs(self, count: int) -> None:
        self.calls.append(("active", count))

    def set_receive_filter(self, receive_filter: Any) -> None:
        self.filter = receive_filter

    def set_packet_hook(self, callback: Any) -> None:
        self.hook = callback

    def transmit(self, frame: bytes) -> bool:
        self.frames.append(frame)
        self.on_transmit(frame)
        return True

    def flush_backend(self) -> int:
        self.calls.append(("flush",))
        return 0

    def queue_counters(self, index: int) -> dict[str, int]:
        return {"packets": 0}

    def event_fd(self) -> int:
        return self._event

    def signal(self) -> None:
        os.eventfd_write(self._event, 1)

    def take_violations(self) -> list[Any]:
        taken, self.violations = self.violations, []
        return taken

    def take_broken_queues(self) -> list[int]:
        taken, self.broken = self.broken, []
        return taken

    def is_interrupt_due(self, index: int) -> bool:
        return index in self.due

    def close(self) -> None:
        for fd in (self._event, *self._kicks):
            os.close(fd)


class FakeBackend:
    """A back end that writes what it is told into the data plane's list of calls."""

    name = "fake"
    limits = Limits(8, steers_itself=False, has_network=False)
    queue_pairs = 1

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.fail: Exception | None = None

    def native(self) -> Any:
        return None

    def set_carrier(self, on: bool) -> None:
        self.calls.append(("carrier", on))

    def set_active_pairs(self, count: int) -> None:
        self.calls.append(("backend active", count))

    def set_offloads(self, features: int) -> None:
        if self.fail is not None:
            raise self.fail
        self.calls.append(("offloads", features))

    def close(self) -> None:
        return


class FakeRig:
    """A device on fakes, with short ways to its registers."""

    def __init__(self, **options: Any) -> None:
        self.backend = FakeBackend()
        self.planes: list[FakePlane] = []
        self.device = NetDevice(
            self.backend,
            **{"mac": MAC, "engine": Engine(FakeSpace, self._plane), **options},  # type: ignore[arg-type]
        )
        self.plane = self.planes[0]
        self.space = self.plane.space
        self.violations = self.device.violations

    def _plane(self, *arguments: Any) -> Any:
        plane = FakePlane(*arguments)
        plane.calls = self.backend.calls
        self.planes.append(plane)
        return plane

    def kinds(self) -> list[str]:
        """What was recorded, in order."""
        return [entry.what for entry in self.violations.entries]

    def close(self) -> None:
        self.device.close()

    def read(self, offset: int, size: int) -> int:
        """A register of BAR 4."""
        return int.from_bytes(self.device.region_read(4, offset, size), "little")

    def write(self, offset: int, size: int, value: int) -> None:
        """Write a register of BAR 4."""
        self.device.region_write(4, offset, value.to_bytes(size, "little"))

    def common(self, name: str) -> int:
        """A field of the common configuration."""
        return self.read(COMMON_CFG[name].offset, COMMON_CFG[name].width)

    def set_common(self, name: str, value: int) -> None:
        """Write a field of the common configuration."""
        self.write(COMMON_CFG[name].offset, COMMON_CFG[name].width, value)

    def offered(self) -> int:
        """The features that the device offers."""
        word = 0
        for half in range(2):
            self.set_common("device_feature_select", half)
            word |= self.common("device_feature") << 32 * half
        return word

    def negotiate(self, features: int | None = None) -> bool:
        """ACKNOWLEDGE to FEATURES_OK; whether the device grants it."""
        features = self.offered() if features is None else features
        for status in (0, 1, 3):
            self.set_common("device_status", status)
        for half in range(2):
            self.set_common("driver_feature_select", half)
            self.set_common("driver_feature", features >> 32 * half & 0xFFFFFFFF)
        self.set_common("device_status", 11)
        return bool(self.common("device_status") & 8)

    def set_up_queue(self, queue: int, *, enable: bool = True) -> None:
        """Addresses and queue_enable of one queue."""
        self.set_common("queue_select", queue)
        for at, name in enumerate(("queue_desc", "queue_driver", "queue_device"), 1):
            self.set_common(name, (queue << 16) + (at << 12))
        if enable:
            self.set_common("queue_enable", 1)

    def start(self, queues: tuple[int, ...] = (0, 1, 2)) -> None:
        """A driver's whole initialisation."""
        assert self.negotiate()
        for queue in queues:
            self.set_up_queue(queue)
        self.set_common("device_status", 15)
