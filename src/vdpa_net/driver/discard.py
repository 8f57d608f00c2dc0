# SPDX-License-Identifier: Apache-2.0
"""Rings that are started but disabled: their packets are taken and thrown away ("Ring states").

A device has no register for that, so the driver does it, on the same memory and with the same dirty log, with
a data plane of its own behind which there is no network.
"""

from __future__ import annotations

from vdpa_net import _native
from vdpa_net.driver.device_maps import DeviceMaps
from vdpa_net.driver.queue_setup import QueueSetup


class Discarder:
    """Serves transmit rings by discarding. Nothing of it exists while no ring is disabled.

    Not thread-safe.
    """

    def __init__(self, maps: DeviceMaps, queue_pairs: int) -> None:
        self._maps = maps
        self._queue_pairs = queue_pairs
        self._plane: _native.DataPlane | None = None
        self._rings: set[int] = set()

    def has(self, index: int) -> bool:
        """Whether this ring's packets are discarded."""
        return index in self._rings

    def start(self, setup: QueueSetup, features: int, *, kick: int | None, call: int | None) -> None:
        """Discard what is and becomes available in a ring that the device has let go of. Raises DmaError."""
        plane = self._open()
        plane.set_call(setup.index, call)
        plane.start_queue(
            setup.index,
            setup.size,
            setup.descriptor,
            setup.available,
            setup.used,
            setup.last_avail_idx,
            setup.used_idx,
            features,
            True,
        )
        plane.set_kick(setup.index, kick)
        self._rings.add(setup.index)

    def stop(self, index: int) -> tuple[int, int]:
        """Let go of a ring where it stands: what has not been discarded yet stays available.

        Returns its (last_avail_idx, used_idx).
        """
        assert self._plane is not None
        state = self._plane.halt_queue(index)
        self._plane.set_kick(index, None)
        self._plane.set_call(index, None)
        self._rings.discard(index)
        if not self._rings:
            self.close()
        return state

    def bind_kick(self, index: int, fd: int | None) -> None:
        """The guest kicks a ring by another eventfd."""
        if self._plane is not None and index in self._rings:
            self._plane.set_kick(index, fd)

    def bind_call(self, index: int, fd: int | None) -> None:
        """The guest wants to be interrupted by another eventfd."""
        if self._plane is not None and index in self._rings:
            self._plane.set_call(index, fd)

    def close(self) -> None:
        """Let go of everything. Idempotent."""
        if self._plane is not None:
            for index in self._rings:
                self._plane.halt_queue(index)
            self._maps.mirror_to(None)
            self._plane.close()
        self._plane = None
        self._rings.clear()

    def _open(self) -> _native.DataPlane:
        if self._plane is None:
            space = _native.DmaSpace()
            self._maps.mirror_to(space)
            nowhere = _native.Null(self._queue_pairs)
            self._plane = _native.DataPlane(space, nowhere, self._queue_pairs, False)
        return self._plane
