# SPDX-License-Identifier: Apache-2.0
"""Virtual machines: QEMU with a small guest, as a context manager that keeps evidence.

    with Machine(MachineOptions("src", qemu, guest, append), directory) as machine:
        machine.console.wait_for("LAB ready", 60)
        machine.qmp("migrate", {"uri": "unix:/path"})
        machine.wait_event("MIGRATION", 60, where=lambda event: event.data["status"] == "completed")

In the directory: `<name>.argv`, `.console`, `.stderr`, `.qmp` (JSON lines with CLOCK_MONOTONIC ns).
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from vdpa_net.closing import Starting
from vdpa_net.errors import LabError, PeerGone, StateError, VdpaNetError
from vdpa_net.lab.console import LineReader
from vdpa_net.lab.guest import Guest
from vdpa_net.lab.program import Program, machine_name
from vdpa_net.lab.qmp import Event, QmpSession

GREETING_SECONDS = 30
QUIT_SECONDS = 5
BOARDS = {"x86_64": "q35", "aarch64": "virt,gic-version=max"}
# Five-level paging costs time under TCG and does not go with a vIOMMU of 48 bits.
CPUS = {"x86_64": {"tcg": "max,la57=off", "kvm": "host"}, "aarch64": {"tcg": "max", "kvm": "host"}}


@dataclass(frozen=True)
class MachineOptions:
    """What a machine is made of.

    `memory_path` is the file of its RAM (shared; None: an anonymous one, shared, too). `arguments` are
    further words of QEMU's command line, as they stand. `pass_fds` stay open in QEMU under their numbers.
    `incoming` is what -incoming takes; `paused` is -S. `iommu` puts an intel-iommu in front of the devices.
    With `boots_disk` the firmware boots from a disk among the `arguments` instead of the guest's kernel.
    `board` is a machine type other than the usual one. With `reboot` a guest that restarts goes on, else QEMU
    ends. Without a guest there is the firmware.
    `cpu` is a model in place of the lab's choice for the accelerator.
    """

    name: str
    qemu: Program
    guest: Guest | None
    append: str
    accel: str = "tcg"
    memory_mib: int = 256
    cpus: int = 1
    memory_path: Path | None = None
    arguments: tuple[str, ...] = ()
    pass_fds: tuple[int, ...] = ()
    incoming: str | None = None
    paused: bool = False
    iommu: bool = False
    boots_disk: bool = False
    board: str = ""
    reboot: bool = False
    cpu: str | None = None


def command_line(options: MachineOptions, qmp_fd: int | str, console_fd: int | str) -> list[str]:
    """QEMU's command line, with QMP and the serial console on these sockets."""
    return options.qemu.argv(
        *("-name", options.name, "-no-user-config", "-nodefaults", "-display", "none"),
        *(() if options.reboot else ("-no-reboot",)),
        *_board(options),
        *_memory(options),
        *("-chardev", f"socket,id=qmp,fd={qmp_fd}", "-mon", "chardev=qmp,mode=control"),
        *("-chardev", f"socket,id=console,fd={console_fd}", "-serial", "chardev:console"),
        *_kernel(options),
        *(("-incoming", options.incoming) if options.incoming else ()),
        *(("-S",) if options.paused else ()),
        *options.arguments,
    )


def _kernel(options: MachineOptions) -> list[str]:
    guest = options.guest
    if options.boots_disk or guest is None:
        return []
    return ["-kernel", str(guest.kernel), "-initrd", str(guest.initrd), "-append", options.append]


def _board(options: MachineOptions) -> list[str]:
    machine = machine_name()
    board = (options.board or BOARDS[machine]) + (",kernel-irqchip=split" if machine == "x86_64" else "")
    words = ["-machine", board, "-accel", options.accel, "-cpu", options.cpu or CPUS[machine][options.accel]]
    if options.iommu:
        if machine != "x86_64":
            raise LabError(f"the lab has a vIOMMU for x86_64 only, this machine is {machine}")
        words += ["-device", "intel-iommu,intremap=on,caching-mode=on,device-iotlb=on,aw-bits=48"]
    return [*words, "-smp", str(options.cpus)]


