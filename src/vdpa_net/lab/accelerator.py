# SPDX-License-Identifier: Apache-2.0
"""Which QEMU to run, and whether KVM can run a stock kernel here: tried out, never assumed."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
from functools import cache as remembered
from pathlib import Path

from vdpa_net.errors import LabError, MissingTool
from vdpa_net.lab.console import LineReader
from vdpa_net.lab.guest import Guest
from vdpa_net.lab.image import Image, cache_directory
from vdpa_net.lab.program import Program, machine_name

VFIO_USER_SINCE = (10, 1, 0)
PROBE_SECONDS = 15
Version = tuple[int, int, int]


@remembered
def _version(command: tuple[str, ...], environment: tuple[tuple[str, str], ...]) -> Version:
    answer = Program(command, dict(environment)).run("--version")
    match = re.search(r"version (\d+)\.(\d+)\.(\d+)", answer)
    if match is None:
        raise LabError(f"{command[-1]} --version says {answer[:80]!r}, expected 'version X.Y.Z'")
    return int(match[1]), int(match[2]), int(match[3])


def qemu_version(qemu: Program) -> Version:
    """Version of a QEMU. Raises LabError if the program does not run or is none."""
    return _version(qemu.command, tuple(sorted(qemu.environment.items())))


def version_text(version: Version) -> str:
    """As it is written."""
    return ".".join(str(part) for part in version)


def host_qemu() -> Program | None:
    """The QEMU of this machine, if there is one."""
    path = shutil.which(f"qemu-system-{machine_name()}")
    return Program((path,)) if path else None


def choose_qemu(image: Image, wanted: str | None = None, since: Version = (7, 2, 0)) -> Program:
    """The QEMU to run: `wanted` ("host", "image" or a path), or the host's if new enough, else the image's.

    Raises LabError if the wanted one is too old, MissingTool if it is not there.
    """
    if wanted is None:
        host = host_qemu()
        return host if host is not None and qemu_version(host) >= since else image.qemu()
    chosen = _wanted(image, wanted)
    if qemu_version(chosen) < since:
        got = version_text(qemu_version(chosen))
        raise LabError(
            f"QEMU {wanted} is {got}, expected {version_text(since)} or newer;"
            " --qemu image takes the lab image's"
        )
    return chosen


def _wanted(image: Image, wanted: str) -> Program:
    if wanted == "image":
        return image.qemu()
    if wanted != "host":
        path = shutil.which(wanted)
        if path is None:
            raise MissingTool(f"QEMU {wanted}: expected 'host', 'image' or the path of a QEMU")
        return Program((path,))
    host = host_qemu()
    if host is None:
        raise MissingTool(
            f"this machine has no qemu-system-{machine_name()}: use the lab image's (--qemu image)"
        )
    return host


def choose_accelerator(qemu: Program, guest: Guest, wanted: str = "auto", cache: Path | None = None) -> str:
    """ "kvm" or "tcg": as wanted, or ("auto") KVM where this QEMU boots this guest's kernel with it."""
    if wanted == "auto":
        return "kvm" if probe_kvm(qemu, guest, cache) else "tcg"
    if wanted not in ("kvm", "tcg"):
        raise LabError(f"accelerator {wanted!r}: expected auto, kvm or tcg")
    return wanted


def probe_kvm(qemu: Program, guest: Guest, cache: Path | None = None) -> bool:
    """Whether the guest's kernel comes up under KVM; tried once per boot of this machine, QEMU and kernel."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return False
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    identity = repr((boot_id, qemu.command, qemu_version(qemu), str(guest.kernel)))
    name = hashlib.sha256(identity.encode()).hexdigest()[:16]
    known = cache_directory(cache) / "kvm" / f"{name}.json"
    if known.is_file():
        return bool(json.loads(known.read_text())["works"])
    works = _boots_under_kvm(qemu, guest)
    known.parent.mkdir(parents=True, exist_ok=True)
    known.write_text(json.dumps({"works": works, "tried": identity}) + "\n")
    return works


def _boots_under_kvm(qemu: Program, guest: Guest) -> bool:
    arguments = (
        *("-machine", "accel=kvm", "-cpu", "host", "-m", "256", "-nodefaults", "-no-user-config"),
        *("-display", "none", "-no-reboot", "-serial", "stdio"),
        *("-kernel", str(guest.kernel), "-initrd", str(guest.initrd), "-append", guest.append("probe")),
    )
    board = {"x86_64": "q35", "aarch64": "virt"}[machine_name()]
    words = [word.replace("accel=kvm", f"{board},accel=kvm") for word in arguments]
    with tempfile.TemporaryDirectory(prefix="vdpa-net-kvm-") as directory:
        process = subprocess.Popen(
            qemu.argv(*words),
            env=qemu.env(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert process.stdout is not None
        output = LineReader(os.dup(process.stdout.fileno()), Path(directory) / "log", "KVM probe")
        process.stdout.close()
        try:
            # A guest that KVM can't run leaves QEMU alive, with this line.
            return output.wait_for("LAB up|KVM internal error", PROBE_SECONDS)[0] == "LAB up"
        except LabError:
            return False
        finally:
            process.kill()
            process.wait()
            output.join()
