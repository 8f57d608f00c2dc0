# SPDX-License-Identifier: Apache-2.0
"""A PCI function for the socket tests, which records what it is told, and tests that it is one."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vdpa_net.errors import AccessError, DmaError
from vdpa_net.transport.vfio_user.server import PciFunction

BAR_BYTES = 0x8000
CONFIG_BYTES = 4096


@dataclass(frozen=True)
class FakeRegion:
    size: int
    readable: bool = True
    writable: bool = True


@dataclass(frozen=True)
class FakeDoorbell:
    region: int
    offset: int
    size_bytes: int
    queue: int
    fd: int


@dataclass
class FakeFunction:
    """Two regions of plain memory; DMA maps are kept with the inode of their file."""

    num_vectors: int = 40
    doorbell_count: int = 0
    watched: bool = True
    calls: list[tuple[object, ...]] = field(default_factory=list)
    maps: dict[int, tuple[int, int | None, int]] = field(default_factory=dict)
    vectors: dict[int, int] = field(default_factory=dict)
    error: BaseException | None = None
    detached: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def __post_init__(self) -> None:
        self.changed = threading.Condition()
        self.memory = {4: bytearray(BAR_BYTES), 7: bytearray(CONFIG_BYTES)}
        self.bells = [
            FakeDoorbell(4, 0x3000 + 4 * queue, 2, queue, os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
            for queue in range(self.doorbell_count)
        ]

    def record(self, call: tuple[object, ...]) -> None:
        with self.changed:
            self.calls.append(call)
            self.changed.notify_all()

    def wait_for(self, call: tuple[object, ...], deadline_s: float = 20) -> None:
        """Wait until this was called, and forget one such call."""
        with self.changed:
            assert self.changed.wait_for(lambda: call in self.calls, deadline_s), (
                f"{call} not in {self.calls}"
            )
            self.calls.remove(call)

    def close(self) -> None:
        for bell in self.bells:
            os.close(bell.fd)
        self.disable_irqs()

    def region_info(self, index: int) -> FakeRegion | None:
        return FakeRegion(len(self.memory[index])) if index in self.memory else None

    def _checked(self, index: int, offset: int, count: int) -> bytearray:
        if index not in self.memory or offset + count > len(self.memory[index]):
            raise AccessError(f"region {index} offset {offset:#x}: outside")
        return self.memory[index]

    def region_read(self, index: int, offset: int, count: int) -> bytes:
        if self.error is not None:
            raise self.error
        return bytes(self._checked(index, offset, count)[offset : offset + count])

    def region_write(self, index: int, offset: int, data: bytes) -> None:
        self._checked(index, offset, len(data))[offset : offset + len(data)] = data
        self.record(("write", index, offset, data))

    def dma_map(
        self, iova: int, size: int, fd: int | None, offset: int, *, readable: bool, writable: bool
    ) -> None:
        if any(iova < start + item[0] and start < iova + size for start, item in self.maps.items()):
            raise DmaError(f"map at {iova:#x} overlaps another", errno=errno.EEXIST)
        inode = None if fd is None else os.fstat(fd).st_ino
        self.maps[iova] = (size, inode, offset)
        self.record(("map", iova, size, offset, readable, writable))

    def dma_unmap_within(self, iova: int, size: int) -> int:
        end = iova + size
        touched = {
            start: item[0] for start, item in self.maps.items() if iova < start + item[0] and start < end
        }
        if any(start < iova or start + length > end for start, length in touched.items()):
            raise DmaError(f"unmap at {iova:#x} cuts a map")
        for start in touched:
            del self.maps[start]
        return len(touched)

    def map_space(self) -> None:
        return None

    def dma_unmap_all(self) -> int:
        count = len(self.maps)
        self.maps.clear()
        return count

    def set_irqs(self, start: int, fds: Sequence[int | None]) -> None:
        for vector, fd in enumerate(fds, start):
            if vector in self.vectors:
                os.close(self.vectors.pop(vector))
            if fd is not None:
                self.vectors[vector] = os.dup(fd)
        self.record(("set_irqs", start, [fd is not None for fd in fds]))

    def trigger_irqs(self, start: int, flags: Sequence[bool]) -> None:
        for vector, raised in enumerate(flags, start):
            if raised and vector in self.vectors:
                os.eventfd_write(self.vectors[vector], 1)
        self.record(("trigger", start, list(flags)))

    def mask_irqs(self, start: int, flags: Sequence[bool], *, masked: bool) -> None:
        self.record(("mask", start, list(flags), masked))

    def notify_mask(self, start: int, fds: Sequence[int | None], *, masked: bool) -> None:
        self.record(("notify_mask", start, [fd is not None for fd in fds], masked))

    def disable_irqs(self) -> None:
        while self.vectors:
            os.close(self.vectors.popitem()[1])
        self.record(("disable",))

    def doorbells(self) -> list[FakeDoorbell]:
        return self.bells

    def queue_bell(self, queue: int) -> None:  # noqa: ARG002
        return None

    def on_watched(self, tell: Callable[[bool], None]) -> Callable[[], None]:
        tell(self.watched)
        self.tell_watched = tell
        return lambda: None

    def reset(self) -> None:
        self.record(("reset",))

    def detach_client(self) -> None:
        self.dma_unmap_all()
        self.disable_irqs()
        self.record(("detach",))
        self.detached.release()


@contextlib.contextmanager
def memfd(name: str = "ram", size: int = 8192) -> Iterator[int]:
    fd = os.memfd_create(name)
    try:
        os.ftruncate(fd, size)
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def eventfds(count: int) -> Iterator[list[int]]:
    fds = [os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK) for _ in range(count)]
    try:
        yield fds
    finally:
        for fd in fds:
            os.close(fd)


def open_fds() -> set[str]:
    """What this process has open: descriptor and what it is."""
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found.add(f"{entry.name} {entry.readlink()}")
    return {entry for entry in found if "/proc/" not in entry}


def test_fake_function_is_a_pci_function() -> None:
    function: PciFunction = FakeFunction()
    assert function.num_vectors == 40
