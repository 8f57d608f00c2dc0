# SPDX-License-Identifier: Apache-2.0
"""What the lab runs in a level-1 guest as its first process: it starts programs and tells what they do.

    python3 -m vdpa_net.lab.nested.agent

It serves the control channel on the virtio-serial port `agent`. Paths are the guest's; `LOGS` is a directory
of the host's. When it ends, the guest ends.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
import socket
import struct
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vdpa_net.driver.vfio_sysfs import PciAddress, PciFunction
from vdpa_net.errors import LabError
from vdpa_net.lab.nested.channel import Channel
from vdpa_net.transport.control import ControlClient

LOGS = Path("/run/lab/logs")
PORT_NAME = "agent"
PORTS = Path("/sys/class/virtio-ports")
HUGE_PAGE_BYTES = 2 << 20
PAGE_BYTES = 4096
_MFD_HUGETLB = 4
_PAGE_PRESENT = 1 << 63
_PFN_MASK = (1 << 55) - 1
_ENVIRONMENT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Agent:
    """The methods of the channel."""

    def __init__(self) -> None:
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._clients: dict[str, ControlClient] = {}
        self._ram: dict[str, tuple[int, mmap.mmap]] = {}
        self._channel: Channel | None = None

    def serve(self, fd: int) -> None:
        """Serve the channel until the lab goes."""
        methods = {
            name: getattr(self, name)
            for name in (
                "about",
                "run",
                "write",
                "bind",
                "make_ram",
                "drop_ram",
                "spawn",
                "wait",
                "signal",
                "control",
            )
        }
        self._channel = Channel(fd, "the lab", methods)
        self._channel.start()
        self._channel.join()

    def about(self) -> dict[str, Any]:
        """What runs here."""
        return {
            "python": platform.python_version(),
            "kernel": platform.release(),
            "iommu": sorted(path.name for path in Path("/sys/class/iommu").glob("*")),
            "pid": os.getpid(),
        }

    def run(self, argv: Sequence[str], seconds: float = 60) -> str:
        """Standard output of a short program. Raises LabError with its complaint."""
        done = subprocess.run(argv, capture_output=True, text=True, timeout=seconds, check=False)
        if done.returncode != 0:
            raise LabError(f"{' '.join(argv)} ended with {done.returncode}: {done.stderr.strip()[-2000:]}")
        return done.stdout

    def write(self, path: str, text: str) -> None:
        """Write a file."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(text)

    def bind(self, address: str) -> str:
        """Bind a PCI function to vfio-pci; its IOMMU group."""
        self.run(["modprobe", "-a", "vfio-pci", "vfio_iommu_type1"])
        function = PciFunction(PciAddress.parse(address))
        function.bind()
        return function.require_vfio()

    def make_ram(self, name: str, size: int) -> dict[str, Any]:
        """RAM for a guest on huge pages: the path of its file, the guest physical address of each page."""
        fd = os.memfd_create(name, _MFD_HUGETLB)
        os.ftruncate(fd, size)
        view = mmap.mmap(fd, size)
        for start in range(0, size, HUGE_PAGE_BYTES):
            view[start] = 0
        self._ram[name] = (fd, view)
        return {
            "path": f"/proc/{os.getpid()}/fd/{fd}",
            "page_bytes": HUGE_PAGE_BYTES,
            "addresses": physical_addresses(view, size),
        }

    def drop_ram(self, name: str) -> None:
        """Give RAM back."""
        fd, view = self._ram.pop(name)
        view.close()
        os.close(fd)

    def spawn(
        self,
        name: str,
        argv: Sequence[str],
        streams: Mapping[str, int],
        environment: Mapping[str, str] | None = None,
    ) -> int:
        """Start a program; its process id.

        Each word `{fd:NAME}` of the command line becomes the descriptor of a socket that is stream NAME; what
        it prints is stream `output` if there is one, else a log in `LOGS`.
        """
        assert self._channel is not None
        near: dict[str, socket.socket] = {}
        far: dict[str, socket.socket] = {}
        for stream in streams:
            near[stream], far[stream] = socket.socketpair()
        words = list(argv)
        for stream, end in far.items():
            words = [word.replace(f"{{fd:{stream}}}", str(end.fileno())) for word in words]
        log = None if "output" in far else (LOGS / f"{name}.log").open("wb")
        output: int = log.fileno() if log is not None else far["output"].fileno()
        try:
            process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(environment or {})},
                pass_fds=[end.fileno() for stream, end in far.items() if stream != "output"],
                start_new_session=True,
            )
        finally:
            for end in far.values():
                end.close()
            if log is not None:
                log.close()
        self._processes[name] = process
        for stream, number in streams.items():
            self._channel.add_stream(number, near[stream])
        return process.pid

    def wait(self, name: str, seconds: float) -> int | None:
        """Exit code of a program that was started, None if it runs on."""
        try:
            return self._processes[name].wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def signal(self, name: str, number: int) -> None:
        """Send a signal to a program that was started."""
        self._processes[name].send_signal(number)

    def control(self, path: str, method: str, params: Mapping[str, Any]) -> object:
        """Call a method of a process' control socket."""
        if path not in self._clients:
            self._clients[path] = ControlClient(path)
        return self._clients[path].call(method, **params)


def physical_addresses(view: mmap.mmap, size: int) -> list[int]:
    """Guest physical address of each huge page of a mapping, from /proc/self/pagemap. Raises LabError."""
    start = ctypes.addressof(ctypes.c_char.from_buffer(view))
    found: list[int] = []
    with Path("/proc/self/pagemap").open("rb", buffering=0) as pagemap:
        for offset in range(0, size, HUGE_PAGE_BYTES):
            pagemap.seek((start + offset) // PAGE_BYTES * 8)
            (entry,) = struct.unpack("<Q", pagemap.read(8))
            if not entry & _PAGE_PRESENT:
                raise LabError(f"the huge page at {offset:#x} is not there: too few were reserved")
            found.append((entry & _PFN_MASK) * PAGE_BYTES)
    return found


def open_port(name: str = PORT_NAME) -> int:
    """The virtio-serial port of that name. Raises LabError."""
    for port in PORTS.glob("*"):
        if (port / "name").read_text().strip() == name:
            return os.open(f"/dev/{port.name}", os.O_RDWR | os.O_CLOEXEC)
    raise LabError(f"there is no virtio-serial port {name}")


def main() -> None:
    """Serve until the lab goes."""
    os.environ["PATH"] = _ENVIRONMENT_PATH
    fd = open_port()
    print("LAB ready agent", flush=True)
    Agent().serve(fd)


if __name__ == "__main__":
    main()
