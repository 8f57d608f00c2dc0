# SPDX-License-Identifier: Apache-2.0
"""A guest with an IOMMU, and its front end."""

from __future__ import annotations

from pathlib import Path

from vdpa_net.testing.front_end import WANTED_PROTOCOL_FEATURES, Manners
from vdpa_net.testing.front_end_iommu import IommuFrontEnd
from vdpa_net.testing.guest_cpu import RX, TX, GuestCpu, Wires
from vdpa_net.testing.guest_memory import GuestMemory
from vdpa_net.testing.iova_memory import IovaMemory
from vdpa_net.testing.net_queues import NetQueues
from vdpa_net.testing.split_ring import SplitRing

HIGH = 1 << 32
IOVA_BASE = 0xFE00_0000
IOVA_BYTES = 8 << 20
PHYSICAL = ((0, 1 << 20), (HIGH, 15 << 20))
END = HIGH + (15 << 20)
PATIENCE_S = 20


class IommuGuest:
    """As `VhostGuest`, behind an IOMMU."""

    def __init__(
        self,
        path: Path,
        *,
        base: int = IOVA_BASE,
        protocol_features: int = WANTED_PROTOCOL_FEATURES,
        manners: Manners | None = None,
        front_end: type[IommuFrontEnd] = IommuFrontEnd,
    ) -> None:
        self.physical = GuestMemory(PHYSICAL)
        self.memory = IovaMemory(self.physical, base, IOVA_BYTES, seed=3)
        self.rings = [SplitRing.allocate(self.memory, 256) for _ in (RX, TX)]
        self.cpu = GuestCpu(NetQueues(self.memory, self.rings[RX], self.rings[TX]))
        self.front_end = front_end(
            path, self.memory, self.rings, protocol_features=protocol_features, manners=manners
        )

    def resume(self) -> None:
        self.cpu.run(Wires(self.front_end.kick, self.front_end.call_fds))

    def run(self, frames: int) -> None:
        self.resume()
        assert self.cpu.wait_for_frames(frames, PATIENCE_S, PATIENCE_S)
        self.cpu.pause()

    def close(self) -> None:
        self.cpu.close()
        self.front_end.close()
        self.memory.close()
        self.physical.close()
