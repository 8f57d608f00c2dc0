# SPDX-License-Identifier: Apache-2.0
"""One side of the nested topology: the device on the host, the vDPA driver in the level-1 guest.

Which driver it is, is a `Level1Driver`: ours, or stock DPDK. Both leave the same record of what happened to
each queue, ours by its own account, DPDK by the device's events and the words of its vhost library.
"""

from __future__ import annotations

import re
import signal
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from vdpa_net.errors import LabError, VdpaNetError
from vdpa_net.lab.console import LineReader
from vdpa_net.lab.nested.level1 import DEVICE_ADDRESS, INSIDE, Level1
from vdpa_net.lab.nested.level2 import RemoteProcess
from vdpa_net.lab.nested.record import device_records
from vdpa_net.lab.side import Side, SideOptions

START_SECONDS = 180
STOP_SECONDS = 30
VHOST_SOCKET = INSIDE / "vhost"
CONTROL_SOCKET = INSIDE / "driver.control"


class Level1Driver(Protocol):
    """A vDPA driver in a level-1 guest."""

    profile: str
    ready_pattern: str
    stops_log: bool

    def argv(self) -> list[str]:
        """Its command line in the guest."""

    def answer(self, side: NestedSide, method: str) -> Any:
        """What `evidence` and `wire_log` are about this side."""


class OwnDriver:
    """`vdpa-net driver` on the kernel's VFIO."""

    profile = "vdpa"
    ready_pattern = "listening"
    stops_log = True

    def __init__(self, _software_live_migration: bool = False) -> None:
        """There is nothing to choose."""

    def argv(self) -> list[str]:
        """Its command line in the guest."""
        return [
            *("python3", "-m", "vdpa_net", "driver", "--device", f"vfio:{DEVICE_ADDRESS}"),
            *("--vhost-socket", str(VHOST_SOCKET), "--control", str(CONTROL_SOCKET)),
        ]

    def answer(self, side: NestedSide, method: str) -> Any:
        """The driver's own account; times, which are the guest's clock, are replaced by the device's."""
        told = side.level1.call("control", path=str(CONTROL_SOCKET), method=method, params={})
        if method != "evidence":
            return told
        seen = {record["queue"]: record for record in device_records(side.device("events"))}
        for record in told["queues"]:
            times = seen.get(record["queue"], {})
            for name in ("started_ns", "stop_requested_ns", "stopped_ns"):
                record[name] = times.get(name)
        return told


class DpdkDriver:
    """Stock DPDK's vdpa/ifc, started through its libraries by a script.

    It looks at SET_FEATURES only where that has LOG_ALL: a device that logs does so until it is reset.
    """

    profile = "ifcvf"
    ready_pattern = "listening"
    stops_log = False

    def __init__(self, software_live_migration: bool = False) -> None:
        self._software = software_live_migration

    def argv(self) -> list[str]:
        """Its command line in the guest."""
        arguments = ["--address", DEVICE_ADDRESS, "--socket", str(VHOST_SOCKET)]
        if self._software:
            arguments.append("--sw-live-migration")
        return ["python3", "-u", "-m", "vdpa_net.lab.nested.dpdk_vdpa", *arguments]

    def answer(self, side: NestedSide, method: str) -> Any:
        """The device's account of its registers; what its vhost library says of the messages."""
        if method == "wire_log":
            return vring_messages(side.driver_output())
        return {"queues": device_records(side.device("events"))}


DRIVERS: Mapping[str, Callable[[bool], Level1Driver]] = {"vdpa-net": OwnDriver, "dpdk": DpdkDriver}

_VRING_BASE = re.compile(r"vring base idx:(\d+) last_used_idx:(\d+) last_avail_idx:(\d+)")
_VRING_GET = re.compile(r"vring base idx:(\d+) file:(\d+)")


def vring_messages(lines: Sequence[str]) -> list[dict[str, Any]]:
    """SET_VRING_BASE and GET_VRING_BASE as DPDK's vhost library logs them."""
    found: list[dict[str, Any]] = []
    for line in lines:
        for name, pattern, part in (("SET_VRING_BASE", _VRING_BASE, 3), ("GET_VRING_BASE", _VRING_GET, 2)):
            if match := pattern.search(line):
                payload = {"index": int(match[1]), "num": int(match[part])}
                found.append({"message": name, "payload": payload})
    return found


class NestedSide(Side):
    """Both roles of a side, the driver's in the level-1 guest."""

    def __init__(self, options: SideOptions, level1: Level1, driver: Level1Driver) -> None:
        super().__init__(options)
        self.vhost_socket = VHOST_SOCKET
        self.driver_stops_log = driver.stops_log
        self.level1 = level1
        self._kind = driver
        self._process: RemoteProcess | None = None
        self._output: LineReader | None = None

    def start_device(self) -> None:
        """The device, for the level-1 guest's QEMU to attach."""
        path = self.level1.options.vfio_user
        self._device = self._spawn("serve", ["--socket", str(path)], self._device_arguments())

    def start_driver(self) -> None:
        """Start the driver in the level-1 guest, which has booted; `wait_driver` waits for it."""
        near, far = socket.socketpair()
        name = f"{self.name}-driver"
        self._output = LineReader(near.detach(), self.options.directory / f"{name}.log", name)
        self._process = RemoteProcess(self.level1, name, self._kind.argv(), {"output": far})

    def wait_driver(self) -> None:
        """Return when its socket listens. Raises LabError with what it says."""
        if self._output is None:
            raise LabError(f"the driver of {self.name} has not been started")
        self._output.wait_for(self._kind.ready_pattern, START_SECONDS)

    def driver(self, method: str, **parameters: Any) -> Any:  # noqa: ARG002
        """What the vDPA driver did: `evidence` and `wire_log`."""
        return self._kind.answer(self, method)

    def driver_output(self) -> list[str]:
        """What the driver has printed."""
        if self._output is None:
            raise LabError(f"the driver of {self.name} has not been started")
        return self._output.lines()

    def command_lines(self) -> list[str]:
        """What runs on this side, for evidence."""
        inside = " ".join(self._kind.argv())
        machine = self.level1.machine.command_line()
        return [*super().command_lines(), machine, f"(in {self.level1.name}) {inside}"]

    def stop(self) -> None:
        """End device and driver; the level-1 guest may have gone."""
        if self._process is not None:
            try:
                self._process.send_signal(signal.SIGTERM)
                self._process.wait(STOP_SECONDS)
            except (VdpaNetError, TimeoutError):
                pass
            self._process = None
        super().stop()
