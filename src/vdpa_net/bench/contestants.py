# SPDX-License-Identifier: Apache-2.0
"""Who takes part: our device on a vhost socket, and DPDK's vhost library behind testpmd.

Both run on the processor that the front end leaves to them. One that polls is stopped while it is not its
turn.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from vdpa_net.bench.native import DEVICE_CPU, FRONT_END_CPU, Peers
from vdpa_net.bench.testpmd import Testpmd
from vdpa_net.lab.image import Image
from vdpa_net.lab.network import LabNetwork
from vdpa_net.lab.side import SideProcess


@dataclass(frozen=True)
class Site:
    """What contestants are started with, the same for all groups of a run.

    `poll_us` is how long our devices poll after work, None: their default; a `quick` run leaves cases out.
    """

    image: Image
    directory: Path
    network: LabNetwork
    poll_us: int | None
    quick: bool


class Device:
    """`vdpa-net vhost` on a back end; `pinned` keeps it off the front end's processor.

    `poll_us` is how long it polls after work, by default as long as a device does.
    """

    is_lossy = False

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
    """testpmd that forwards between DPDK's net_vhost and `port`, another of its drivers.

    Without a port, frames go back to where they came from. It polls, with one core, on the device's
    processor; with `cores` = 2 the other one is the front end's, as it is for a device that is not pinned.
    """

    is_lossy = True
    """It reads frames for which the ring has no buffer, and drops them."""

    def __init__(
        self,
        name: str,
        port: str,
        image: Image,
        directory: Path,
        *,
        queue_pairs: int = 1,
        cores: int = 1,
        vhost: str = "",
    ) -> None:
        self.socket = directory / f"{name}.sock"
        vdevs = (f"net_vhost0,iface={self.socket},queues={queue_pairs}{vhost}", *([port] if port else []))
        lcores = f"0@{FRONT_END_CPU},1@{DEVICE_CPU}" + f",2@{FRONT_END_CPU}" * (cores - 1)
        self._testpmd = Testpmd(
            name,
            image,
            directory,
            drivers=("net_vhost", "net_null", "net_tap"),
            lcores=lcores,
            eal=tuple(word for vdev in vdevs for word in ("--vdev", vdev)),
            app=(
                *("--forward-mode=io", f"--nb-cores={cores}", "--auto-start"),
                *(f"--rxq={queue_pairs}", f"--txq={queue_pairs}"),
                *(() if port else ("--port-topology=loop",)),
            ),
        )
        self._testpmd.pause()

    @property
    def pid(self) -> int:
        """Process id."""
        return self._testpmd.pid

    @contextmanager
    def turn(self) -> Iterator[Path]:
        """Its turn: the socket."""
        self._testpmd.go_on()
        try:
            yield self.socket
        finally:
            self._testpmd.pause()

    def close(self) -> None:
        """End it."""
        self._testpmd.close()


def drive(contestant: Device | Dpdk, peers: Peers, **options: object) -> float:
    """Millions of frames a second that the native front end gets through a contestant.

    With `burst`, the interface of its tap, its process stands still while the tap's queue is filled.
    """
    if options.get("burst"):
        options |= {"pid": contestant.pid, "lossy": contestant.is_lossy}
    with contestant.turn() as socket, peers.waits.of(contestant.pid):
        return peers.mega_frames("front-end", socket=socket, **options)
