# SPDX-License-Identifier: Apache-2.0
"""What a driver tells a device about a queue, and what it saw of it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class QueueSetup:
    """One queue. Addresses are the device's: `descriptor`, `available` and `used` are the descriptor, the
    driver and the device area; `guest_addresses` is where they begin in guest memory, if not there. Of a
    split queue `used_idx` is the one in memory; the indices of a packed one are in the vhost encoding (offset
    in bits 14:0, wrap counter in bit 15).
    """

    index: int
    size: int
    descriptor: int
    available: int
    used: int
    last_avail_idx: int
    used_idx: int
    guest_addresses: tuple[int, int, int] | None = None


@dataclass
class QueueRecord:
    """What the driver saw of a queue since its last start, for the one who judges a migration.

    Addresses are guest physical, ring states are LM_RING_STATE as read (32 bits), times are CLOCK_MONOTONIC.
    """

    queue: int
    size: int = 0
    descriptor: int = 0
    driver: int = 0
    device: int = 0
    ring_state_before_enable: int | None = None
    ring_state_after_stop: int | None = None
    started_ns: int | None = None
    stop_requested_ns: int | None = None
    stopped_ns: int | None = None
