# SPDX-License-Identifier: Apache-2.0
"""The bare tap, which is the limit, the device on a tap, and DPDK's vhost library on one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from vdpa_net.bench.case import SUBJECT, Case, Goal
from vdpa_net.bench.contestants import Device, Dpdk, drive
from vdpa_net.bench.native import DEVICE_CPU, FRONT_END_CPU, Peers
from vdpa_net.lab.image import Image
from vdpa_net.lab.network import LabNetwork

WRITE = "bare tap, write"
READ = "bare tap, read"
IO_URING = "bare tap, io_uring"
WRITE_RING = "bare tap, write, as many buffers as the ring"
WRITEV = "bare tap, writev"
DPDK = "DPDK net_vhost + net_tap"
LOGGING_OFF = "logging off"
ONE_PAIR = "one queue pair"

QUEUE_FRAMES = 10_000
GSO_BYTES = 65_000
RING_SIZE = 256
DEVICE_TAP = "bench0"
TWO_PAIRS_TAP = "bench1"
BARE_TAP = "bench2"
DPDK_TAP = "bench3"


@dataclass
class _Taps:
    peers: Peers
    device: Device
    two_pairs: Device
    dpdk: Dpdk

    def drive(self, contestant: Device | Dpdk, direction: str, size: int, **options: object) -> float:
        shape = {"ring": "split", "size": RING_SIZE, **options}
        return drive(contestant, self.peers, direction=direction, bytes=size, **shape)

    def write(self, size: int, method: str = "write", *, gso: bool = False, buffers: int = 1) -> float:
        return self.peers.mega_frames(
            "tap-write", tap=BARE_TAP, bytes=size, method=method, gso=gso, buffers=buffers
        )

    def read(self, size: int) -> float:
        return self.peers.mega_frames(
            "tap-read",
            tap=BARE_TAP,
            bytes=size,
            frames=QUEUE_FRAMES,
            **{"fill-cpu": FRONT_END_CPU, "read-cpu": DEVICE_CPU},
        )


@contextmanager
def tap_cases(
    peers: Peers, image: Image, directory: Path, network: LabNetwork, poll_us: int | None = None
) -> Iterator[list[Case]]:
    """Limits and the device in both directions; GSO, packed rings, two queue pairs, logging."""
    network.make_tap(BARE_TAP)
    with ExitStack() as stack:
        options = ",packed=on,mq=on"
        device = Device("tap", f"tap,id=n,ifname={DEVICE_TAP}", directory, options, poll_us=poll_us)
        stack.callback(device.close)
        two_queues = f"tap,id=n,ifname={TWO_PAIRS_TAP},queues=2"
        two_pairs = Device("tap2", two_queues, directory, options, pinned=False, poll_us=poll_us)
        stack.callback(two_pairs.close)
        dpdk = Dpdk("dpdk-tap", f"net_tap0,iface={DPDK_TAP}", image, directory)
        stack.callback(dpdk.close)
        for tap in (DEVICE_TAP, TWO_PAIRS_TAP, BARE_TAP, DPDK_TAP):
            network.set_up(tap, True)
            network.set_queue_length(tap, QUEUE_FRAMES)
        taps = _Taps(peers, device, two_pairs, dpdk)
        yield [*_limits(taps), *_transmit(taps), *_receive(taps), *_variants(taps)]


def _case(key: str, title: str, contestants: dict[str, object], *goals: Goal) -> Case:
    return Case(f"tap-{key}", f"tap, {title}", "Mframes/s", contestants, goals)  # type: ignore[arg-type]


def _limits(taps: _Taps) -> Iterator[Case]:
    for size in (64, 1500):
        contestants = {
            WRITE: partial(taps.write, size),
            WRITEV: partial(taps.write, size, "writev"),
            IO_URING: partial(taps.write, size, "io_uring"),
        }
        title = f"tap, limit, {size} B"
        yield Case(f"limit-write-{size}", title, "Mframes/s", contestants, subject=WRITE)


def _transmit(taps: _Taps) -> Iterator[Case]:
    for size in (64, 512, 1500):
        yield _case(
            f"tx-{size}",
            f"transmit, {size} B",
            {
                SUBJECT: partial(taps.drive, taps.device, "tx", size),
                WRITE: partial(taps.write, size),
                DPDK: partial(taps.drive, taps.dpdk, "tx", size),
            },
            Goal(WRITE, at_least=1.0),
            Goal(DPDK, at_least=1.0),
        )
    yield _case(
        "tx-gso",
        f"transmit, {GSO_BYTES} B GSO",
        {
            SUBJECT: partial(taps.drive, taps.device, "tx", GSO_BYTES, gso=True),
            WRITE: partial(taps.write, GSO_BYTES, gso=True),
            WRITE_RING: partial(taps.write, GSO_BYTES, gso=True, buffers=RING_SIZE),
        },
        Goal(WRITE, at_least=0.9),
        Goal(WRITE_RING, at_least=0.9),
    )


def _receive(taps: _Taps) -> Iterator[Case]:
    for size in (64, 1500):
        yield _case(
            f"rx-{size}",
            f"receive from a full queue, {size} B",
            {
                SUBJECT: partial(taps.drive, taps.device, "rx", size, burst=DEVICE_TAP),
                READ: partial(taps.read, size),
            },
            Goal(READ, at_least=0.95),
        )


def _variants(taps: _Taps) -> Iterator[Case]:
    plain = partial(taps.drive, taps.device, "tx", 64)
    yield _case(
        "tx-64-packed",
        "transmit, 64 B, packed",
        {SUBJECT: partial(taps.drive, taps.device, "tx", 64, ring="packed"), WRITE: partial(taps.write, 64)},
        Goal(WRITE, at_least=1.0),
    )
    yield _case(
        "tx-64-log",
        "transmit, 64 B, logging on",
        {SUBJECT: partial(taps.drive, taps.device, "tx", 64, log=True), LOGGING_OFF: plain},
        Goal(LOGGING_OFF, at_least=0.95),
    )
    yield _case(
        "rx-64-log",
        "receive, 64 B, logging on",
        {
            SUBJECT: partial(taps.drive, taps.device, "rx", 64, burst=DEVICE_TAP, log=True),
            LOGGING_OFF: partial(taps.drive, taps.device, "rx", 64, burst=DEVICE_TAP),
        },
        Goal(LOGGING_OFF, at_least=0.95),
    )
    yield _case(
        "tx-64-two-pairs",
        "transmit, 64 B, two queue pairs",
        {
            SUBJECT: partial(taps.drive, taps.two_pairs, "tx", 64, pairs=2, gentle=True),
            ONE_PAIR: partial(taps.drive, taps.device, "tx", 64, gentle=True),
        },
        Goal(ONE_PAIR, at_least=1.7),
    )
