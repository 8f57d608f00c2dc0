# SPDX-License-Identifier: Apache-2.0
"""Packet back ends: where frames come from and go to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from vdpa_net import _native


class Backend(Protocol):
    """What a device needs of a back end. Methods raise BackendError."""

    @property
    def name(self) -> str:
        """What reports call it."""

    @property
    def queue_pairs(self) -> int:
        """How many queue pairs it can serve."""

    def native(self) -> _native.Loopback | _native.Tap:
        """The packet end in the data plane, the same object at each call."""

    def set_carrier(self, on: bool) -> None:
        """Link up or down, as the network around sees it. On return, frames sent are forwarded."""

    def set_offloads(self, features: int) -> None:
        """Take over the negotiated feature word: which offloads the guest accepts on received frames."""

    def close(self) -> None:
        """Give back what it holds; twice does no harm."""


__all__ = ["Backend"]
