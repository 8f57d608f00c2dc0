# SPDX-License-Identifier: Apache-2.0
"""One side of a migration: a tap, the device on it, the vDPA driver and its vhost socket, in own processes.

`in-process` is one process (`vdpa-net vhost`); `vfio-user` is two, the device (`vdpa-net serve`) and the
driver (`vdpa-net driver`), as on a host where the device lives elsewhere. The lab talks to them over control
sockets.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from vdpa_net.closing import Starting
from vdpa_net.errors import LabError, VdpaNetError
from vdpa_net.lab.console import LineReader
from vdpa_net.transport.control import ControlClient

START_SECONDS = 30
STOP_SECONDS = 10
READY_PATTERN = "listening"


@dataclass(frozen=True)
class SideOptions:
    """What a side is made of. `directory` takes its sockets and logs."""

    name: str
    tap: str
    mac: str
    directory: Path
    transport: str = "in-process"
    profile: str = "vdpa"
    queue_pairs: int = 1
    packed: bool = False
    faults: tuple[str, ...] = ()
    seed: int = 0


class SideProcess:
    """A `vdpa-net` command of ours; its output goes to a log, its control socket answers questions."""

    def __init__(self, name: str, arguments: Sequence[str], directory: Path) -> None:
        self.name = name
        self.control_path = directory / f"{name}.control"
        self.arguments = [sys.executable, "-m", "vdpa_net", *arguments, "--control", str(self.control_path)]
        setpriv = shutil.which("setpriv")
        tether = [setpriv, "--pdeathsig", "KILL", "--"] if setpriv else []
        reader, writer = os.pipe()
        try:
            self._process = subprocess.Popen(
                [*tether, *self.arguments],
                stdin=subprocess.DEVNULL,
                stdout=writer,
                stderr=writer,
                # Ctrl-C in the terminal is for the lab, which then ends its processes in order.
                start_new_session=True,
            )
        finally:
            os.close(writer)
        self.output = LineReader(reader, directory / f"{name}.log", name)
        self._client: ControlClient | None = None

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def wait_ready(self) -> None:
        """Return when the process listens. Raises LabError with its output if it does not."""
        try:
            self.output.wait_for(READY_PATTERN, START_SECONDS)
            self._client = ControlClient(self.control_path)
        except VdpaNetError as error:
            self.stop()
            raise LabError(f"{shlex.join(self.arguments)}: did not start to listen: {error}") from error

    def call(self, method: str, **parameters: Any) -> Any:
        """Ask over the control socket."""
        if self._client is None:
            raise LabError(f"{self.name} is not running")
        return self._client.call(method, **parameters)

    def kill(self) -> None:
        """End the process as an accident would."""
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """End the process, by SIGTERM first."""
        if self._client is not None:
            self._client.close()
            self._client = None
        if self._process.poll() is None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_SECONDS)
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self.output.join()


class Side(Starting):
    """Both roles of a side, whichever processes they run in.

    `driver_stops_log`: the vDPA driver clears LM_LOGGING_CTRL when the front end takes LOG_ALL back.
    """

    def __init__(self, options: SideOptions) -> None:
        self.options = options
        self.name = options.name
        self.vhost_socket = options.directory / f"{options.name}.vhost"
        self.is_watched = True
        self.driver_stops_log = True
        self._device: SideProcess | None = None
        self._driver: SideProcess | None = None

    @classmethod
    def foreign(cls, name: str, vhost_socket: Path) -> Self:
        """A side of somebody else's: its back end answers no questions (`is_watched` is false)."""
        side = cls.unwatched(SideOptions(name, "", "", vhost_socket.parent))
        side.vhost_socket = vhost_socket
        return side

    @classmethod
    def unwatched(cls, options: SideOptions) -> Self:
        """A side without processes of ours: nothing is started, and nothing can be asked."""
        side = cls(options)
        side.is_watched = False
        return side

    def start(self) -> None:
        """Start the processes and wait until the vhost socket listens."""
        if self.options.transport == "in-process":
            self._device = self._driver = self._spawn(
                "vhost", self._device_arguments(), self._vhost_arguments()
            )
            return
        socket = str(self.options.directory / f"{self.name}.vfio-user")
        self._device = self._spawn("serve", ["--socket", socket], self._device_arguments())
        self._driver = self._spawn("driver", ["--device", f"vfio-user:{socket}"], self._vhost_arguments())

    def device(self, method: str, **parameters: Any) -> Any:
        """Ask the process in which the device lives."""
        if self._device is None:
            raise LabError(f"the device of {self.name} is not running")
        return self._device.call(method, **parameters)

    def driver(self, method: str, **parameters: Any) -> Any:
        """Ask the process in which the vDPA driver lives."""
        if self._driver is None:
            raise LabError(f"the driver of {self.name} is not running")
        return self._driver.call(method, **parameters)

    def kill_device(self) -> None:
        """End the device's process as an accident would. Raises LabError if there is none."""
        if self._device is None:
            raise LabError(f"the device of {self.name} is not running")
        self._device.kill()

    def command_lines(self) -> list[str]:
        """What runs on this side, for evidence."""
        return [shlex.join(process.arguments) for process in self._processes()]

    def stop(self) -> None:
        """End the processes, the driver before its device."""
        for process in self._processes():
            process.stop()
        self._device = self._driver = None

    def close(self) -> None:
        """The same as `stop`."""
        self.stop()

    def _processes(self) -> list[SideProcess]:
        found = [process for process in (self._driver, self._device) if process is not None]
        return list(dict.fromkeys(found))

    def _spawn(self, command: str, *arguments: list[str]) -> SideProcess:
        flat = [item for part in arguments for item in part]
        process = SideProcess(f"{self.name}-{command}", [command, *flat], self.options.directory)
        process.wait_ready()
        return process

    def _device_arguments(self) -> list[str]:
        options = self.options
        netdev = f"tap,id=hostnet1,ifname={options.tap},script=no,downscript=no,vhost=off"
        device = f"virtio-net-pci,netdev=hostnet1,id=net1,mac={options.mac},iommu_platform=on,vdpa=on"
        if options.queue_pairs > 1:
            netdev += f",queues={options.queue_pairs}"
            device += ",mq=on"
        if options.packed:
            device += ",packed=on"
        arguments = ["--netdev", netdev, "--device", device, "--seed", str(options.seed)]
        arguments += ["--profile", options.profile]
        for fault in options.faults:
            arguments += ["--fault", fault]
        return arguments

    def _vhost_arguments(self) -> list[str]:
        return ["--vhost-socket", str(self.vhost_socket)]