def _memory(options: MachineOptions) -> list[str]:
    size = f"{options.memory_mib}M"
    # Devices in other processes map the RAM: it has to be shared.
    backend = f"memory-backend-memfd,id=ram,size={size},share=on"
    if options.memory_path is not None:
        backend = f"memory-backend-file,id=ram,size={size},mem-path={options.memory_path},share=on"
    return ["-m", size, "-object", backend, "-numa", "node,memdev=ram"]


def vfio_user_arguments(socket_path: Path, port: str | None = "rp0") -> tuple[str, ...]:
    """Arguments that attach a vfio-user device behind a PCI Express port of its own; None: to the PCI bus."""
    device: dict[str, object] = {
        "driver": "vfio-user-pci",
        "socket": {"type": "unix", "path": str(socket_path)},
    }
    if port is None:
        return ("-device", json.dumps(device))
    device["bus"] = port
    return ("-device", f"pcie-root-port,id={port},slot=1", "-device", json.dumps(device))


class Process(Protocol):
    """What a machine needs of its QEMU's process; `subprocess.Popen` is one."""

    pid: int

    def poll(self) -> int | None:
        """Exit code, None while it runs."""

    def wait(self, timeout: float | None = None) -> int:
        """Exit code, once it has ended. Raises subprocess.TimeoutExpired."""

    def send_signal(self, sig: int, /) -> None:
        """Signal it."""


