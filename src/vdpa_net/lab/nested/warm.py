# SPDX-License-Identifier: Apache-2.0
"""A level-2 guest that has booted already: its state, made once on the host and kept in the cache.

Booting executes code that runs once, which is what TCG in TCG is slowest at: minutes, against seconds for a
guest that comes in by QEMU's own migration. The guest boots on the host, on a vhost-user NIC like that of the
level-2 guest and with the same QEMU, and is saved when its traffic agent is ready.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from vdpa_net.errors import LabError
from vdpa_net.lab.image import cache_directory
from vdpa_net.lab.machine import Machine, MachineOptions
from vdpa_net.lab.progress import ProgressCallback
from vdpa_net.lab.ram import GuestRam
from vdpa_net.lab.side import SideProcess

BOOT_SECONDS = 120
SAVE_SECONDS = 60
SETTLE_SECONDS = 90
QUIET_SAMPLES = 40
SAMPLE_SECONDS = 0.05
FORMAT = 2
Describe = Callable[[Path], MachineOptions]


def warm_state(
    describe: Describe, key: object, properties: str, progress: ProgressCallback, cache: Path | None = None
) -> Path:
    """The file with the guest's state; makes it if it is not in the cache.

    `describe` gives the machine for a vhost socket; `key` is everything that decides how it comes out, and
    `properties` are those of the device (mac=..). Raises LabError.
    """
    text = json.dumps([FORMAT, key], sort_keys=True, default=str)
    path = cache_directory(cache) / "guest" / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.state"
    if not path.is_file():
        progress("booting the level-2 guest once, on the host", None)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.partial")
        with tempfile.TemporaryDirectory(prefix="vdpa-net-warm-") as name:
            _boot_and_save(describe, Path(name), properties, partial)
        partial.rename(path)
    return path


def _boot_and_save(describe: Describe, directory: Path, properties: str, target: Path) -> None:
    socket = directory / "vhost"
    arguments = ["--vhost-socket", str(socket), "--netdev", "loopback,id=n"]
    arguments += ["--device", f"virtio-net-pci,netdev=n,vdpa=on,iommu_platform=on,{properties}"]
    side = SideProcess("vhost", ["vhost", *arguments], directory)
    try:
        side.wait_ready()
        options = describe(socket)
        with GuestRam("warm", options.memory_mib << 20) as ram:
            options = dataclasses.replace(
                options, memory_path=ram.path, pass_fds=(ram.fd,), incoming=None, paused=False
            )
            with Machine(options, directory) as machine:
                _save(machine, target)
    finally:
        side.stop()


def _save(machine: Machine, target: Path) -> None:
    outcome = machine.wait_console(r"LAB (ready .*|failed .*)", BOOT_SECONDS)
    if outcome.startswith("failed"):
        raise machine.failure(f"says: {outcome}")
    _wait_until_idle(machine)
    machine.qmp("migrate-set-capabilities", {"capabilities": [{"capability": "events", "state": True}]})
    machine.qmp("stop")
    machine.qmp("migrate-set-parameters", {"max-bandwidth": 4 << 30})
    machine.qmp("migrate", {"uri": f"file:{target}"})
    ended = machine.wait_event(
        "MIGRATION", SAVE_SECONDS, where=lambda event: event.data["status"] in ("completed", "failed")
    )
    if ended.data["status"] != "completed":
        raise LabError(f"the level-2 guest's state could not be saved: {machine.qmp('query-migrate')}")


def _wait_until_idle(machine: Machine) -> None:
    """Let the guest do what it has put off until after its boot: in a guest of a guest that takes minutes."""
    deadline = time.monotonic() + SETTLE_SECONDS
    quiet = 0
    while quiet < QUIET_SAMPLES and time.monotonic() < deadline:
        registers = machine.qmp("human-monitor-command", {"command-line": "info registers"})
        quiet = quiet + 1 if "HLT=1" in registers else 0
        # A halted CPU is nothing that QEMU announces.
        time.sleep(SAMPLE_SECONDS)
