# SPDX-License-Identifier: Apache-2.0
"""The side processes: a device on a vfio-user socket, a vDPA driver with a vhost socket, or both in one.

Each runs until SIGTERM, SIGINT or the control method `shutdown`, and then takes down what it had set up in
reverse order.
"""

from __future__ import annotations

import contextlib
import gc
import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from vdpa_net.errors import OptionError, PeerGone
from vdpa_net.migration.faults import Fault
from vdpa_net.observe import Observation, observe
from vdpa_net.open_backend import open_backend, raise_file_limit, record
from vdpa_net.options import (
    DEFAULT_MTU,
    Netdev,
    NicDevice,
    VhostSocket,
    check_pair,
)
from vdpa_net.qemu_arguments import attach_help
from vdpa_net.record import Record
from vdpa_net.serving import StopRequest

if TYPE_CHECKING:
    from vdpa_net.backend import Backend
    from vdpa_net.device.net_device import NetDevice
    from vdpa_net.driver.handle import DeviceHandle
    from vdpa_net.wire.lm import Profile

Methods = Mapping[str, Callable[..., object]]


class DeviceRequest(Record):
    """A device as the command line asks for it. Raises OptionError if its parts don't go together."""

    netdev: Netdev
    device: NicDevice
    faults: tuple[Fault, ...] = ()
    observation: Observation = Observation()
    pcap: Path | None = None

    def __post_init__(self) -> None:
        check_pair(self.netdev, self.device)


def serve_device(request: DeviceRequest, socket: Path, control: Path | None) -> None:
    """`vdpa-net serve`: the device behind a vfio-user socket."""
    from vdpa_net.transport.vfio_user.server import VfioUserServer  # noqa: PLC0415

    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(StopRequest())
        device = _build_device(stack, request)
        stack.enter_context(VfioUserServer(socket, device))
        if control is not None:
            _offer_control(stack, control, {**device_methods(stack, device), "shutdown": stop.request})
        _say(attach_help(request.device, str(socket)))
        _settle_memory()
        _say_listening(socket)
        stop.wait()


def open_handle(device: str) -> DeviceHandle:
    """The device that `vfio-user:PATH` or `vfio:ADDRESS` names.

    Raises OptionError, which says what to do where a PCI function is not ready, PeerGone, PeerError.
    """
    kind, _, place = device.partition(":")
    if kind == "vfio-user" and place:
        from vdpa_net.driver.vfio_user import VfioUserHandle  # noqa: PLC0415

        try:
            return VfioUserHandle(place)
        except PeerGone as error:
            raise PeerGone(
                f"no device at vfio-user:{error}; `vdpa-net serve --socket {place} ...` offers one there",
                errno=error.errno,
            ) from error
    if kind == "vfio" and place:
        from vdpa_net.driver.vfio import VfioHandle  # noqa: PLC0415

        return VfioHandle(place)
    raise OptionError(f"--device: {device!r}; expected vfio-user:PATH or vfio:ADDRESS (vfio:0000:01:00.0)")


def serve_driver(
    device: str, vhost_socket: VhostSocket, control: Path | None, profile: Profile | None = None
) -> None:
    """`vdpa-net driver`: the vDPA driver of a device that is elsewhere, and its vhost socket."""
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(StopRequest())
        handle = stack.enter_context(open_handle(device))
        methods = _build_driver(stack, handle, vhost_socket, profile)
        if control is not None:
            _offer_control(stack, control, {**methods, "shutdown": stop.request})
        _settle_memory()
        _say_meeting(vhost_socket)
        stop.wait()


def serve_vhost(request: DeviceRequest, vhost_socket: VhostSocket, control: Path | None) -> None:
    """`vdpa-net vhost`: device and driver in this process, the vhost socket outside."""
    from vdpa_net.driver.in_process import InProcessHandle  # noqa: PLC0415

    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(StopRequest())
        device = _build_device(stack, request)
        handle = stack.enter_context(InProcessHandle(device))
        driver_methods = _build_driver(stack, handle, vhost_socket, device.options.profile)
        if control is not None:
            methods = {**device_methods(stack, device), **driver_methods}
            _offer_control(stack, control, {**methods, "shutdown": stop.request})
        _settle_memory()
        _say_meeting(vhost_socket)
        stop.wait()


