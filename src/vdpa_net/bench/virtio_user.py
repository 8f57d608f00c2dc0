# SPDX-License-Identifier: Apache-2.0
"""The device on a tap, driven by DPDK's virtio_user, beside DPDK's vhost library with the same front end.

testpmd sends (txonly), takes (rxonly), or sends each frame back that it takes (io). It polls, on the
processor of the front end. It has no GSO of its own and does not share a log: these cases are the native
front end's alone.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from vdpa_net.bench.case import SUBJECT, Case, Goal, Take
from vdpa_net.bench.contestants import Device, Dpdk
from vdpa_net.bench.native import FRONT_END_CPU, Peers
from vdpa_net.bench.shapes import BOTH, DIRECTIONS, LONG, MIDDLE, RX, SMALL, TX, Shape
from vdpa_net.bench.tap_limits import Bare
from vdpa_net.bench.taps import DPDK, OF_LIMIT, RING_SIZE
from vdpa_net.bench.testpmd import Testpmd
from vdpa_net.errors import LabError
from vdpa_net.lab.image import Image
from vdpa_net.lab.network import LabNetwork

FORWARDING = {TX: "txonly", RX: "rxonly", BOTH: "io"}
BURST_FRAMES = 32_768
"""Many, since their end is seen on the kernel's counters, 0.2 ms late."""
QUEUE_FRAMES = 40_000
WARM_UP_SECONDS = 0.1
MAC = "52:54:00:be:0c:77"


def user_shapes(*, quick: bool) -> Iterator[Shape]:
    """All cases of this front end; a quick run has the packed ring with 64 bytes alone."""
    for direction in DIRECTIONS:
        for size in (SMALL, MIDDLE, LONG):
            yield Shape(direction, size)
        for size in (SMALL,) if quick else (SMALL, LONG):
            yield Shape(direction, size, packed=True)


@dataclass
class Driven:
    """A contestant, its tap, and the testpmd that is its front end for good."""

    who: Device | Dpdk
    tap: str
    front_end: Testpmd
    peers: Peers

    def sample(self, shape: Shape) -> float:
        """Millions of frames a second; of the shape BOTH those of both directions."""
        with self.who.turn():
            self.front_end.go_on()
            try:
                self.front_end.ask(f"set fwd {FORWARDING[shape.direction]}", "Set .* packet forwarding mode")
                self.front_end.ask(f"set txpkts {shape.size_bytes}", "set txpkts")
                self.front_end.ask("start", "forwards packets on")
                value = self._sent() if shape.direction == TX else self._drained(shape)
                self.front_end.ask("stop", r"Done\.")
            finally:
                self.front_end.pause()
        return value

    def _sent(self) -> float:
        time.sleep(WARM_UP_SECONDS)
        self._statistic("Tx-pps")
        # testpmd tells the rate since it was asked last.
        time.sleep(self.peers.seconds)
        return self._statistic("Tx-pps") / 1e6

    def _drained(self, shape: Shape) -> float:
        before = self._statistic("RX-packets")
        moved = self.peers.sample(
            "tap-drain",
            tap=self.tap,
            bytes=shape.size_bytes,
            frames=BURST_FRAMES,
            pid=self.who.pid,
            **{"front-end": self.front_end.pid},
        )
        arrived = self._statistic("RX-packets") - before
        if arrived < moved["read"] and not self.who.is_lossy:
            raise LabError(f"{moved['read'] - arrived} frames that {self.tap} gave did not arrive")
        frames = arrived + (moved["written"] if shape.direction == BOTH else 0)
        return float(frames) / float(moved["seconds"]) / 1e6

    def _statistic(self, name: str) -> int:
        return int(self.front_end.ask("show port stats 0", rf"{name}:\s+(\d+)")[1])


@contextmanager
def user_cases(
    bare: Bare,
    image: Image,
    directory: Path,
    network: LabNetwork,
    poll_us: int | None = None,
    *,
    quick: bool = True,
) -> Iterator[list[Case]]:
    """Transmit, receive and both, split and packed, with the bare tap as the limit."""
    with ExitStack() as stack:

        def driven(who: Device | Dpdk, tap: str, *, packed: bool) -> Driven:
            stack.callback(who.close)
            network.set_up(tap, True)
            network.set_queue_length(tap, QUEUE_FRAMES)
            front_end = _front_end(f"user-{tap}", who, image, directory, packed=packed)
            stack.callback(front_end.close)
            return Driven(who, tap, front_end, bare.peers)

        contestants: dict[tuple[str, bool], Driven] = {}
        for packed in (False, True):
            ours, theirs = (f"{name}{int(packed)}" for name in ("user", "userdpdk"))
            device = Device(ours, f"tap,id=n,ifname={ours}", directory, ",packed=on", poll_us=poll_us)
            contestants[SUBJECT, packed] = driven(device, ours, packed=packed)
            dpdk = Dpdk(theirs, f"net_tap0,iface={theirs}", image, directory)
            contestants[DPDK, packed] = driven(dpdk, theirs, packed=packed)
        yield [_case(shape, bare, contestants) for shape in user_shapes(quick=quick)]


def _front_end(name: str, who: Device | Dpdk, image: Image, directory: Path, *, packed: bool) -> Testpmd:
    ring = f"queues=1,queue_size={RING_SIZE},packed_vq={int(packed)}"
    with who.turn() as socket:
        front_end = Testpmd(
            name,
            image,
            directory,
            drivers=("net_virtio",),
            lcores=f"0@{FRONT_END_CPU},1@{FRONT_END_CPU}",
            eal=("--vdev", f"net_virtio_user0,path={socket},mac={MAC},{ring}"),
            app=("--nb-cores=1", f"--txd={RING_SIZE}", f"--rxd={RING_SIZE}"),
            interactive=True,
        )
    front_end.pause()
    return front_end


def _case(shape: Shape, bare: Bare, contestants: dict[tuple[str, bool], Driven]) -> Case:
    limit, take_limit = bare.limit(shape)
    takes: dict[str, Take] = {
        SUBJECT: partial(contestants[SUBJECT, shape.packed].sample, shape),
        limit: take_limit,
        DPDK: partial(contestants[DPDK, shape.packed].sample, shape),
    }
    goals = [Goal(DPDK, at_least=1.0)]
    if shape.direction in OF_LIMIT:
        goals.append(Goal(limit, at_least=OF_LIMIT[shape.direction]))
    key = f"user-{shape.key.partition('-')[2]}"
    return Case(key, f"virtio_user, {shape.title}", shape.unit, takes, tuple(goals))
