# SPDX-License-Identifier: Apache-2.0
"""A level-1 guest: QEMU with a vIOMMU, the device behind it, a manager NIC, and the lab's agent inside.

Its root is the lab image, shared over 9p; so is this very package, and nothing is installed in it.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vdpa_net.closing import Starting
from vdpa_net.errors import LabError, PeerGone, StateError
from vdpa_net.lab import guest
from vdpa_net.lab.guest import Guest
from vdpa_net.lab.image import Image
from vdpa_net.lab.machine import Machine, MachineOptions, vfio_user_arguments
from vdpa_net.lab.nested.agent import HUGE_PAGE_BYTES, PORT_NAME
from vdpa_net.lab.nested.channel import Channel
from vdpa_net.lab.network import PREFIX_LENGTH
from vdpa_net.lab.program import Program
from vdpa_net.lab.ram import GuestRam

BOOT_SECONDS = 180
CPU = "Westmere"
"""The oldest that DPDK runs on. What newer ones have (rep movsb at speed, AVX, SMAP) is slow under TCG."""
MODULES = ("9p", "9pnet_virtio", "overlay")
DEVICE_ADDRESS = "0000:01:00.0"
INSIDE = Path("/run/lab")
"""Where the guest sees what is shared with it."""
DRIVER_HUGE_PAGES = 40
"""For DPDK's own memory (-m 64), with some to spare."""


@dataclass(frozen=True)
class Level1Options:
    """What a level-1 guest is made of.

    `small` is its kernel and initramfs (`build_guest`), `package` the directory with this package for its
    Python (`package.staged`), `level2` what its own guest boots; `vfio_user` is the
    device's socket, None for a guest without one; `manager_tap` its manager NIC, with `mac` and `address`.
    """

    name: str
    image: Image
    qemu: Program
    small: Guest
    package: Path
    level2: Guest
    directory: Path
    vfio_user: Path | None
    manager_tap: str
    mac: str
    address: str
    accel: str = "tcg"
    memory_mib: int = 1536
    level2_mib: int = 128
    cpus: int = 2
    iommu: bool = True


def build_guest(image: Image, cache: Path | None = None) -> Guest:
    """What level-1 guests boot: a kernel that finds its root over 9p."""
    return guest.build(image, cache=cache, modules=MODULES, agent=False, init="level1.sh")