class Machine(Starting):
    """A running QEMU. It ends with the context, with `stop`, or when this process dies."""

    def __init__(self, options: MachineOptions, directory: Path) -> None:
        self.options = options
        self.name = options.name
        self.directory = directory
        self._argv: list[str] = []
        self._exit_fd: int | None = None
        self._process: Process | None = None
        self._session: QmpSession | None = None
        self._console: LineReader | None = None
        self._keyboard = -1

    @property
    def pid(self) -> int:
        """Process id of QEMU. Raises StateError before the start."""
        return self._running().pid

    @property
    def console(self) -> LineReader:
        """The serial console. Raises StateError before the start."""
        if self._console is None:
            raise StateError(f"machine {self.name} has not been started")
        return self._console

    @property
    def session(self) -> QmpSession:
        """The QMP session. Raises StateError before the start."""
        if self._session is None:
            raise StateError(f"machine {self.name} has not been started")
        return self._session

    @property
    def exit_code(self) -> int | None:
        """Exit code of QEMU, None while it runs; negative: the signal that ended it."""
        return self._running().poll()

    def start(self) -> None:
        """Start QEMU and talk to it. Raises LabError that carries the evidence."""
        if self._process is not None:
            raise StateError(f"machine {self.name} has been started already")
        self.directory.mkdir(parents=True, exist_ok=True)
        try:
            self._launch()
        except VdpaNetError as error:
            self.stop()
            raise self.failure(f"did not start: {error}") from error
        except BaseException:
            self.stop()
            raise

    def qmp(self, command: str, arguments: Mapping[str, Any] | None = None, *, timeout_s: float = 60) -> Any:
        """What a QMP command returns. Raises PeerError if QEMU refuses it, PeerGone if it is not there."""
        return self.session.execute(command, arguments, timeout_s=timeout_s)

    def wait_event(
        self,
        name: str | None,
        timeout_s: float,
        *,
        start: int = 0,
        where: Callable[[Event], bool] = lambda _event: True,
    ) -> Event:
        """The first such event (None: of any name) from index `start` on (`session.position`).

        Raises PeerGone or LabError.
        """
        return self.session.wait_event(name, timeout_s, start=start, where=where)

    def wait_console(self, pattern: str, timeout_s: float, *, start: int = 0) -> str:
        """The first group (or all) of the first console line that matches. Raises LabError with evidence."""
        try:
            match = self.console.wait_for(pattern, timeout_s, start=start)
        except LabError as error:
            raise self.failure(f"has no line like {pattern!r} on its console") from error
        return match[1] if match.re.groups else match[0]

    def command_line(self) -> str:
        """The command line that was run, for evidence."""
        return shlex.join(self._argv)

    def type_line(self, text: str) -> None:
        """Type a line on the serial console. Raises PeerGone if there is no machine."""
        self.type_keys(text.encode() + b"\n")

    def type_keys(self, keys: bytes) -> None:
        """Type these bytes on the serial console. Raises PeerGone if there is no machine."""
        try:
            os.write(self._keyboard, keys)
        except OSError as error:
            raise PeerGone(f"machine {self.name}: its console is gone: {error}") from error

    @property
    def exit_fd(self) -> int:
        """A descriptor that becomes readable when QEMU has ended."""
        if self._exit_fd is None:
            self._exit_fd = os.pidfd_open(self.pid)
        return self._exit_fd

    def wait_exit(self, timeout_s: float) -> int:
        """QEMU's exit code, once it has ended. Raises LabError if it does not."""
        try:
            return self._running().wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise self.failure(f"did not end within {timeout_s:g} s") from None

    def failure(self, what: str) -> LabError:
        """An error about this machine: exit code, command line, last lines, and where the evidence lies."""
        code = self._process.poll() if self._process else None
        state = "QEMU runs" if code is None else f"QEMU ended with {code}"
        console = self._console.tail(15) if self._console else ""
        return LabError(
            f"machine {self.name} {what}; {state}; evidence in {self.directory}\n"
            f"command: {shlex.join(self._argv)}\nQEMU said:\n{self._complaint()}\nconsole:\n{console}"
        )

    def last_words(self) -> str:
        """The last lines that QEMU wrote, warnings aside; they come before it ends."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._running().wait(QUIT_SECONDS)
        lines = [line for line in self._complaint().splitlines() if "warning: " not in line]
        return "; ".join(lines[-2:])

    def stop(self) -> None:
        """End QEMU: politely, then not. Safe to call again."""
        process = self._process
        if process is not None and process.poll() is None:
            self._quit(process)
        if self._session is not None:
            self._session.close()
        if self._console is not None:
            self._console.join()
        if self._keyboard >= 0:
            os.close(self._keyboard)
            self._keyboard = -1
        if self._exit_fd is not None:
            os.close(self._exit_fd)
            self._exit_fd = None

    def close(self) -> None:
        """The same as `stop`."""
        self.stop()

    def _running(self) -> Process:
        if self._process is None:
            raise StateError(f"machine {self.name} has not been started")
        return self._process

    def _path(self, ending: str) -> Path:
        return self.directory / f"{self.name}.{ending}"

    def _launch(self) -> None:
        qmp, qmp_far = socket.socketpair()
        console, console_far = socket.socketpair()
        self._session = QmpSession(self.name, self._path("qmp"))
        self._keyboard = os.dup(console.fileno())
        self._console = LineReader(console.detach(), self._path("console"), f"console of {self.name}")
        with qmp_far, console_far:
            fds = (qmp_far.fileno(), console_far.fileno())
            self._argv = command_line(self.options, *fds)
            self._path("argv").write_text(shlex.join(self._argv) + "\n")
            # The parent-death signal is about the thread that starts the process: this one lives long enough.
            self._process = self._session.in_thread(lambda: self._spawn(fds))
        self._session.connect(qmp, GREETING_SECONDS)

    def _spawn(self, fds: tuple[int, int]) -> subprocess.Popen[bytes]:
        setpriv = shutil.which("setpriv")
        tether = [setpriv, "--pdeathsig", "KILL", "--"] if setpriv else []
        with self._path("stderr").open("wb") as stderr:
            try:
                return subprocess.Popen(
                    [*tether, *self._argv],
                    env=self.options.qemu.env(),
                    stdin=subprocess.DEVNULL,
                    stdout=stderr,
                    stderr=stderr,
                    pass_fds=(*fds, *self.options.pass_fds),
                    # Ctrl-C in the terminal is for the lab, which then ends its machines in order.
                    start_new_session=True,
                )
            except OSError as error:
                raise LabError(f"{self._argv[0]} can't be run: {error}") from error

    def _complaint(self) -> str:
        path = self._path("stderr")
        return path.read_text(errors="replace")[-2000:].strip() if path.exists() else ""

    def _quit(self, process: Process) -> None:
        with contextlib.suppress(VdpaNetError):
            self.session.execute("quit", timeout_s=QUIT_SECONDS)
        for signal_number in (None, signal.SIGTERM, signal.SIGKILL):
            if signal_number is not None:
                process.send_signal(signal_number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(QUIT_SECONDS)
                return
