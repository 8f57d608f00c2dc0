# SPDX-License-Identifier: Apache-2.0
"""A driver's ring in either format, by a flag."""

from __future__ import annotations

from vdpa_net.testing.guest_memory import GuestMemory
from vdpa_net.testing.packed_ring import PackedRing
from vdpa_net.testing.ring import DriverRing
from vdpa_net.testing.split_ring import SplitRing


def allocate_ring(
    memory: GuestMemory,
    size: int,
    *,
    packed: bool = False,
    event_idx: bool = True,
    first_index: int = 0,
    region: int = 0,
) -> DriverRing:
    """A ring in unused guest memory that stands where `first_index` entries have passed through it."""
    made = PackedRing if packed else SplitRing
    return made.allocate(memory, size, event_idx=event_idx, first_index=first_index, region=region)
