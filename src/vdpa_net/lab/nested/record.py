# SPDX-License-Identifier: Apache-2.0
"""What a device's events say about its queues, in the form of the vDPA driver's own record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vdpa_net.wire.lm import pack_ring_state

MEDIATED_IOVA = 1 << 45
"""Where DPDK's ifc driver maps used rings of its own while it logs in place of the device."""


def device_records(events: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One record per queue (fields of `driver.vdpa_driver.QueueRecord`), of its last start and stop.

    Ring states are the device's own; times are CLOCK_MONOTONIC of the device's machine. A used ring that the
    driver has put in the place of the guest's is told as the guest's, which it copies it to.
    """
    records: dict[int, dict[str, Any]] = {}
    for event in events:
        if event["event"] == "queue_started":
            before = records.get(event["queue"])
            record = records[event["queue"]] = _started(event)
            if record["device"] >= MEDIATED_IOVA and before is not None:
                record["device"] = before["device"]
        elif event["event"] == "queue_stopped" and event["queue"] in records:
            records[event["queue"]] |= {
                "ring_state_after_stop": _state(event),
                "stop_requested_ns": event["requested_ns"],
                "stopped_ns": event["ns"],
            }
    return [record for _, record in sorted(records.items())]


def _started(event: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "queue": event["queue"],
        "size": event["size"],
        "descriptor": event["desc"],
        "driver": event["driver"],
        "device": event["device"],
        "ring_state_before_enable": _state(event),
        "ring_state_after_stop": None,
        "started_ns": event["ns"],
        "stop_requested_ns": None,
        "stopped_ns": None,
    }


def _state(event: Mapping[str, Any]) -> int:
    return pack_ring_state(event["last_avail_idx"], event["used_idx"])
