# SPDX-License-Identifier: Apache-2.0
"""A guest whose NIC is a vhost-user front end: memory, rings, a CPU that sends and checks frames."""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence
from pathlib import Path

from vdpa_net.errors import StateError
from vdpa_net.testing.front_end import WANTED_FEATURES, WANTED_PROTOCOL_FEATURES, Manners, VhostFrontEnd
from vdpa_net.testing.guest_cpu import RX, TX, GuestCpu, Wires
from vdpa_net.testing.guest_memory import GuestMemory
from vdpa_net.testing.net_queues import NetQueues
from vdpa_net.testing.ring_formats import allocate_ring
from vdpa_net.testing.vhost_connection import Request

MAC = "52:54:00:00:00:2a"
HIGH = 1 << 32
LAYOUT = ((0, 1 << 20), (HIGH, 8 << 20))
"""Guest memory: a hole between its regions, as a PC has one."""

RING_SIZE = 256
_PATIENCE_S = 20.0
_POLL_S = 0.005


class VhostGuest:
    """Connects at once and negotiates nothing yet: `front_end.connect()` does, and starts the rings."""

    def __init__(
        self,
        where: Path | socket.socket,
        *,
        features: int = WANTED_FEATURES,
        protocol_features: int = WANTED_PROTOCOL_FEATURES,
        manners: Manners | None = None,
        layout: Sequence[tuple[int, int]] = LAYOUT,
        shared: int | None = None,
        packed: bool = False,
        ring_size: int = RING_SIZE,
    ) -> None:
        """`shared`: how many regions the front end shares for now (None: all)."""
        self._packed = packed
        self._ring_size = ring_size
        self.memory = GuestMemory(layout)
        self._make_rings()
        self.front_end = VhostFrontEnd(
            where,
            self.memory,
            self.rings,
            features=features,
            protocol_features=protocol_features,
            manners=manners,
        )
        self.front_end.shared = shared

    def _make_rings(self) -> None:
        self.rings = [
            allocate_ring(self.memory, self._ring_size, packed=self._packed, region=1) for _ in (RX, TX)
        ]
        self.cpu = GuestCpu(NetQueues(self.memory, self.rings[RX], self.rings[TX], region=1))

    def reset_rings(self) -> None:
        """Begin with fresh rings, as a guest's driver does after it has reset its device."""
        self.cpu.close()
        self._make_rings()
        self.front_end.rings = list(self.rings)

    def use_buffers_of(self, region: int) -> None:
        """Take all further buffers from this region of memory."""
        self.cpu.queues.add_buffers(region)

    def resume(self) -> None:
        """Let the CPU run."""
        self.cpu.run(Wires(self.front_end.kick, self.front_end.call_fds))

    def run(self, frames: int) -> None:
        """Run until so many more frames have come back; then pause. Raises StateError if they don't."""
        self.resume()
        come = self.cpu.wait_for_frames(frames)
        self.cpu.pause()
        if not come:
            raise StateError(f"{frames} frames did not come back: {len(self.cpu.ledger.received)} did so far")

    def await_status(self, wanted: int) -> None:
        """Wait until GET_STATUS answers this. Raises StateError."""
        deadline = time.monotonic() + _PATIENCE_S
        # The protocol has no message that tells of a change of the status.
        while (status := self.front_end.get_u64(Request.GET_STATUS)) != wanted:
            if time.monotonic() > deadline:
                raise StateError(f"GET_STATUS answers {status:#x}, expected {wanted:#x}")
            time.sleep(_POLL_S)

    def close(self) -> None:
        """Pause and hang up."""
        self.cpu.close()
        self.front_end.close()
        self.memory.close()
