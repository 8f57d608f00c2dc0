# SPDX-License-Identifier: Apache-2.0
"""How long an unmap takes while the device transmits as fast as its tap takes frames.

An unmap is answered when no worker can touch the range any more. It waits for the batch that a worker has in
hand, whatever the range, and for nothing else: so it may take a batch longer than one of a device at rest.

`python -m vdpa_net.bench.unmaps SOCKET TAP COUNT` is the process with the device: for each line of its
standard input it waits for traffic, unmaps pages that no ring uses, and prints microseconds.
"""

from __future__ import annotations

import json
import os
import random
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from vdpa_net.backend.tap import Tap
from vdpa_net.bench.case import SUBJECT, Case, Goal, Shared
from vdpa_net.bench.native import DEVICE_CPU, FRONT_END_CPU, Peers
from vdpa_net.device.net_device import NetDevice
from vdpa_net.driver.in_process import InProcessHandle
from vdpa_net.driver.vdpa_driver import VdpaDriver
from vdpa_net.driver.vhost_backend import VhostBackend
from vdpa_net.errors import LabError
from vdpa_net.lab.network import LabNetwork
from vdpa_net.transport.vhost_user.server import VhostUserServer

TAP = "unmaps0"
COUNT = 500
PARTS = 10
"""In so many parts, each of which counts if frames passed meanwhile."""
BATCH_FRAMES = 64
"""What a worker takes from a ring at a time, at most."""
AT_REST = "one at rest, and a batch"
IOVA = 1 << 40
"""Far from the front end's memory."""
PAGE_BYTES = 4096
MAC = "52:54:00:be:0c:78"
PAUSE_SECONDS = 0.0002, 0.0005
LOAD_SECONDS = 0.5
"""Of traffic: the unmaps take less."""
TRAFFIC_SECONDS = 5.0
UNDER_WAY_FRAMES = 10_000
"""Many, as a device that starts sends some by itself."""
PROGRAM_SECONDS = 30.0


@contextmanager
def unmap_cases(directory: Path, network: LabNetwork) -> Iterator[list[Case]]:
    """The median and the longest of many unmaps under load."""
    socket = directory / "unmaps.sock"
    words = [sys.executable, "-m", "vdpa_net.bench.unmaps", str(socket), TAP, str(COUNT)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            _told(process)
            network.set_up(TAP, True)
            shared = Shared(partial(_sample, process, socket, Peers(LOAD_SECONDS)))
            yield [
                _case(shared, "median", "median", (Goal(AT_REST, at_most=1.0),)),
                _case(shared, "longest", f"longest of {COUNT}", ()),
            ]
        finally:
            process.communicate(timeout=PROGRAM_SECONDS)


def _case(shared: Shared, key: str, title: str, goals: tuple[Goal, ...]) -> Case:
    takes = {SUBJECT: shared.figure(key), AT_REST: shared.figure(AT_REST)}
    return Case(
        f"control-unmap-{key}", f"unmap under transmit load, {title}", "us", takes, goals, is_paced=False
    )


def _sample(process: subprocess.Popen[str], socket: Path, peers: Peers) -> dict[str, float]:
    """Both run at the same time; the front end sleeps while the ring is full, and leaves its processor."""
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()
    options = {"socket": socket, "direction": "tx", "bytes": 64, "gentle": True}
    at_rest = _told(process)["at_rest_us"]
    mega_frames = peers.mega_frames("front-end", **options)
    told = _told(process)
    return {
        "median": told["median_us"],
        "longest": told["max_us"],
        AT_REST: at_rest + BATCH_FRAMES / mega_frames,
    }


def _told(process: subprocess.Popen[str]) -> Mapping[str, float]:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise LabError(f"the process that unmaps under load ended with {process.wait()}")
    told: Mapping[str, float] = json.loads(line)
    if "error" in told:
        raise LabError(f"unmaps under load: {told['error']}")
    return told


def serve_unmaps(socket: Path, tap: str, count: int) -> None:
    """The process with the device: everything but this thread is on the device's processor."""
    os.sched_setaffinity(0, {DEVICE_CPU})
    memory = os.memfd_create("unmaps")
    os.truncate(memory, PAGE_BYTES)
    with ExitStack() as stack:
        backend = Tap(tap)
        stack.callback(backend.close)
        device = stack.enter_context(NetDevice(backend, mac=MAC))
        driver = VdpaDriver(InProcessHandle(device))
        stack.enter_context(VhostUserServer(socket, VhostBackend(driver)))
        os.sched_setaffinity(0, {FRONT_END_CPU})
        print(json.dumps({}), flush=True)
        for _ in sys.stdin:
            before = _frames(tap)
            at_rest = statistics.median(_unmaps(device, memory, count // PARTS))
            print(json.dumps({"at_rest_us": at_rest}), flush=True)
            print(json.dumps(_under_load(device, memory, tap, count, before)), flush=True)


def _under_load(device: NetDevice, memory: int, tap: str, count: int, before: int) -> dict[str, object]:
    """Wait for traffic beyond the frames that passed before, then unmap while it lasts."""
    deadline = time.monotonic() + TRAFFIC_SECONDS
    while _frames(tap) < before + UNDER_WAY_FRAMES:
        if time.monotonic() > deadline:
            return {"error": f"{_frames(tap) - before} frames passed {tap}, expected {UNDER_WAY_FRAMES}"}
    spent: list[float] = []
    while len(spent) < count:
        before = _frames(tap)
        some = _unmaps(device, memory, count // PARTS)
        if _frames(tap) == before:
            # The front end's time is over: these may have been at rest.
            break
        spent += some
    if not spent:
        return {"error": f"the traffic through {tap} was over before memory was unmapped"}
    return {
        "median_us": statistics.median(spent),
        "max_us": max(spent),
    }


def _unmaps(device: NetDevice, memory: int, count: int) -> list[float]:
    """Microseconds of unmaps at random moments; one right behind a map would find a worker that waits."""
    pages = [IOVA + 2 * number * PAGE_BYTES for number in range(count)]
    for iova in pages:
        device.dma_map(iova, PAGE_BYTES, memory, 0, readable=True, writable=True)
    spent = []
    for iova in pages:
        time.sleep(random.uniform(*PAUSE_SECONDS))
        started = time.perf_counter_ns()
        device.dma_unmap(iova, PAGE_BYTES)
        spent.append((time.perf_counter_ns() - started) / 1000)
    return spent


def _frames(tap: str) -> int:
    """Frames that the kernel had of the tap."""
    found = re.search(rf"^\s*{tap}:\s*\d+\s+(\d+)", Path("/proc/net/dev").read_text(), re.MULTILINE)
    assert found is not None, f"/proc/net/dev has no {tap}"
    return int(found[1])


if __name__ == "__main__":
    serve_unmaps(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