class Level1(Starting):
    """A running level-1 guest. Used as a context; `call` reaches its agent."""

    def __init__(self, options: Level1Options) -> None:
        self.options = options
        self.name = options.name
        self._stack = ExitStack()
        self._machine: Machine | None = None
        self._channel: Channel | None = None
        self.ram: GuestRam | None = None

    @property
    def machine(self) -> Machine:
        """QEMU. Raises StateError before the start."""
        if self._machine is None:
            raise StateError(f"{self.name} has not been started")
        return self._machine

    @property
    def channel(self) -> Channel:
        """The control channel. Raises StateError before the start."""
        if self._channel is None:
            raise StateError(f"{self.name} has not been started")
        return self._channel

    @property
    def logs(self) -> Path:
        """The directory on the host that the guest writes its logs to."""
        return self.options.directory / self.name

    def start(self) -> None:
        """Start QEMU; `wait_ready` waits for the guest."""
        self.logs.mkdir(parents=True, exist_ok=True)
        self.ram = self._stack.enter_context(GuestRam(self.name, self.options.memory_mib << 20))
        near, far = socket.socketpair()
        with far:
            self._machine = Machine(self._machine_options(self.ram, far.fileno()), self.options.directory)
            self._channel = Channel(near.detach(), f"level-1 guest {self.name}")
            try:
                self._stack.enter_context(self._machine)
            finally:
                self._channel.start()

    def wait_ready(self) -> dict[str, Any]:
        """What the agent says about the guest, once its manager NIC is up. Raises LabError."""
        outcome = self.machine.wait_console(r"LAB (ready agent|failed .*)", BOOT_SECONDS)
        if outcome.startswith("failed"):
            raise self.machine.failure(f"says: {outcome}")
        about = dict(self.call("about"))
        if self.options.vfio_user is not None:
            # Before the driver of the manager NIC comes, which would take the device, too.
            self.call("bind", address=DEVICE_ADDRESS)
        self._set_up_network()
        return about

    def _set_up_network(self) -> None:
        self.run("modprobe", "virtio_net")
        interface = self._interface(self.options.mac)
        self.call("write", path="/proc/sys/net/ipv6/conf/all/disable_ipv6", text="1")
        self.run("ip", "address", "add", f"{self.options.address}/{PREFIX_LENGTH}", "dev", interface)
        for name in ("lo", interface):
            self.run("ip", "link", "set", name, "up")

    def _interface(self, mac: str) -> str:
        for line in self.run("ip", "-oneline", "link").splitlines():
            if mac in line:
                return line.split(": ")[1]
        raise LabError(f"{self.name} has no interface with the address {mac}")

    def call(self, method: str, /, **params: Any) -> Any:
        """Call the agent. Raises PeerError with what it raised, PeerGone when the guest is not there."""
        return self.channel.call(method, **params)

    def call_if_there(self, method: str, /, **params: Any) -> None:
        """Call the agent, unless the guest has gone: for what its end undoes anyway."""
        with contextlib.suppress(PeerGone):
            self.call(method, **params)

    def run(self, *argv: str) -> str:
        """Standard output of a short program in the guest. Raises PeerError with its complaint."""
        return str(self.call("run", argv=argv))

    def close(self) -> None:
        """End QEMU and give everything back."""
        self._stack.close()
        if self._channel is not None:
            self._channel.join()

    def _machine_options(self, ram: GuestRam, agent_fd: int) -> MachineOptions:
        options = self.options
        return MachineOptions(
            self.name,
            options.qemu,
            options.small,
            options.small.append("level1", *self._kernel_words()),
            accel=options.accel,
            memory_mib=options.memory_mib,
            cpus=options.cpus,
            cpu=CPU if options.accel == "tcg" else None,
            memory_path=ram.path,
            arguments=(*self._shares(), *self._devices(agent_fd)),
            pass_fds=(ram.fd, agent_fd),
            iommu=options.iommu,
        )

    def _kernel_words(self) -> Sequence[str]:
        pages = (self.options.level2_mib << 20) // HUGE_PAGE_BYTES + DRIVER_HUGE_PAGES
        # A CPU that TCG gives too little time fails the kernel's test of its timer, which then panics.
        fixed = ("no_timer_check", f"hugepages={pages}")
        return (*fixed, "intel_iommu=on") if self.options.iommu else fixed

    def _shares(self) -> Sequence[str]:
        readable = {
            "root": self.options.image.root,
            "package": self.options.package,
            "guests": self.options.level2.initrd.parent,
        }
        common = "security_model=none,multidevs=remap"
        words: list[str] = []
        for tag, path in readable.items():
            words += ["-virtfs", f"local,path={path},mount_tag={tag},readonly=on,{common}"]
        return [*words, "-virtfs", f"local,path={self.logs},mount_tag=logs,{common}"]

    def _devices(self, agent_fd: int) -> Sequence[str]:
        options = self.options
        device = vfio_user_arguments(options.vfio_user) if options.vfio_user is not None else ()
        tap = f"tap,id=manager,ifname={options.manager_tap},script=no,downscript=no"
        return [
            *device,
            *("-netdev", tap, "-device", f"virtio-net-pci,netdev=manager,mac={options.mac},romfile="),
            *("-device", "virtio-serial-pci", "-chardev", f"socket,id=agent,fd={agent_fd}"),
            *("-device", f"virtserialport,chardev=agent,name={PORT_NAME}"),
        ]
