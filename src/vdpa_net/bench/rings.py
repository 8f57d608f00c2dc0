# SPDX-License-Identifier: Apache-2.0
"""The ring engine alone, beside DPDK's vhost library: packets go nowhere, or come back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

from vdpa_net.bench.case import SUBJECT, Case, Goal
from vdpa_net.bench.contestants import Device, Dpdk, Site, drive
from vdpa_net.bench.native import Peers

DPDK = "DPDK net_vhost + net_null"
DPDK_LOOP = "DPDK net_vhost to itself"
"""testpmd's io mode with this port alone: what a pair sends it receives, as of our `loopback`. No packet is
looked at (macswap would change each), which is the fastest that DPDK has."""
SIZES_BYTES = (64, 1500)
RINGS = ("split", "packed")
RING_SIZE = 256
LONG_RUN_ONLY = {
    "ring-tx-1500-packed",
    "ring-rx-1500-packed",
    "ring-loop-1500-split",
    "ring-loop-1500-packed",
    "ring-loop-64-packed",
}
TITLES = {"tx": "transmit", "rx": "receive", "loop": "loopback"}


@contextmanager
def ring_cases(peers: Peers, site: Site) -> Iterator[list[Case]]:
    """Transmit and receive on `null`, and frames that come back on `loopback`; both ring formats.

    A quick run has packed rings with 64 bytes, and 64 bytes alone on `loopback`.
    """
    cases: list[Case] = []
    with ExitStack() as stack:

        def device(name: str, netdev: str) -> Device:
            made = Device(name, netdev, site.directory, ",packed=on", poll_us=site.poll_us)
            stack.callback(made.close)
            return made

        def dpdk(name: str, port: str) -> Dpdk:
            made = Dpdk(name, port, site.image, site.directory)
            stack.callback(made.close)
            return made

        for size in SIZES_BYTES:
            ours = device(f"null-{size}", f"null,id=n,source=on,packet_bytes={size}")
            theirs = dpdk(f"dpdk-null-{size}", f"net_null0,size={size}")
            match = _Match(peers, ours, theirs, DPDK)
            cases += [*match.cases("tx", size), *match.cases("rx", size)]
        match = _Match(peers, device("loop", "loopback,id=n"), dpdk("dpdk-loop", ""), DPDK_LOOP)
        for size in SIZES_BYTES:
            cases += match.cases("loop", size)
        yield [case for case in cases if not (site.quick and case.key in LONG_RUN_ONLY)]


@dataclass(frozen=True)
class _Match:
    """Our device against DPDK, on rings of one format."""

    peers: Peers
    ours: Device
    theirs: Dpdk
    peer: str

    def cases(self, direction: str, size: int) -> Iterator[Case]:
        for ring in RINGS:
            options = {"direction": direction, "bytes": size, "ring": ring, "size": RING_SIZE}
            takes = {
                SUBJECT: partial(drive, self.ours, self.peers, **options),
                self.peer: partial(drive, self.theirs, self.peers, **options),
            }
            yield Case(
                key=f"ring-{direction}-{size}-{ring}",
                title=f"ring engine, {TITLES[direction]}, {size} B, {ring}",
                unit="Mframes/s",
                contestants=takes,
                goals=(Goal(self.peer, at_least=1.0),),
            )
