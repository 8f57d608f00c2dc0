# SPDX-License-Identifier: Apache-2.0
"""The machine that figures were measured on, and the versions of the peers, in words."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping
from pathlib import Path

PEER_PACKAGES = {"QEMU": r"qemu-system-(?:x86|arm)", "DPDK": "dpdk"}


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
        "load_at_start": round(os.getloadavg()[0], 2),
    }


def peer_versions(root: Path) -> dict[str, str]:
    """Versions of the peers in the root file system of a lab image, as its packages tell them."""
    status = root / "var/lib/dpkg/status"
    packages = status.read_text(errors="replace") if status.is_file() else ""
    found = {
        name: re.search(rf"^Package: {package}\n(?:.+\n)*?Version: (?:\d+:)?([\d.]+)", packages, re.MULTILINE)
        for name, package in PEER_PACKAGES.items()
    }
    return {name: match[1] for name, match in found.items() if match}


def words(host: Mapping[str, object]) -> str:
    """A line about the machine of a result."""
    parts = [
        f"{host['processor']}, {host['cores']} cores",
        f"{int(str(host['memory_mib'])) / 1024:.0f} GiB" if "memory_mib" in host else "",
        f"Linux {host['kernel']}" if "kernel" in host else "",
        *(f"{name} {version}" for name, version in _peers(host).items()),
        f"load {host['load_at_start']:.1f} at the start" if "load_at_start" in host else "",
    ]
    return ", ".join(part for part in parts if part)


def _peers(host: Mapping[str, object]) -> Mapping[str, str]:
    peers = host.get("peers")
    return peers if isinstance(peers, dict) else {}
