# SPDX-License-Identifier: Apache-2.0
"""A back end without a network: what a queue pair transmits, it receives."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from vdpa_net.backend import MAX_QUEUE_PAIRS, Limits
from vdpa_net.errors import BackendError

if TYPE_CHECKING:
    from vdpa_net import _native


class Loopback:
    """Frames come back on the pair that sent them. At most `depth_packets` wait for each pair; more are
    dropped and counted.

    What the driver does not accept on received packets is made good (checksums) or dropped (segmentation
    offloads). `carrier`, `features` and `active_pairs` are what the device set last, for tests and reports.
    """

    limits: ClassVar[Limits] = Limits(MAX_QUEUE_PAIRS, steers_itself=False, has_network=False)

    def __init__(self, queue_pairs: int = 1, depth_packets: int = 1024, *, name: str = "loopback") -> None:
        if not 1 <= queue_pairs <= MAX_QUEUE_PAIRS or depth_packets < 1:
            raise BackendError(
                f"loopback takes 1 to {MAX_QUEUE_PAIRS} queue pairs and at least 1 packet, "
                f"got {queue_pairs} and {depth_packets}"
            )
        self.name = name
        self.queue_pairs = queue_pairs
        self.depth_packets = depth_packets
        self.carrier = False
        self.features = 0
        self.active_pairs = queue_pairs
        self._native: _native.Loopback | None = None

    def native(self) -> _native.Loopback:
        """The packet end in the data plane."""
        if self._native is None:
            # Not at the top: the extension is loaded when a device is made, not when this is imported.
            from vdpa_net import _native  # noqa: PLC0415

            self._native = _native.Loopback(self.queue_pairs, self.depth_packets)
        return self._native

    def set_carrier(self, on: bool) -> None:
        """Remember the carrier; nothing around sees it."""
        self.carrier = on

    def set_offloads(self, features: int) -> None:
        """Frames come back with the offloads that these features allow."""
        self.features = features
        self.native().set_offloads(features)

    def set_active_pairs(self, count: int) -> None:
        """Remember the number; the data plane steers."""
        self.active_pairs = count

    def close(self) -> None:
        """Forget the packet end."""
        self._native = None
