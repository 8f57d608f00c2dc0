# SPDX-License-Identifier: Apache-2.0
"""Many devices in one process: `python -m vdpa_net.bench.crowd COUNT DIRECTORY` prints what one costs."""

from __future__ import annotations

import json
import re
import resource
import sys
import time
from contextlib import ExitStack
from pathlib import Path

from vdpa_net.backend.loopback import Loopback
from vdpa_net.device.net_device import NetDevice
from vdpa_net.transport.vfio_user.server import VfioUserServer


def serve_many(count: int, directory: Path) -> dict[str, float]:
    """Start so many devices, each on a socket of its own, and end them.

    `start_ms`: for each of them until it listens; `rss_mib` and `threads`: what each adds to the process.
    """
    with ExitStack() as stack:
        before = _status("VmRSS"), _status("Threads")
        started = time.perf_counter()
        for number in range(count):
            backend = Loopback()
            stack.callback(backend.close)
            mac = f"52:54:00:00:{number >> 8:02x}:{number & 255:02x}"
            device = stack.enter_context(NetDevice(backend, mac=mac))
            stack.enter_context(VfioUserServer(directory / f"{number}.sock", device))
        spent = time.perf_counter() - started
        after = _status("VmRSS"), _status("Threads")
    rss, threads = (late - early for early, late in zip(before, after, strict=True))
    return {"start_ms": 1000 * spent / count, "rss_mib": rss / 1024 / count, "threads": threads / count}


def _status(field: str) -> int:
    text = Path("/proc/self/status").read_text()
    found = re.search(rf"^{field}:\s+(\d+)", text, re.MULTILINE)
    assert found is not None, f"/proc/self/status has no {field}"
    return int(found[1])


if __name__ == "__main__":
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    print(json.dumps(serve_many(int(sys.argv[1]), Path(sys.argv[2]))))
