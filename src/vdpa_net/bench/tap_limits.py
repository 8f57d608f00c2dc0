# SPDX-License-Identifier: Apache-2.0
"""The bare tap, which is the limit of every device on one: loops that read and write, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from vdpa_net.bench.case import Case, Take
from vdpa_net.bench.native import DEVICE_CPU, FRONT_END_CPU, Peers
from vdpa_net.bench.shapes import BOTH, GSO_BYTES, LONG, RX, SMALL, TX, Shape
from vdpa_net.lab.network import LabNetwork

WRITE = "bare tap, write"
READ = "bare tap, read"
READ_WRITE = "bare tap, read and write"
WRITEV = "bare tap, writev"
READV = "bare tap, readv"
WRITE_IO_URING = "bare tap, write by io_uring"
READ_IO_URING = "bare tap, read by io_uring"
NAPI = "bare tap, write, IFF_NAPI"
TWO_THREADS = "bare tap, write, two threads"
WRITE_RING = "bare tap, write, 256 buffers"
READ_RING = "bare tap, read, 256 buffers"
RING_SIZE = 256
"""Descriptors of a ring, and buffers of the loops that have as many."""

WRITE_COMPANY = "bare tap, write, in company"
READ_COMPANY = "bare tap, read, in company"

QUEUE_FRAMES = 10_000
"""Length of a tap's queue."""
BURST_FRAMES = 8192
"""Frames in it when its emptying begins."""
BURST_SEGMENTS = 512
"""The same of frames that are 65,000 bytes long: 33 MB."""
QUICK_ROUNDS = 3
BARE_TAP = "bare0"
BARE_QUEUES_TAP = "bare1"


def burst_frames(shape: Shape) -> int:
    """How many frames a queue is filled with."""
    return BURST_SEGMENTS if shape.is_gso else BURST_FRAMES


@dataclass
class Bare:
    """Takes samples of loops on taps of its own."""

    peers: Peers

    @classmethod
    def prepare(cls, peers: Peers, network: LabNetwork) -> Bare:
        """Make the taps."""
        network.make_tap(BARE_TAP)
        network.make_tap(BARE_QUEUES_TAP, multi_queue=True)
        for tap in (BARE_TAP, BARE_QUEUES_TAP):
            network.set_up(tap, True)
            network.set_queue_length(tap, QUEUE_FRAMES)
        return cls(peers)

    def write(self, shape: Shape, method: str = "write", **more: object) -> float:
        """A thread that writes on the device's processor, or with `threads` several, to a queue each."""
        tap = BARE_QUEUES_TAP if "threads" in more else BARE_TAP
        options = {"tap": tap, "bytes": shape.size_bytes, "gso": shape.is_gso, "method": method}
        return shape.value(self.peers.mega_frames("tap-write", DEVICE_CPU, **options, **more))

    def read(self, shape: Shape, method: str = "read", buffers: int = 1) -> float:
        """A thread that reads what another processor has sent; of the shape BOTH it writes as much."""
        options: dict[str, object] = {
            "tap": BARE_TAP,
            "bytes": shape.size_bytes,
            "gso": shape.is_gso,
            "frames": burst_frames(shape),
            "both": shape.direction == BOTH,
            "method": method,
            "buffers": buffers,
            "fill-cpu": FRONT_END_CPU,
            "read-cpu": DEVICE_CPU,
        }
        return shape.value(self.peers.mega_frames("tap-read", **options))

    def limit(self, shape: Shape) -> tuple[str, Take]:
        """The loop that does what a device does with this shape."""
        if shape.direction == TX:
            return WRITE, partial(self.write, shape)
        return READ_WRITE if shape.direction == BOTH else READ, partial(self.read, shape)

    def ring_limit(self, shape: Shape) -> tuple[str, Take] | None:
        """The loop that has as many buffers as a ring, where it goes one way."""
        if shape.direction == TX:
            return WRITE_RING, partial(self.write, shape, buffers=RING_SIZE)
        return (READ_RING, partial(self.read, shape, buffers=RING_SIZE)) if shape.direction == RX else None

    def in_company(self, take: Take) -> float:
        """A sample beside a processor that polls, which the other one of a device does."""
        with self.peers.company():
            return take()

    def company(self, shape: Shape) -> tuple[str, Take]:
        """The loop of a direction beside a processor that polls."""
        name = WRITE_COMPANY if shape.direction == TX else READ_COMPANY
        return name, partial(self.in_company, self.limit(shape)[1])

    def company_cases(self) -> Iterator[Case]:
        """Whether that matters to the loops: they have an idle processor beside them."""
        for key, shape in (("write", Shape(TX, SMALL)), ("read", Shape(RX, SMALL))):
            alone, take = self.limit(shape)
            takes = dict([(alone, take), self.company(shape)])
            yield Case(f"self-company-{key}", f"{alone}, 64 B, alone", shape.unit, takes, subject=alone)

    def cases(self, *, quick: bool) -> Iterator[Case]:
        """What each way of reading and writing gives. Figures, not goals."""
        for size in (SMALL, GSO_BYTES) if quick else (SMALL, LONG, GSO_BYTES):
            shape = Shape(TX, size)
            writes: dict[str, Take] = {
                WRITE: partial(self.write, shape),
                WRITEV: partial(self.write, shape, "writev"),
                WRITE_IO_URING: partial(self.write, shape, "io_uring"),
                NAPI: partial(self.write, shape, napi=True),
                TWO_THREADS: partial(self.write, shape, threads=2),
            }
            reads: dict[str, Take] = {
                READ: partial(self.read, shape),
                READV: partial(self.read, shape, "readv"),
                READ_IO_URING: partial(self.read, shape, "io_uring"),
            }
            name = shape.title.partition(", ")[2]
            key = shape.key.rpartition("-")[2]
            for way, told, takes, subject in (
                ("write", "writing", writes, WRITE),
                ("read", "reading", reads, READ),
            ):
                yield Case(
                    key=f"limit-{way}-{key}",
                    title=f"{told}, {name}",
                    unit=shape.unit,
                    contestants=takes,
                    subject=subject,
                    # There are no goals here: a quick run does with few rounds.
                    max_rounds=QUICK_ROUNDS if quick else None,
                )
