# SPDX-License-Identifier: Apache-2.0
"""A back end that takes every frame, and on request makes some."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from vdpa_net.backend import MAX_QUEUE_PAIRS, Limits
from vdpa_net.errors import BackendError

if TYPE_CHECKING:
    from vdpa_net import _native

PACKET_BYTES_MIN = 60
PACKET_BYTES_MAX = 14 + 65535
FLOWS_MAX = 256


@dataclass(frozen=True)
class Source:
    """What a `Null` sends to the guest: UDP over IPv4, from 198.18.0.1 to 198.18.0.2, port 9.

    `packet_bytes` is the length of a frame. `rate_pps` packets per second come in all, 0: as many as there
    are buffers for. They belong to `flows` flows, which differ in their source port (49152 and up), and carry
    the number of the packet in its flow as 64 bits, big endian, behind the UDP header.
    """

    packet_bytes: int = PACKET_BYTES_MIN
    rate_pps: int = 0
    flows: int = 16
    destination: bytes = b"\xff" * 6

    def __post_init__(self) -> None:
        for name, low, high in (
            ("packet_bytes", PACKET_BYTES_MIN, PACKET_BYTES_MAX),
            ("rate_pps", 0, 1 << 40),
            ("flows", 1, FLOWS_MAX),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise BackendError(f"source: {name} takes {low} to {high}, got {value}")


class Null:
    """Frames of the guest go nowhere; with a `source` frames come from nowhere.

    A flow of the source is received on the active pair on which the guest last sent a frame of that flow.
    """

    limits: ClassVar[Limits] = Limits(MAX_QUEUE_PAIRS, steers_itself=False, has_network=False)

    def __init__(self, queue_pairs: int = 1, source: Source | None = None, *, name: str = "null") -> None:
        if not 1 <= queue_pairs <= MAX_QUEUE_PAIRS:
            raise BackendError(f"null takes 1 to {MAX_QUEUE_PAIRS} queue pairs, got {queue_pairs}")
        self.name = name
        self.queue_pairs = queue_pairs
        self.source = source
        self._native: _native.Null | None = None

    def native(self) -> _native.Null:
        """The packet end in the data plane."""
        if self._native is None:
            # Not at the top: the extension is loaded when a device is made, not when this is imported.
            from vdpa_net import _native  # noqa: PLC0415

            if (source := self.source) is None:
                self._native = _native.Null(self.queue_pairs)
            else:
                self._native = _native.Null(
                    self.queue_pairs,
                    source=True,
                    packet_bytes=source.packet_bytes,
                    rate_pps=source.rate_pps,
                    flows=source.flows,
                    destination=source.destination,
                )
        return self._native

    def set_carrier(self, on: bool) -> None:
        """Nothing around sees it."""

    def set_offloads(self, features: int) -> None:
        """A source uses none, and the sink takes all."""

    def set_active_pairs(self, count: int) -> None:
        """The data plane steers."""

    def close(self) -> None:
        """Forget the packet end."""
        self._native = None
