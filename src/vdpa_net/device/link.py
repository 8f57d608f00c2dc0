# SPDX-License-Identifier: Apache-2.0
"""The link between a device and its network: down until DRIVER_OK, or until its guest is announced here.

A network that is told of a station sends its packets here from then on. Between the announcement of a guest
that moves in and the DRIVER_OK of its driver they wait in the back end: the machine that the guest comes from
has stopped, and would lose them.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from vdpa_net.backend import Backend

if TYPE_CHECKING:
    from vdpa_net._native import DataPlane

AHEAD_S: Final = 0.1
"""How long a link that is up ahead of its driver keeps packets. A queue that has run full meanwhile would go
on losing packets when the driver is there."""


class Link:
    """The carrier of a back end, and what becomes of the packets that came before there was a driver.

    The caller holds the device's lock.
    """

    def __init__(self, backend: Backend, plane: DataPlane) -> None:
        self._backend = backend
        self._plane = plane
        self._is_up = False
        self._ahead_since: float | None = None
        backend.set_carrier(False)

    @property
    def is_ahead(self) -> bool:
        """Whether it is up for a driver that has not come yet."""
        return self._ahead_since is not None

    def go_ahead(self) -> None:
        """Up before the driver, unless it is up: what comes from now on is kept. Raises BackendError."""
        if not self._is_up:
            self._go_up()
            self._ahead_since = time.monotonic()

    def go_up(self) -> int:
        """Up for a driver. Packets of before are dropped; returns how many. Raises BackendError."""
        since, self._ahead_since = self._ahead_since, None
        if since is not None and time.monotonic() - since <= AHEAD_S:
            return 0
        return self._go_up()

    def go_down(self) -> None:
        """Down, if it is up. Raises BackendError; then it counts as down all the same."""
        self._ahead_since = None
        if self._is_up:
            self._is_up = False
            self._backend.set_carrier(False)

    def _go_up(self) -> int:
        # Before the carrier: what comes with it is not dropped.
        dropped = self._plane.flush_backend()
        self._backend.set_carrier(True)
        self._is_up = True
        return dropped
