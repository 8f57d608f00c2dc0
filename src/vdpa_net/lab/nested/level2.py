# SPDX-License-Identifier: Apache-2.0
"""Level-2 machines: QEMU inside of a level-1 guest, steered from outside as any other."""

from __future__ import annotations

import dataclasses
import os
import socket
import subprocess
from pathlib import Path

from vdpa_net.errors import PeerError, PeerGone, StateError
from vdpa_net.lab.console import LineReader
from vdpa_net.lab.guest import Guest
from vdpa_net.lab.machine import Machine, MachineOptions, command_line
from vdpa_net.lab.migrate.topology import (
    TopologyOptions,
    kernel_command_line,
    nic_arguments,
    vhost_netdev,
)
from vdpa_net.lab.nested.level1 import Level1
from vdpa_net.lab.program import Program
from vdpa_net.lab.qmp import QmpSession

GREETING_SECONDS = 120
QEMU = Program(("/usr/bin/qemu-system-x86_64",))
CPU = "qemu64"
"""What newer models have (rep movsb at speed, AVX, SMAP) is slow under TCG."""
KERNEL_WORDS = ("mitigations=off", "nokaslr")
ICOUNT = "shift=3"
"""One instruction is 8 ns of the guest's time. A guest that is slower than its timers would serve nothing but
them: so its time passes with what it executes, and with the host's while it waits."""


def describe(
    flat: TopologyOptions,
    qemu: Program,
    guest: Guest,
    vhost_socket: Path,
    *,
    name: str,
    memory_path: Path | None = None,
) -> MachineOptions:
    """The machine of a level-2 guest, waiting for it to come in; it is the same wherever it runs."""
    return MachineOptions(
        name,
        qemu,
        guest,
        kernel_command_line(dataclasses.replace(flat, guest=guest), *KERNEL_WORDS),
        memory_mib=flat.memory_mib,
        memory_path=memory_path,
        cpus=flat.queue_pairs,
        iommu=flat.iommu,
        arguments=(*nic_arguments(vhost_netdev(vhost_socket, flat.queue_pairs), flat), "-icount", ICOUNT),
        incoming="defer",
        paused=True,
        cpu=CPU,
    )


class RemoteProcess:
    """A program that a level-1 guest's agent has started, with its streams on this side."""

    def __init__(self, level1: Level1, name: str, argv: list[str], streams: dict[str, socket.socket]) -> None:
        """Start it. The sockets are given away."""
        self._level1 = level1
        self._name = name
        self._code: int | None = None
        numbers = {stream: level1.channel.next_number() for stream in streams}
        for stream, end in streams.items():
            level1.channel.add_stream(numbers[stream], end)
        self.pid = int(level1.call("spawn", name=name, argv=argv, streams=numbers))

    def poll(self) -> int | None:
        """Exit code, None while it runs."""
        return self._ended_within(0)

    def wait(self, timeout: float | None = None) -> int:
        """Exit code, once it has ended. Raises subprocess.TimeoutExpired."""
        seconds = 3600.0 if timeout is None else timeout
        code = self._ended_within(seconds)
        if code is None:
            raise subprocess.TimeoutExpired(self._name, seconds)
        return code

    def send_signal(self, sig: int, /) -> None:
        """Signal it; one that has ended does not mind."""
        if self.poll() is None:
            self._level1.call("signal", name=self._name, number=int(sig))

    def _ended_within(self, seconds: float) -> int | None:
        if self._code is None:
            try:
                code = self._level1.channel.call(
                    "wait", within_s=seconds + 60, name=self._name, seconds=seconds
                )
            except PeerGone:
                # The guest is gone, and everything in it.
                code = -9
            self._code = None if code is None else int(code)
        return self._code


class Level2Machine(Machine):
    """A machine whose QEMU runs in a level-1 guest. Paths of its options are that guest's."""

    def __init__(self, level1: Level1, options: MachineOptions, directory: Path) -> None:
        super().__init__(options, directory)
        self._level1 = level1
        self._output: LineReader | None = None

    def _launch(self) -> None:
        qmp, qmp_end = socket.socketpair()
        console, console_end = socket.socketpair()
        output, output_end = socket.socketpair()
        self._session = QmpSession(self.name, self._path("qmp"))
        self._keyboard = os.dup(console.fileno())
        self._console = LineReader(console.detach(), self._path("console"), f"console of {self.name}")
        self._output = LineReader(output.detach(), self._path("stderr"), f"output of {self.name}")
        self._argv = command_line(self.options, "{fd:qmp}", "{fd:console}")
        self._path("argv").write_text(" ".join(self._argv) + "\n")
        ends = {"qmp": qmp_end, "console": console_end, "output": output_end}
        try:
            self._process = RemoteProcess(self._level1, self.name, self._argv, ends)
        except PeerError:
            qmp.close()
            raise
        self._session.connect(qmp, GREETING_SECONDS)

    @property
    def exit_fd(self) -> int:
        """Raises StateError: QEMU is no process of this machine."""
        raise StateError(f"{self.name} runs in {self._level1.name}: there is no descriptor of its process")

    def stop(self) -> None:
        """End QEMU: politely, then not. Safe to call again."""
        super().stop()
        if self._output is not None:
            self._output.join()
