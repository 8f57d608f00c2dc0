# SPDX-License-Identifier: Apache-2.0
"""The device on a tap beside the bare tap, which is the limit, and DPDK's vhost library on a tap."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial

from vdpa_net.bench.case import SUBJECT, Case, Goal, Take
from vdpa_net.bench.contestants import Device, Dpdk, Site, drive
from vdpa_net.bench.native import Peers
from vdpa_net.bench.shapes import LONG, RX, SMALL, TX, Shape, shapes
from vdpa_net.bench.tap_limits import (
    QUEUE_FRAMES,
    RING_SIZE,
    TWO_THREADS,
    Bare,
    burst_frames,
)

DPDK = "DPDK net_vhost + net_tap"
DPDK_LONG = "DPDK net_vhost + net_tap, 1500 B"
"""Its net_tap has no segments that are to be cut later on: the kernel cuts them before."""
LOGGING_OFF = "logging off"
ONE_PAIR = "one queue pair"
ONCE, AGAIN = "once", "and again"

FLOWS = 32
DEVICE_TAP, TWO_PAIRS_TAP, DPDK_TAP, DPDK_TWO_PAIRS_TAP = "bench0", "bench1", "bench2", "bench3"
OF_LIMIT = {TX: 1.0, RX: 0.95}
OF_LIMIT_GSO = 0.9


def dpdk_for(shape: Shape) -> tuple[str, int]:
    """Which of DPDK's series stands beside a shape, and its size of frames; 0: that of the shape."""
    return (DPDK_LONG, LONG) if shape.is_gso else (DPDK, 0)


def limit_goals(shape: Shape, limit: str) -> list[Goal]:
    """What is wanted of the bare tap's loop, if anything is."""
    wanted = OF_LIMIT_GSO if shape.is_gso else OF_LIMIT.get(shape.direction)
    return [Goal(limit, at_least=wanted)] if wanted else []


@dataclass(frozen=True)
class OnTap:
    """A contestant and the interface of its tap."""

    who: Device | Dpdk
    tap: str


