# SPDX-License-Identifier: Apache-2.0
"""The machine that figures were measured on, in words."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path


def describe() -> dict[str, object]:
    """Processor, cores, memory, kernel, and how busy the machine was when the run began."""
    cpuinfo = Path("/proc/cpuinfo").read_text()
    model = re.search(r"^model name\s*: (.*)$", cpuinfo, re.MULTILINE)
    memory = re.search(r"^MemTotal:\s+(\d+) kB$", Path("/proc/meminfo").read_text(), re.MULTILINE)
    return {
        "processor": model[1] if model else platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_mib": int(memory[1]) >> 10 if memory else 0,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_at_start": os.getloadavg()[0],
    }
