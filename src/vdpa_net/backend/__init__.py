# SPDX-License-Identifier: Apache-2.0
"""Packet back ends: where frames come from and go to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from vdpa_net.record import Record

if TYPE_CHECKING:
    from vdpa_net import _native

MAX_QUEUE_PAIRS = 511
"""With a control queue they are 1023 virtqueues; doorbells and LM registers are for 1024."""

MAX_TAP_QUEUES = 256
"""The kernel attaches no more to one tap (MAX_TAP_QUEUES in drivers/net/tun.c)."""


class Limits(Record):
    """What a kind of back end can do at most.

    `max_queue_pairs`: of one device. `steers_itself`: it chooses the queue pair of a received packet;
    otherwise the data plane does. `has_network`: packets come from and go to somewhere else.
    """

    max_queue_pairs: int
    steers_itself: bool
    has_network: bool


class Backend(Protocol):
    """What a device needs of a back end. Methods raise BackendError."""

    @property
    def name(self) -> str:
        """What reports call it."""

    @property
    def queue_pairs(self) -> int:
        """How many queue pairs it can serve."""

    @property
    def limits(self) -> Limits:
        """What its kind can do at most."""

    def native(self) -> _native.Backend:
        """The packet end in the data plane, the same object at each call."""

    def set_carrier(self, on: bool) -> None:
        """Link up or down, as the network around sees it. On return, frames sent are forwarded."""

    def set_offloads(self, features: int) -> None:
        """Take over the negotiated feature word: which offloads the guest accepts on received frames."""

    def set_active_pairs(self, count: int) -> None:
        """Only the first `count` pairs receive from now on. On return the others get nothing new."""

    def close(self) -> None:
        """Give back what it holds; twice does no harm."""


__all__ = ["MAX_QUEUE_PAIRS", "MAX_TAP_QUEUES", "Backend", "Limits"]
