# SPDX-License-Identifier: Apache-2.0
"""DPDK's testpmd out of the lab image. It polls, so it stands still while it is another's turn."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

from vdpa_net.errors import LabError, MissingTool, VdpaNetError
from vdpa_net.lab.console import LineReader
from vdpa_net.lab.image import Image

START_SECONDS = 30
ANSWER_SECONDS = 10
STOP_SECONDS = 5
COMMON_DRIVERS = ("bus_vdev", "mempool_ring")


class Testpmd:
    """A process of testpmd with its own EAL, on the processors that `lcores` maps its cores to.

    `eal` and `app` are its words before and behind `--`. `interactive`: it waits for commands, else it
    forwards from the start. Raises MissingTool where the image has no such driver, LabError if it does not
    start.
    """

    __test__ = False

    def __init__(
        self,
        name: str,
        image: Image,
        directory: Path,
        *,
        drivers: tuple[str, ...],
        lcores: str,
        eal: tuple[str, ...],
        app: tuple[str, ...],
        interactive: bool = False,
    ) -> None:
        program = image.program("usr/bin/dpdk-testpmd")
        if not Path(program.command[-1]).is_file():
            raise MissingTool(f"the lab image {image.root} has no testpmd: run `vdpa-net lab build`")
        files = [_library(image, driver) for driver in (*COMMON_DRIVERS, *drivers)]
        arguments = program.argv(
            *(word for file in files for word in ("-d", str(file))),
            *("--lcores", lcores, "--no-huge", "-m", "512", "--no-pci"),
            *("--file-prefix", f"vdpa-net-bench-{os.getpid()}-{name}"),
            *eal,
            *("--", "--no-mlockall", "--no-numa", "--total-num-mbufs=32768", "--disable-link-check"),
            *("-i",) * interactive,
            *app,
        )
        # On a terminal its lines come at once, not when a buffer is full.
        reader, terminal = os.openpty()
        try:
            # It ends with its standard input.
            self._process = subprocess.Popen(
                arguments, env=program.env(), stdin=subprocess.PIPE, stdout=terminal, stderr=terminal
            )
        finally:
            os.close(terminal)
        self._output = LineReader(reader, directory / f"{name}.log", name)
        try:
            self._output.wait_for("Done" if interactive else "Press enter to exit", START_SECONDS)
        except VdpaNetError as error:
            self.close()
            raise LabError(f"testpmd did not start: {error}") from error

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def ask(self, command: str, answer: str) -> re.Match[str]:
        """Give an interactive one a command; the first line of its answer that matches."""
        assert self._process.stdin is not None
        start = self._output.position
        self._process.stdin.write(f"{command}\n".encode())
        self._process.stdin.flush()
        return self._output.wait_for(answer, ANSWER_SECONDS, start=start)

    def pause(self) -> None:
        """Stand still."""
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """No longer stand still."""
        self._process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """End it."""
        self.go_on()
        self._process.terminate()
        assert self._process.stdin is not None
        # One that waits for commands sees the signal when its standard input ends. What it was asked last it
        # may not have read.
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._output.join()


def _library(image: Image, name: str) -> Path:
    found = sorted(image.root.glob(f"usr/lib/*/dpdk/pmds-*/librte_{name}.so.*"))
    if not found:
        raise MissingTool(f"the lab image {image.root} has no DPDK driver {name}: run `vdpa-net lab build`")
    return found[0]
