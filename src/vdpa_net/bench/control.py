# SPDX-License-Identifier: Apache-2.0
"""The control path: register accesses and doorbells over vfio-user, maps, start-up, memory, idle cost."""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from vdpa_net.bench.case import SUBJECT, Bound, Case, Shared
from vdpa_net.bench.native import DEVICE_CPU, Peers
from vdpa_net.bench.unmaps import unmap_cases
from vdpa_net.driver.pci_scan import VirtioFunction, scan
from vdpa_net.driver.vfio_user import VfioUserHandle
from vdpa_net.errors import LabError
from vdpa_net.lab.network import LabNetwork
from vdpa_net.lab.side import SideProcess

ACCESSES = 2000
DOORBELLS = 10_000
TRANSMIT_QUEUE = 1
CROWD = 64
CROWD_SECONDS = 120
MAP_BATCH = 20_000
MILLION = 1_000_000
MAP_PATIENCE_S = 30.0
"""What a sample may take, for `Peers`: it waits ten times as long before it gives up."""
START_PATTERN = re.compile(r"start to listening: (\d+(?:\.\d+)?) ms")
IDLE_SECONDS = 1.0
NETDEV = "loopback,id=n"
DEVICE = "virtio-net-pci,netdev=n,vdpa=on"


@contextmanager
def control_cases(directory: Path, network: LabNetwork, *, quick: bool) -> Iterator[list[Case]]:
    """Cases of the control path; the limits are those that the project sets itself."""
    with ExitStack() as stack:
        unmaps = stack.enter_context(unmap_cases(directory, network))
        process, socket = _serve(stack, directory, "served")
        # A device has one client: the native one that rings doorbells and maps has a device of its own.
        _, bell_socket = _serve(stack, directory, "rung")
        handle = stack.enter_context(VfioUserHandle(socket))
        peers = Peers(0.0)
        yield [
            _case("read", "register read over vfio-user", "us", partial(_reads, handle)),
            *_doorbell_cases(peers, scan(handle), bell_socket),
            *_map_cases(bell_socket, MAP_BATCH if quick else MILLION),
            *unmaps,
            _case("start", "start to listening", "ms", partial(_start, directory), 300.0),
            _case("rss", "resident memory of a device", "MiB", partial(_rss, process.pid), 60.0),
            *_crowd_cases(directory),
            _case(
                "idle",
                "processor time of an idle, attached device",
                "ms/s",
                partial(_idle, process.pid),
                0.0,
                max_rounds=3,
            ),
        ]


def _serve(stack: ExitStack, directory: Path, name: str) -> tuple[SideProcess, Path]:
    socket = directory / f"{name}.sock"
    words = ["serve", "--socket", str(socket), "--netdev", NETDEV, "--device", DEVICE]
    process = SideProcess(name, words, directory)
    stack.callback(process.stop)
    process.wait_ready()
    return process, socket


def _case(
    key: str,
    title: str,
    unit: str,
    take: Callable[[], float],
    at_most: float | None = None,
    *,
    max_rounds: int | None = None,
) -> Case:
    bound = None if at_most is None else Bound(at_most)
    return Case(f"control-{key}", title, unit, {SUBJECT: take}, bound=bound, max_rounds=max_rounds)


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


def _doorbell_cases(peers: Peers, function: VirtioFunction, socket: Path) -> Iterator[Case]:
    """Rung as a VMM in C does it; beside it what the same messages take between two threads that do nothing
    else, on one processor and on two: the scheduler chooses where the device hears them."""
    notify, common = function.notify, function.common
    stopped = {"region": notify.region, "offset": notify.offset}
    running = {
        "region": notify.region,
        "offset": notify.offset + TRANSMIT_QUEUE * function.notify_off_multiplier,
        "queue": TRANSMIT_QUEUE,
        "common-region": common.region,
        "common-offset": common.offset,
    }
    for key, title, place in (
        ("doorbell", "doorbell over vfio-user", stopped),
        ("doorbell-running", "doorbell of a queue that runs", running),
    ):
        takes = {
            SUBJECT: partial(_doorbells, peers, socket=socket, **place),
            "echo": partial(_doorbells, peers),
            "echo, two processors": partial(_doorbells, peers, **{"echo-cpu": DEVICE_CPU}),
        }
        yield Case(f"control-{key}", title, "us", takes, bound=Bound(15.0))


def _doorbells(peers: Peers, **options: object) -> float:
    return float(peers.sample("doorbell", count=DOORBELLS, **options)["median_us"])


def _crowd_cases(directory: Path) -> list[Case]:
    """What one of many devices in one process costs."""
    units = {"start_ms": "ms", "rss_mib": "MiB", "threads": "threads"}
    crowd = Shared(partial(_crowd, directory))
    return [
        _case(f"crowd-{key}", f"one of {CROWD} devices in a process", unit, crowd.figure(key), max_rounds=3)
        for key, unit in units.items()
    ]


def _crowd(directory: Path) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-m", "vdpa_net.bench.crowd", str(CROWD), str(directory)],
        capture_output=True,
        text=True,
        check=False,
        timeout=CROWD_SECONDS,
    )
    if done.returncode != 0:
        raise LabError(f"{CROWD} devices in a process: {done.stderr.strip()}")
    return {key: float(value) for key, value in json.loads(done.stdout).items()}


def _map_cases(socket: Path, count: int) -> list[Case]:
    """So many maps that are there at the same time, and their unmaps, made as a VMM in C makes them."""
    shared = Shared(lambda: Peers(MAP_PATIENCE_S).sample("maps", count=count, socket=socket))
    return [
        Case(
            f"control-{key}s",
            f"{count} {key}s of 4 KiB",
            "us each",
            {SUBJECT: shared.figure(f"{key}_us")},
            # A million maps within 30 s.
            bound=Bound(30.0) if key == "map" else None,
            max_rounds=2,
        )
        for key in ("map", "unmap")
    ]


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
