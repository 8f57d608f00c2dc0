# SPDX-License-Identifier: Apache-2.0
"""The ring engine alone: packets go nowhere, beside DPDK's vhost library on the same front end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from vdpa_net.bench.case import SUBJECT, Case, Goal
from vdpa_net.bench.contestants import Device, Dpdk, drive
from vdpa_net.bench.native import Peers
from vdpa_net.lab.image import Image

DPDK = "DPDK net_vhost + net_null"
SIZES_BYTES = (64, 1500)
RING_SIZE = 256


@contextmanager
def ring_cases(
    peers: Peers, image: Image, directory: Path, poll_us: int | None = None
) -> Iterator[list[Case]]:
    """Transmit and receive, 64 and 1500 bytes, split and packed, and what logging costs."""
    cases: list[Case] = []
    with ExitStack() as stack:
        for size in SIZES_BYTES:
            source = f"null,id=n,source=on,packet_bytes={size}"
            device = Device(f"null-{size}", source, directory, ",packed=on", poll_us=poll_us)
            stack.callback(device.close)
            dpdk = Dpdk(f"dpdk-null-{size}", f"net_null0,size={size}", image, directory)
            stack.callback(dpdk.close)
            for direction in ("tx", "rx"):
                for ring in ("split", "packed"):
                    options = {"direction": direction, "bytes": size, "ring": ring, "size": RING_SIZE}
                    cases.append(
                        Case(
                            key=f"ring-{direction}-{size}-{ring}",
                            title=f"ring engine, {direction}, {size} B, {ring}",
                            unit="Mframes/s",
                            contestants={
                                SUBJECT: partial(drive, device, peers, **options),
                                DPDK: partial(drive, dpdk, peers, **options),
                            },
                            goals=(Goal(DPDK, at_least=1.0),),
                        )
                    )
        yield cases
