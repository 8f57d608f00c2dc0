# SPDX-License-Identifier: Apache-2.0
"""The device on a tap, driven by DPDK's virtio_user, beside DPDK's vhost library with the same front end.

testpmd sends (txonly), takes (rxonly), or sends each frame back that it takes (io). It polls, on the
processor of the front end. It makes no segments that are to be cut later on and does not share a log:
sending these, and logging, is the native front end's alone.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial

from vdpa_net.bench.case import SUBJECT, Case, Goal, Take
from vdpa_net.bench.contestants import Device, Dpdk, Site
from vdpa_net.bench.native import FRONT_END_CPU, Peers
from vdpa_net.bench.shapes import BOTH, DIRECTIONS, GSO_BYTES, LONG, MIDDLE, RX, SMALL, TX, Shape
from vdpa_net.bench.tap_limits import BURST_SEGMENTS, RING_SIZE, Bare
from vdpa_net.bench.taps import FLOWS, dpdk_for, limit_goals
from vdpa_net.bench.testpmd import Testpmd
from vdpa_net.errors import LabError

FORWARDING = {TX: "txonly", RX: "rxonly", BOTH: "io"}
BURST_FRAMES = 32_768
"""Many, since their end is seen on the kernel's counters, 0.2 ms late."""
QUEUE_FRAMES = 40_000
WARM_UP_SECONDS = 0.1
LATE_SECONDS, LATE_SECONDS_LOSSY = 5.0, 0.05
RX_SCATTER = 1 << 13
"""RTE_ETH_RX_OFFLOAD_SCATTER: frames longer than a buffer come in several (VIRTIO_NET_F_MRG_RXBUF)."""
RX_SEGMENTS = 1 << 2 | 1 << 3 | 1 << 4
"""UDP_CKSUM, TCP_CKSUM and TCP_LRO, for which it asks for GUEST_CSUM and GUEST_TSO4."""
MAC = "52:54:00:be:0c:77"


def user_shapes(*, quick: bool) -> Iterator[Shape]:
    """All cases of this front end; a quick run has 64 bytes alone, packed and two pairs in transmit alone."""
    for direction in DIRECTIONS:
        for size in (SMALL,) if quick else (SMALL, MIDDLE, LONG):
            yield Shape(direction, size)
        if quick and direction != TX:
            continue
        for size in (SMALL,) if quick else (SMALL, LONG):
            yield Shape(direction, size, packed=True)
        yield Shape(direction, SMALL, pairs=2)
    for packed in (False,) if quick else (False, True):
        yield Shape(RX, GSO_BYTES, packed=packed)


@dataclass(frozen=True)
class Rings:
    """What the rings of a front end are like."""

    packed: bool
    pairs: int


RINGS = (Rings(False, 1), Rings(True, 1), Rings(False, 2))


@dataclass
class Driven:
    """A contestant, its tap, and the testpmd that is its front end for good."""

    who: Device | Dpdk
    tap: str
    front_end: Testpmd
    peers: Peers

    def sample(self, shape: Shape, size_bytes: int = 0) -> float:
        """In the unit of the shape, with frames of another size than its own if that is given.

        Of BOTH the frames of both directions count.
        """
        sent = replace(shape, size_bytes=size_bytes or shape.size_bytes)
        with self.who.turn():
            self.front_end.go_on()
            try:
                self.front_end.ask(f"set fwd {FORWARDING[shape.direction]}", "Set .* packet forwarding mode")
                self.front_end.ask(f"set txpkts {min(sent.size_bytes, LONG)}", "set txpkts")
                self.front_end.ask("start", "forwards packets on")
                with self.peers.waits.of(*self._watched()):
                    value = (
                        self._sent()
                        if shape.direction == TX
                        else shape.value(self._drained(sent), sent.size_bytes)
                    )
                self.front_end.ask("stop", r"Done\.")
            finally:
                self.front_end.pause()
        return value

    def _watched(self) -> tuple[int, ...]:
        """Whose waiting counts: a front end beside DPDK waits for DPDK's own threads (see `Peers.sample`)."""
        return (self.who.pid,) if self.who.is_lossy else (self.who.pid, self.front_end.pid)

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
            gso=shape.is_gso,
            both=shape.direction == BOTH,
            frames=BURST_SEGMENTS if shape.is_gso else BURST_FRAMES,
            flows=FLOWS if shape.pairs > 1 else 0,
            pid=self.who.pid,
            **{"front-end": self.front_end.pid},
        )
        # The last ones have been read from the tap, and are on their way through the ring.
        deadline = time.monotonic() + (LATE_SECONDS_LOSSY if self.who.is_lossy else LATE_SECONDS)
        while (arrived := self._statistic("RX-packets") - before) < moved["read"]:
            if time.monotonic() > deadline:
                break
        if arrived < moved["read"] and not self.who.is_lossy:
            raise LabError(f"{moved['read'] - arrived} frames that {self.tap} gave did not arrive")
        frames = arrived + (moved["written"] if shape.direction == BOTH else 0)
        return float(frames) / float(moved["seconds"]) / 1e6

    def _statistic(self, name: str) -> int:
        return int(self.front_end.ask("show port stats 0", rf"{name}:\s+(\d+)")[1])


