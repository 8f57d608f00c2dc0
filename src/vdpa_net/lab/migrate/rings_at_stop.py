# SPDX-License-Identifier: Apache-2.0
"""How the rings stood at their stop, as guest RAM tells it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

LARGEST_PACKET_BUFFERS: Final = 43
"""Buffers that one packet can take with MRG_RXBUF: 65562 bytes (virtio 1.3, 5.1.6.3.1) in those of Linux,
which hold a frame of 1518 and its header each."""


@dataclass(frozen=True)
class RingsAtStop:
    """What RAM says of the rings at their stop: buffers that each has completed since a moment, and receive
    buffers that were still posted, by the ring's name."""

    done: dict[str, int] = field(default_factory=dict)
    posted: dict[str, int] = field(default_factory=dict)
    mergeable: bool = False

    @property
    def may_leave_packets(self) -> bool:
        """Whether a receive ring had no room for the next packet: then some wait in front of the device for a
        guest that offers nothing, and a stop can't deliver them."""
        needed = LARGEST_PACKET_BUFFERS if self.mergeable else 1
        return any(posted < needed for posted in self.posted.values())
