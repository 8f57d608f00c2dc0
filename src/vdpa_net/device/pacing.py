# SPDX-License-Identifier: Apache-2.0
"""How the workers of a device wait for packets: how long they poll, how long they let a stream collect."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vdpa_net.device.options import DEFAULT_COALESCE_US, DEFAULT_POLL_US, MAX_COALESCE_US, MAX_POLL_US
from vdpa_net.errors import OptionError

if TYPE_CHECKING:
    from vdpa_net import _native


class Pacing:
    """The part of a device that is about its workers' times. They can be set while it runs."""

    _plane: _native.DataPlane

    def _set_pace(self, poll_us: int | None, coalesce_us: int | None) -> None:
        self.poll_us = DEFAULT_POLL_US if poll_us is None else poll_us
        self.coalesce_us = DEFAULT_COALESCE_US if coalesce_us is None else coalesce_us

    @property
    def poll_us(self) -> int:
        """For how many microseconds at most workers poll after work before they sleep. Raises OptionError."""
        return self._poll_us

    @poll_us.setter
    def poll_us(self, poll_us: int) -> None:
        self._poll_us = _check("poll_us", poll_us, MAX_POLL_US)
        self._plane.set_poll_us(poll_us)

    @property
    def coalesce_us(self) -> int:
        """For how many microseconds at most packets of a stream wait for others. Raises OptionError."""
        return self._coalesce_us

    @coalesce_us.setter
    def coalesce_us(self, coalesce_us: int) -> None:
        self._coalesce_us = _check("coalesce_us", coalesce_us, MAX_COALESCE_US)
        self._plane.set_coalesce_us(coalesce_us)


def _check(name: str, value: int, limit: int) -> int:
    if not 0 <= value <= limit:
        raise OptionError(f"{name} takes 0 to {limit} microseconds, got {value}")
    return value
