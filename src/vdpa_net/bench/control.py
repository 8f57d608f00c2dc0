# SPDX-License-Identifier: Apache-2.0
"""The control path: register accesses and doorbells over vfio-user, maps, start-up, memory, idle cost."""

from __future__ import annotations

import mmap
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from vdpa_net.bench.case import SUBJECT, Bound, Case
from vdpa_net.driver.pci_scan import scan
from vdpa_net.driver.vfio_user import VfioUserHandle
from vdpa_net.errors import LabError
from vdpa_net.lab.side import SideProcess

ACCESSES = 2000
MAP_BATCH = 20_000
MILLION = 1_000_000
PAGE_BYTES = mmap.PAGESIZE
START_PATTERN = re.compile(r"start to listening: (\d+(?:\.\d+)?) ms")
IDLE_SECONDS = 1.0
NETDEV = "loopback,id=n"
DEVICE = "virtio-net-pci,netdev=n,vdpa=on"


@contextmanager
def control_cases(directory: Path, *, quick: bool) -> Iterator[list[Case]]:
    """Cases of the control path; the limits are those that the project sets itself."""
    socket = directory / "control.sock"
    with ExitStack() as stack:
        process = SideProcess(
            "served", ["serve", "--socket", str(socket), "--netdev", NETDEV, "--device", DEVICE], directory
        )
        stack.callback(process.stop)
        process.wait_ready()
        handle = stack.enter_context(VfioUserHandle(socket))
        maps = MAP_BATCH if quick else MILLION
        yield [
            _case("read", "register read over vfio-user", "us", partial(_reads, handle)),
            _case("doorbell", "doorbell over vfio-user", "us", partial(_doorbells, handle), 15.0),
            # The bound is what is left of 30 s for a million maps and as many unmaps.
            _case("maps", f"{maps} maps and unmaps of 4 KiB", "us each", partial(_maps, handle, maps), 30.0),
            _case("start", "start to listening", "ms", partial(_start, directory), 300.0),
            _case("rss", "resident memory of a device", "MiB", partial(_rss, process.pid), 60.0),
            _case(
                "idle", "processor time of an idle, attached device", "ms/s", partial(_idle, process.pid), 0.0
            ),
        ]


def _case(key: str, title: str, unit: str, take: Callable[[], float], at_most: float | None = None) -> Case:
    bound = None if at_most is None else Bound(at_most)
    return Case(f"control-{key}", title, unit, {SUBJECT: take}, bound=bound)


def _timed(action: Callable[[], object]) -> float:
    """Median microseconds of one call."""
    spent = []
    for _ in range(ACCESSES):
        started = time.perf_counter_ns()
        action()
        spent.append(time.perf_counter_ns() - started)
    return statistics.median(spent) / 1000


def _reads(handle: VfioUserHandle) -> float:
    function = scan(handle)
    return _timed(lambda: handle.read(function.common.region, function.common.offset, 4))


def _doorbells(handle: VfioUserHandle) -> float:
    function = scan(handle)
    where = function.notify
    return _timed(lambda: handle.write(where.region, where.offset, bytes(2)))


def _maps(handle: VfioUserHandle, count: int) -> float:
    memory = os.memfd_create("maps")
    try:
        os.ftruncate(memory, count * PAGE_BYTES)
        started = time.perf_counter_ns()
        for page in range(count):
            # Neighbours in the file are not neighbours in the address space: nothing can be joined.
            handle.dma_map(2 * page * PAGE_BYTES, PAGE_BYTES, memory, page * PAGE_BYTES)
        for page in range(count):
            handle.dma_unmap(2 * page * PAGE_BYTES, PAGE_BYTES)
        return (time.perf_counter_ns() - started) / 1000 / count
    finally:
        os.close(memory)


def _start(directory: Path) -> float:
    socket = directory / "start.sock"
    words = ["serve", "--socket", str(socket), "--netdev", NETDEV, "--device", DEVICE]
    process = subprocess.Popen(
        [sys.executable, "-m", "vdpa_net", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert process.stdout is not None
        printed = []
        for line in process.stdout:
            printed.append(line)
            if found := START_PATTERN.search(line):
                return float(found[1])
        raise LabError(f"vdpa-net serve did not say when it listens: {''.join(printed)}")
    finally:
        process.terminate()
        process.communicate()


def _rss(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"^VmRSS:\s+(\d+) kB$", status, re.MULTILINE)
    if found is None:
        raise LabError(f"process {pid} has no VmRSS: it has ended")
    return int(found[1]) / 1024


def _idle(pid: int) -> float:
    before = cpu_ns(pid)
    time.sleep(IDLE_SECONDS)
    return (cpu_ns(pid) - before) / 1e6 / IDLE_SECONDS


def cpu_ns(pid: int, threads: set[int] | None = None) -> int:
    """Nanoseconds that threads of a process (None: all of them) have run, in the kernel or outside of it."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(
        int((task / "schedstat").read_text().split()[0])
        for task in tasks
        if threads is None or int(task.name) in threads
    )
