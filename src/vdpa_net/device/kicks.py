# SPDX-License-Identifier: Apache-2.0
"""The kicks of the queues: the eventfd behind each doorbell, and those that a client brings along."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vdpa_net.device import function
from vdpa_net.device.function import Doorbell
from vdpa_net.device.monitor import Monitor
from vdpa_net.device.options import NetOptions
from vdpa_net.errors import AccessError

if TYPE_CHECKING:
    from vdpa_net._native import DataPlane

CONTROL_BELL: Final = "control bell"
CONTROL_KICK: Final = "control kick"
"""Keys under which the monitor tells of kicks of the control queue."""


class Kicks:
    """One kick per queue. Workers wait for those of the net queues, the monitor for the control queue's.

    The caller holds the device's lock.
    """

    def __init__(self, options: NetOptions, plane: DataPlane, monitor: Monitor) -> None:
        self._options = options
        self._plane = plane
        self._monitor = monitor
        self._fds = [plane.kick_fd(queue) for queue in range(options.num_queues)]
        if options.control_queue is not None:
            # Control commands are served by Python, so their doorbell wakes our thread, not a worker. Kicks
            # of doorbell 2 arrive here too while that is the control queue: the data plane passes them on.
            monitor.watch(CONTROL_BELL, self._fds[options.control_queue])

    def doorbells(self) -> list[Doorbell]:
        """The doorbell of each queue, with the eventfd that does the same as a write to it."""
        step = function.NOTIFY_OFF_MULTIPLIER
        region = self._options.profile.virtio_bar
        return [
            Doorbell(region, function.NOTIFY_OFFSET + step * queue, 2, queue, fd)
            for queue, fd in enumerate(self._fds)
        ]

    def set_kick(self, queue: int, fd: int | None) -> None:
        """Take this eventfd (duplicated) as a kick besides the doorbell; None: the doorbell only.

        Raises AccessError if there is no such queue or the descriptor is none to wait for.
        """
        if not 0 <= queue < len(self._fds):
            raise AccessError(f"kick for queue {queue}: there are {len(self._fds)}")
        if queue != self._options.control_queue:
            self._plane.set_kick(queue, fd)
            return
        try:
            self._monitor.watch(CONTROL_KICK, fd)
        except OSError as error:
            raise AccessError(f"kick for queue {queue}: fd {fd}: {error}", errno=error.errno) from error

    def close(self) -> None:
        """No doorbells any more: their eventfds go with the data plane."""
        self._fds = []

    def unset_all(self) -> None:
        """The doorbells only, for every queue."""
        for queue in range(len(self._fds)):
            self.set_kick(queue, None)
