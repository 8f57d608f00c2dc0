# SPDX-License-Identifier: Apache-2.0
"""What the sides' processes know about a migration, asked over their control sockets."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vdpa_net.lab.migrate.topology import HostedGuest
from vdpa_net.lab.ram import Ram
from vdpa_net.lab.side import Side
from vdpa_net.migration.checks import DETAIL_LIMIT, PAGE_BYTES

SHOWN_BYTES = 16
_KINDS = {True: "of a ring", False: "of a buffer"}


def queue_record(side: Side, queue: int) -> Mapping[str, Any]:
    """The driver's record of a queue, empty if it has none."""
    queues = side.driver("evidence")["queues"]
    return next((dict(record) for record in queues if record.get("queue") == queue), {})


def first_stop_request_ns(side: Side, queue_pairs: int) -> int | None:
    """When the driver began to stop the first of its receive queues (CLOCK_MONOTONIC)."""
    found = (queue_record(side, 2 * pair).get("stop_requested_ns") for pair in range(queue_pairs))
    times = [int(at_ns) for at_ns in found if at_ns is not None]
    return min(times, default=None)


def started_ns(side: Side, queue_pairs: int) -> tuple[int, int] | None:
    """When the first and the last of its queues ran (CLOCK_MONOTONIC)."""
    found = (queue_record(side, queue).get("started_ns") for queue in range(2 * queue_pairs))
    times = [int(at_ns) for at_ns in found if at_ns is not None]
    return (min(times), max(times)) if times else None


def ring_name(queue: int, queue_pairs: int) -> str:
    """What the verdict calls a queue."""
    name = "tx" if queue % 2 else "rx"
    return name if queue_pairs == 1 else f"{name}{queue // 2}"


def describe_pages(
    pages: Sequence[int], source: HostedGuest, destination: Ram, *, by_file: bool = False
) -> dict[int, str]:
    """For the first differing pages: what the source's device wrote there last, and what is there now.

    `by_file`: the device's audit numbers pages by the file behind them; its rings have addresses of their own
    then.
    """
    first = sorted(pages)[:DETAIL_LIMIT]
    if not source.side.is_watched or not first:
        return {}
    rings = {
        int(record[part]) >> 12: f"{part} area of vq{record['queue']}"
        for record in source.side.driver("evidence")["queues"]
        for part in ("descriptor", "driver", "device")
        if not by_file
    }
    audited = [source.ram.file_pages(page, page + 1)[0][0] for page in first] if by_file else first
    found: dict[int, str] = {}
    for page, write in zip(first, source.side.device("audit_last_writes", pages=audited), strict=True):
        where = f" ({rings[page]})" if page in rings else ""
        if write is None:
            found[page] = f"{where} the device wrote nothing there while it logged"
            continue
        offset, length, is_ring = write
        address = page * PAGE_BYTES + offset
        shown = min(length, SHOWN_BYTES)
        here, there = (ram.read(address, shown).hex(" ") for ram in (source.ram, destination))
        found[page] = (
            f"{where} the device last wrote {length} bytes {_KINDS[bool(is_ring)]} at {address:#x}; there is "
            f"{here} at the source, {there} at the destination"
        )
    return found


def keep_evidence(side: Side, path: Path) -> None:
    """Everything that a side knows, in a file."""
    known = {
        "inspect": side.device("inspect"),
        "events": side.device("events"),
        "evidence": side.driver("evidence"),
        "wire_log": side.driver("wire_log"),
    }
    path.write_text(json.dumps(known, indent=1) + "\n")