@dataclass
class Taps:
    """All who take part in cases on taps."""

    peers: Peers
    bare: Bare
    device: OnTap
    two_pairs: OnTap
    dpdk: OnTap
    dpdk_two_pairs: OnTap

    def drive(self, on_tap: OnTap, shape: Shape, size_bytes: int = 0, *, gentle: bool = False) -> float:
        """A sample of the native front end, with frames of another size than the shape's if that is given."""
        size = size_bytes or shape.size_bytes
        sent = replace(shape, size_bytes=size)
        options: dict[str, object] = {
            "direction": shape.direction,
            "bytes": size,
            "gso": sent.is_gso,
            "ring": "packed" if shape.packed else "split",
            "size": RING_SIZE,
            "pairs": shape.pairs,
            "log": shape.logging,
            "gentle": gentle,
        }
        if shape.direction != TX:
            options |= {"burst": on_tap.tap, "frames": burst_frames(sent)}
            # Frames of one flow come to one queue.
            options |= {"flows": FLOWS} if shape.pairs > 1 else {}
        return shape.value(drive(on_tap.who, self.peers, **options), size)

    def cases(self, *, quick: bool) -> Iterator[Case]:
        """Every shape of traffic, and what a ratio of a contestant to itself is in this run."""
        yield from self.selves()
        for shape in shapes(quick=quick):
            if shape.logging:
                yield self._logging(shape)
            elif shape.pairs > 1:
                yield self._pairs(shape)
            else:
                yield self._plain(shape)

    def selves(self) -> Iterator[Case]:
        """Contestants beside themselves: 1 is right, and how far it is missed is what other ratios miss."""
        write, read = Shape(TX, SMALL), Shape(RX, SMALL)
        for key, title, take in (
            ("write", "the bare write loop", partial(self.bare.write, write)),
            ("tx", "the device, transmit", partial(self.drive, self.device, write)),
            ("rx", "the device, receive", partial(self.drive, self.device, read)),
        ):
            takes = {ONCE: take, AGAIN: take}
            yield Case(f"self-{key}", f"{title}, 64 B, beside itself", write.unit, takes, subject=ONCE)
        yield from self.bare.company_cases()

    def _plain(self, shape: Shape) -> Case:
        limit, take_limit = self.bare.limit(shape)
        dpdk, dpdk_bytes = dpdk_for(shape)
        contestants: dict[str, Take] = {
            SUBJECT: partial(self.drive, self.device, shape),
            limit: take_limit,
            dpdk: partial(self.drive, self.dpdk, shape, dpdk_bytes),
        }
        goals = [Goal(dpdk, at_least=1.0), *limit_goals(shape, limit)]
        ring_limit = self.bare.ring_limit(shape) if shape.family == "tap" else None
        if ring_limit:
            name, contestants[name] = ring_limit
            # What a device can reach: its ring has so many buffers.
            goals += [Goal(name, at_least=OF_LIMIT_GSO)] if shape.is_gso and shape.direction == TX else []
        if shape in (Shape(TX, SMALL), Shape(RX, SMALL)):
            name, contestants[name] = self.bare.company(shape)
        return _case(shape, contestants, goals)

    def _logging(self, shape: Shape) -> Case:
        plain = replace(shape, logging=False)
        contestants: dict[str, Take] = {
            SUBJECT: partial(self.drive, self.device, shape),
            LOGGING_OFF: partial(self.drive, self.device, plain),
        }
        return _case(shape, contestants, [Goal(LOGGING_OFF, at_least=0.95)])

    def _pairs(self, shape: Shape) -> Case:
        """All have both processors; the front end sleeps when there is nothing to do."""
        contestants: dict[str, Take] = {
            SUBJECT: partial(self.drive, self.two_pairs, shape, gentle=True),
            ONE_PAIR: partial(self.drive, self.device, replace(shape, pairs=1), gentle=True),
            DPDK: partial(self.drive, self.dpdk_two_pairs, shape, gentle=True),
        }
        if shape.direction == TX:
            contestants[TWO_THREADS] = partial(self.bare.write, shape, threads=2)
        return _case(shape, contestants, [Goal(ONE_PAIR, at_least=1.7), Goal(DPDK, at_least=1.0)])


def _case(shape: Shape, contestants: dict[str, Take], goals: list[Goal]) -> Case:
    title, is_crowded = f"tap, {shape.title}", shape.pairs > 1
    return Case(shape.key, title, shape.unit, contestants, tuple(goals), is_crowded=is_crowded)


@contextmanager
def tap_cases(bare: Bare, site: Site) -> Iterator[list[Case]]:
    """Limits and the device in both directions; GSO, packed rings, two queue pairs, logging."""
    with ExitStack() as stack:

        def device(tap: str, queues: int, *, pinned: bool) -> OnTap:
            netdev = f"tap,id=n,ifname={tap},queues={queues}"
            made = Device(
                tap, netdev, site.directory, ",packed=on,mq=on", pinned=pinned, poll_us=site.poll_us
            )
            stack.callback(made.close)
            return OnTap(made, tap)

        def dpdk(tap: str, queues: int) -> OnTap:
            port = f"net_tap0,iface={tap}"
            made = Dpdk(f"dpdk-{tap}", port, site.image, site.directory, queue_pairs=queues, cores=queues)
            stack.callback(made.close)
            return OnTap(made, tap)

        taps = Taps(
            bare.peers,
            bare,
            device(DEVICE_TAP, 1, pinned=True),
            device(TWO_PAIRS_TAP, 2, pinned=False),
            dpdk(DPDK_TAP, 1),
            dpdk(DPDK_TWO_PAIRS_TAP, 2),
        )
        for tap in (DEVICE_TAP, TWO_PAIRS_TAP, DPDK_TAP, DPDK_TWO_PAIRS_TAP):
            site.network.set_up(tap, True)
            site.network.set_queue_length(tap, QUEUE_FRAMES)
        yield [*taps.bare.cases(quick=site.quick), *taps.cases(quick=site.quick)]