@dataclass(frozen=True)
class Match:
    """Who is compared on rings of one kind."""

    device: Driven
    dpdk: Driven


@contextmanager
def user_cases(bare: Bare, site: Site) -> Iterator[list[Case]]:
    """Transmit, receive and both, split and packed, with the bare tap as the limit."""
    with ExitStack() as stack:

        def driven(who: Device | Dpdk, tap: str, rings: Rings) -> Driven:
            stack.callback(who.close)
            site.network.set_up(tap, True)
            site.network.set_queue_length(tap, QUEUE_FRAMES)
            front_end = _front_end(f"user-{tap}", who, site, rings)
            stack.callback(front_end.close)
            return Driven(who, tap, front_end, bare.peers)

        def match(number: int, rings: Rings) -> Match:
            ours, theirs = f"user{number}", f"userdpdk{number}"
            netdev = f"tap,id=n,ifname={ours},queues={rings.pairs}"
            pinned = rings.pairs == 1
            device = Device(
                ours, netdev, site.directory, ",packed=on,mq=on", pinned=pinned, poll_us=site.poll_us
            )
            port = f"net_tap0,iface={theirs}"
            # One core also for two pairs: a second one would fight with the front end, which polls, too.
            dpdk = Dpdk(theirs, port, site.image, site.directory, queue_pairs=rings.pairs)
            return Match(driven(device, ours, rings), driven(dpdk, theirs, rings))

        matches = {rings: match(number, rings) for number, rings in enumerate(RINGS)}
        yield [_case(shape, bare, matches) for shape in user_shapes(quick=site.quick)]


def _front_end(name: str, who: Device | Dpdk, site: Site, rings: Rings) -> Testpmd:
    ring = f"queues={rings.pairs},queue_size={RING_SIZE},packed_vq={int(rings.packed)}"
    with who.turn() as socket:
        front_end = Testpmd(
            name,
            site.image,
            site.directory,
            drivers=("net_virtio",),
            lcores=f"0@{FRONT_END_CPU},1@{FRONT_END_CPU}",
            eal=("--vdev", f"net_virtio_user0,path={socket},mac={MAC},{ring}"),
            app=(
                *("--nb-cores=1", f"--txd={RING_SIZE}", f"--rxd={RING_SIZE}"),
                *(f"--txq={rings.pairs}", f"--rxq={rings.pairs}"),
                f"--rx-offloads={RX_SCATTER | (RX_SEGMENTS if isinstance(who, Device) else 0):#x}",
            ),
            interactive=True,
        )
    front_end.pause()
    return front_end


def _case(shape: Shape, bare: Bare, matches: Mapping[Rings, Match]) -> Case:
    match = matches[Rings(shape.packed, shape.pairs)]
    limit, take_limit = bare.limit(shape)
    dpdk, dpdk_bytes = dpdk_for(shape)
    takes: dict[str, Take] = {SUBJECT: partial(match.device.sample, shape)}
    goals = [Goal(dpdk, at_least=1.0)]
    if shape.pairs == 1:
        takes[limit] = take_limit
        goals += limit_goals(shape, limit)
    takes[dpdk] = partial(match.dpdk.sample, shape, dpdk_bytes)
    key = f"user-{shape.key.partition('-')[2]}"
    title = f"virtio_user, {shape.title}"
    return Case(key, title, shape.unit, takes, tuple(goals), is_crowded=shape.pairs > 1)
