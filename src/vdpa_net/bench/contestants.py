# SPDX-License-Identifier: Apache-2.0
"""Who takes part: our device on a vhost socket, and DPDK's vhost library behind testpmd.

Both run on the processor that the front end leaves to them. One that polls is stopped while it is not its
turn.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vdpa_net.bench.native import DEVICE_CPU, FRONT_END_CPU, Peers
from vdpa_net.errors import LabError, MissingTool, VdpaNetError
from vdpa_net.lab.console import LineReader
from vdpa_net.lab.image import Image
from vdpa_net.lab.side import SideProcess

DPDK_START_SECONDS = 30
DPDK_DRIVERS = ("bus_vdev", "mempool_ring", "net_vhost", "net_null", "net_tap")


class Device:
    """`vdpa-net vhost` on a back end; `pinned` keeps it off the front end's processor.

    `poll_us` is how long it polls after work, by default as long as a device does.
    """

    def __init__(
        self,
        name: str,
        netdev: str,
        directory: Path,
        properties: str = "",
        *,
        pinned: bool = True,
        poll_us: int | None = None,
    ) -> None:
        self.socket = directory / f"{name}.sock"
        device = f"virtio-net-pci,netdev=n,vdpa=on{properties}"
        arguments = [
            *("vhost", "--vhost-socket", str(self.socket)),
            *("--netdev", netdev, "--device", device),
            *(() if poll_us is None else ("--poll-us", str(poll_us))),
        ]
        self._process = SideProcess(name, arguments, directory)
        self._process.wait_ready()
        for task in Path(f"/proc/{self._process.pid}/task").iterdir() if pinned else ():
            os.sched_setaffinity(int(task.name), {DEVICE_CPU})

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @contextmanager
    def turn(self) -> Iterator[Path]:
        """Its turn: the socket."""
        yield self.socket

    def close(self) -> None:
        """End it."""
        self._process.stop()


class Dpdk:
    """testpmd that forwards between DPDK's net_vhost and another of its drivers."""

    def __init__(self, name: str, port: str, image: Image, directory: Path, queue_pairs: int = 1) -> None:
        self.socket = directory / f"{name}.sock"
        testpmd = image.program("usr/bin/dpdk-testpmd")
        if not Path(testpmd.command[-1]).is_file():
            raise MissingTool(f"the lab image {image.root} has no testpmd: run `vdpa-net lab build`")
        drivers = next(image.root.glob("usr/lib/*/dpdk/pmds-*"))
        words = [word for item in DPDK_DRIVERS for word in ("-d", str(_library(drivers, item)))]
        arguments = testpmd.argv(
            *words,
            *("-l", f"{FRONT_END_CPU},{DEVICE_CPU}", "--no-huge", "-m", "512", "--no-pci"),
            *("--file-prefix", f"vdpa-net-bench-{os.getpid()}-{name}"),
            *("--vdev", f"net_vhost0,iface={self.socket},queues={queue_pairs}", "--vdev", port),
            *("--", "--no-mlockall", "--forward-mode=io", "--nb-cores=1", "--auto-start", "--no-numa"),
            # The link of a vhost port is down until its front end comes, and testpmd would wait for it.
            "--disable-link-check",
            *("--total-num-mbufs=32768", f"--rxq={queue_pairs}", f"--txq={queue_pairs}"),
        )
        # On a terminal its lines come at once, not when a buffer is full.
        reader, terminal = os.openpty()
        try:
            # testpmd ends when its standard input does.
            self._process = subprocess.Popen(
                arguments, env=testpmd.env(), stdin=subprocess.PIPE, stdout=terminal, stderr=terminal
            )
        finally:
            os.close(terminal)
        self._output = LineReader(reader, directory / f"{name}.log", name)
        try:
            self._output.wait_for("Press enter to exit", DPDK_START_SECONDS)
        except VdpaNetError as error:
            self._process.kill()
            raise LabError(f"testpmd did not start: {error}") from error
        self._process.send_signal(signal.SIGSTOP)

    @contextmanager
    def turn(self) -> Iterator[Path]:
        """Its turn: the socket."""
        self._process.send_signal(signal.SIGCONT)
        try:
            yield self.socket
        finally:
            self._process.send_signal(signal.SIGSTOP)

    def close(self) -> None:
        """End it."""
        self._process.send_signal(signal.SIGCONT)
        self._process.terminate()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _library(drivers: Path, name: str) -> Path:
    found = sorted(drivers.glob(f"librte_{name}.so.*"))
    if not found:
        raise MissingTool(f"the lab image has no DPDK driver {name} in {drivers}: run `vdpa-net lab build`")
    return found[0]


def drive(contestant: Device | Dpdk, peers: Peers, **options: object) -> float:
    """Millions of frames a second that the native front end gets through a contestant."""
    with contestant.turn() as socket:
        return peers.mega_frames("front-end", socket=socket, **options)
