# SPDX-License-Identifier: Apache-2.0
"""One side of the log test: in this process, a device on a loopback, the vDPA driver and the vhost socket; or
somebody else's vhost-user back end."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

from vdpa_net.backend.loopback import Loopback
from vdpa_net.closing import Closing
from vdpa_net.device.net_device import NetDevice
from vdpa_net.driver.handle import DeviceHandle
from vdpa_net.driver.in_process import InProcessHandle
from vdpa_net.driver.vdpa_driver import VdpaDriver
from vdpa_net.driver.vfio_user import VfioUserHandle
from vdpa_net.driver.vhost_backend import VhostBackend
from vdpa_net.migration.faults import Fault
from vdpa_net.transport.vfio_user.server import VfioUserServer
from vdpa_net.transport.vhost_user.server import VhostUserServer


class Side(Protocol):
    """A vhost-user back end, and what can be known of it besides its messages."""

    @property
    def path(self) -> Path:
        """Where it listens."""

    @property
    def device(self) -> NetDevice | None:
        """The device behind it, if it is ours and in this process."""

    def registers_after_stop(self) -> dict[int, tuple[int, int]]:
        """LM_RING_STATE as the driver read it after the stop: (last_avail_idx, used_idx) by queue."""

    def registers_before_enable(self) -> dict[int, tuple[int, int]]:
        """LM_RING_STATE as the driver read it back before queue_enable = 1."""

    def violations(self) -> list[str]:
        """What was recorded at this side since the last call."""


class ForeignSide:
    """Somebody else's back end, of which nothing is known but its socket."""

    device = None

    def __init__(self, path: Path) -> None:
        self.path = path

    def registers_after_stop(self) -> dict[int, tuple[int, int]]:
        """Unknown."""
        return {}

    registers_before_enable = registers_after_stop

    def violations(self) -> list[str]:
        """Unknown."""
        return []


class VhostSide(Closing):
    """Listens at `path` until it is closed. The faults are the device's.

    With `over_vfio_user` the driver reaches its device through a vfio-user socket beside `path`.
    """

    def __init__(
        self,
        path: Path,
        mac: str,
        faults: Sequence[Fault] = (),
        *,
        over_vfio_user: bool = False,
        packed: bool = False,
        queue_pairs: int = 1,
        profile: str = "vdpa",
    ) -> None:
        self.path = path
        self._told = [0, 0, 0]
        self._stack = ExitStack()
        with self._stack as building:
            backend = Loopback(queue_pairs, name=path.name)
            building.callback(backend.close)
            self.device: NetDevice = NetDevice(
                backend,
                mac=mac,
                profile=profile,
                mq=queue_pairs > 1,
                enabled_features=frozenset({"packed"} if packed else ()),
            )
            building.callback(self.device.close)
            for fault in faults:
                self.device.install_fault(fault)
            handle: DeviceHandle = InProcessHandle(self.device)
            if over_vfio_user:
                socket = path.with_suffix(".vfio-user")
                building.callback(VfioUserServer(socket, self.device).stop)
                handle = VfioUserHandle(socket)
            building.callback(handle.close)
            self.driver = VdpaDriver(handle)
            self.backend = VhostBackend(self.driver)
            self.server = VhostUserServer(path, self.backend)
            building.callback(self.server.close)
            self._stack = building.pop_all()

    def close(self) -> None:
        """End socket, driver and device."""
        self._stack.close()

    def registers_after_stop(self) -> dict[int, tuple[int, int]]:
        """LM_RING_STATE as the driver read it after the stop: (last_avail_idx, used_idx) by queue."""
        return self._ring_states("ring_state_after_stop")

    def registers_before_enable(self) -> dict[int, tuple[int, int]]:
        """LM_RING_STATE as the driver read it back before queue_enable = 1."""
        return self._ring_states("ring_state_before_enable")

    def _ring_states(self, moment: str) -> dict[int, tuple[int, int]]:
        records: Any = self.driver.evidence()["queues"]
        return {
            record["queue"]: (record[moment] & 0xFFFF, record[moment] >> 16)
            for record in records
            if record[moment] is not None
        }

    def violations(self) -> list[str]:
        """What the device recorded, the driver complained of and the socket refused since the last call."""
        found: list[str] = []
        records: list[Iterable[object]] = [
            self.device.violations.entries,
            self.backend.complaints,
            self.server.errors,
        ]
        for number, record in enumerate(map(list, records)):
            found += [str(item) for item in record[self._told[number] :]]
            self._told[number] = len(record)
        return found