def make_device(device: NicDevice, backend: Backend) -> NetDevice:
    """The device that the options describe, on this back end. Raises OptionError."""
    from vdpa_net.device.net_device import NetDevice  # noqa: PLC0415

    return NetDevice(
        backend,
        mac=device.mac,
        mtu=device.host_mtu or DEFAULT_MTU,
        profile=device.profile,
        vdpa=device.vdpa,
        iommu_platform=device.iommu_platform,
        ats=device.ats,
        rx_queue_size=device.rx_queue_size,
        tx_queue_size=device.tx_queue_size,
        vectors=device.vectors,
        mq=device.mq,
        poll_us=device.poll_us,
        coalesce_us=device.coalesce_us,
        disabled_features=device.disabled_features | ({"mtu"} if device.host_mtu == 0 else set()),
        enabled_features=device.enabled_features,
    )


def device_methods(stack: contextlib.ExitStack, device: NetDevice) -> Methods:
    """What the control socket offers about a device; what it opens is closed by the stack."""
    from vdpa_net.device.audit import DeviceAudit  # noqa: PLC0415

    events = EventLog()
    device.on_event(events.append)
    audit = DeviceAudit(device)
    stack.callback(audit.close)
    return {
        "inspect": device.snapshot,
        "events": events.entries,
        "announce": device.announce,
        "withdraw": device.withdraw,
        "audit_arm": audit.arm,
        "audit_end_interval": audit.end_interval,
        "audit_result": audit.result,
        "audit_last_writes": audit.last_writes,
    }


class EventLog:
    """Everything that a device told since the start: `event`, `ns` (CLOCK_MONOTONIC) and the event's own."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: list[dict[str, object]] = []

    def append(self, name: str, info: dict[str, object]) -> None:
        """Take one event, from any thread."""
        with self._lock:
            self._entries.append({"event": name, **info})

    def entries(self, since: int = 0) -> list[dict[str, object]]:
        """The events from number `since` on."""
        with self._lock:
            return self._entries[since:]


def _build_device(stack: contextlib.ExitStack, request: DeviceRequest) -> NetDevice:
    raise_file_limit()
    backend = open_backend(request.netdev)
    if request.pcap is not None:
        backend = record(backend, request.pcap)
    stack.callback(backend.close)
    device = stack.enter_context(make_device(request.device, backend))
    for fault in request.faults:
        device.install_fault(fault)
        _say(f"fault: {fault}")
    observe(stack, device, request.observation, _say)
    _say(f"device {request.device.id or 'virtio-net-pci'}: mac {request.device.mac}, on {backend.name}")
    return device


def _build_driver(
    stack: contextlib.ExitStack, handle: DeviceHandle, vhost_socket: VhostSocket, profile: Profile | None
) -> Methods:
    from vdpa_net.driver.vdpa_driver import VdpaDriver  # noqa: PLC0415
    from vdpa_net.driver.vhost_backend import VhostBackend  # noqa: PLC0415
    from vdpa_net.transport.vhost_user.server import VhostUserClient, VhostUserServer  # noqa: PLC0415

    driver = VdpaDriver(handle, profile)
    make_peer = VhostUserServer if vhost_socket.server else VhostUserClient
    server = stack.enter_context(make_peer(vhost_socket.path, VhostBackend(driver), on_error=_say_error))
    return {"evidence": driver.evidence, "wire_log": server.wire_log}


def _settle_memory() -> None:
    """What is there now stays: the garbage collector need not look through it while a guest waits for us."""
    gc.freeze()


def _say_error(error: BaseException) -> None:
    _say(f"refused: {error}")


def _offer_control(stack: contextlib.ExitStack, path: Path, methods: Methods) -> None:
    from vdpa_net.transport.control import ControlServer  # noqa: PLC0415

    stack.enter_context(contextlib.closing(ControlServer(path, methods)))


def _say(text: str) -> None:
    print(text, flush=True)


def _say_meeting(socket: VhostSocket) -> None:
    if socket.server:
        _say_listening(socket.path)
    else:
        _say(f"connecting to {socket.path}")


def _say_listening(path: Path) -> None:
    _say(f"listening on {path} (start to listening: {_since_start_ms()} ms)")


def _since_start_ms() -> int:
    # starttime, field 22 of proc(5)'s stat, in clock ticks since boot.
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    started_s = ticks / os.sysconf("SC_CLK_TCK")
    return round(1000 * (time.clock_gettime(time.CLOCK_BOOTTIME) - started_s))
