# SPDX-License-Identifier: Apache-2.0
"""From the options of `--netdev` to a back end."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import TYPE_CHECKING

from vdpa_net.errors import BackendError
from vdpa_net.options import LoopbackNetdev, Netdev, NullNetdev, PcapNetdev

if TYPE_CHECKING:
    from vdpa_net.backend import Backend

# Each is imported when it is asked for: a device has to listen soon after the start.
# ruff: noqa: PLC0415


def open_backend(netdev: Netdev) -> Backend:
    """The back end that the options describe. Raises BackendError."""
    if isinstance(netdev, LoopbackNetdev):
        from vdpa_net.backend.loopback import Loopback

        return Loopback(netdev.queues, netdev.depth)
    if isinstance(netdev, NullNetdev):
        return _open_null(netdev)
    if isinstance(netdev, PcapNetdev):
        from vdpa_net.backend.null import Null

        return record(Null(netdev.queues), netdev.file)
    from vdpa_net.backend.tap import Tap

    return Tap(netdev.ifname, queues=netdev.queues, script=netdev.script, downscript=netdev.downscript)


def _open_null(netdev: NullNetdev) -> Backend:
    from vdpa_net.backend.null import Null, Source

    if not netdev.source:
        return Null(netdev.queues)
    destination = bytes.fromhex(netdev.destination.replace(":", ""))
    return Null(netdev.queues, Source(netdev.packet_bytes, netdev.rate_pps, netdev.flows, destination))


def record(backend: Backend, path: str | Path) -> Backend:
    """The back end with a recorder in front of it; it is closed with it. Raises BackendError."""
    from vdpa_net.backend.pcap import Recorder

    try:
        return Recorder(backend, path)
    except BackendError:
        backend.close()
        raise


def raise_file_limit() -> None:
    """Let this process open as many files as it may: a device of 511 queue pairs needs about 7 for each.

    For processes that are ours; a program that embeds a device decides for itself.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
