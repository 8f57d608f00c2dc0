# SPDX-License-Identifier: Apache-2.0
"""The flat topology: one bridge, and per side a tap, a device, a vDPA driver and a QEMU with the guest.

    traffic endpoint -- bridge -- tap -- device -- registers -- vDPA driver -- vhost socket -- QEMU -- guest

Two sides hang on the bridge; the guest lives on one of them and moves to the other.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from vdpa_net.lab.guest import Guest
from vdpa_net.lab.machine import Machine, MachineOptions
from vdpa_net.lab.network import GUEST_ADDRESS, LAB_ADDRESS, LAB_MAC, PREFIX_LENGTH, LabNetwork
from vdpa_net.lab.program import Program
from vdpa_net.lab.ram import GuestRam
from vdpa_net.lab.side import Side, SideOptions
from vdpa_net.lab.traffic.format import DEFAULT_PORT

GUEST_MAC = "56:4a:b7:4f:4d:a9"
SIDE_NAMES = ("A", "B")
BOOT_SECONDS = 120


@dataclass(frozen=True)
class TopologyOptions:
    """What the topology is made of. `faults` go to side A, where the guest boots.

    Without `msix` the guest's NIC has an INTx pin only, which is no matter to the vdpa device behind it.
    `one_pass` is how pre-copy is held (see `precopy`).
    """

    qemu: Program
    guest: Guest
    accel: str
    memory_mib: int
    transport: str
    directory: Path
    faults: tuple[str, ...] = ()
    seed: int = 0
    msix: bool = True
    one_pass: bool = False


class HostedGuest:
    """A QEMU on one side, with RAM that the lab can read."""

    def __init__(self, options: TopologyOptions, side: Side, generation: int, *, incoming: bool) -> None:
        self.side = side
        name = f"qemu-{side.name}-{generation}"
        self._stack = ExitStack()
        self.ram = self._stack.enter_context(GuestRam(name, options.memory_mib << 20))
        machine = MachineOptions(
            name,
            options.qemu,
            options.guest,
            _kernel_command_line(options.guest),
            accel=options.accel,
            memory_mib=options.memory_mib,
            memory_path=self.ram.path,
            pass_fds=(self.ram.fd,),
            arguments=_network_arguments(side.vhost_socket, msix=options.msix),
            incoming="defer" if incoming else None,
            paused=incoming,
        )
        self.machine = Machine(machine, options.directory)
        try:
            self._stack.enter_context(self.machine)
        except BaseException:
            self._stack.close()
            raise

    def close(self) -> None:
        """End QEMU, give the RAM back."""
        self._stack.close()


class FlatTopology:
    """Network, sides and the guest. Entered in the lab's private network; leaves nothing behind."""

    def __init__(self, options: TopologyOptions) -> None:
        self.options = options
        self._stack = ExitStack()
        self._generation = 0
        self._guests: list[HostedGuest] = []
        self.sides: list[Side] = []
        self.network: LabNetwork | None = None

    def start_network(self) -> None:
        """The bridge, and both sides with their taps on it."""
        self.network = self._stack.enter_context(LabNetwork())
        for number, name in enumerate(SIDE_NAMES):
            faults = self.options.faults if number == 0 else ()
            options = SideOptions(
                name,
                f"vt{number}",
                GUEST_MAC,
                self.options.directory,
                transport=self.options.transport,
                faults=faults,
                seed=self.options.seed,
            )
            side = self._stack.enter_context(Side(options))
            self.network.attach(options.tap)
            self.sides.append(side)
        self.network.add_neighbour(GUEST_ADDRESS, GUEST_MAC)

    def boot(self, side: Side) -> HostedGuest:
        """The guest, started on a side, ready for traffic. Raises LabError with its console."""
        hosted = self._host(side, incoming=False)
        outcome = hosted.machine.wait_console(r"LAB (ready .*|failed .*)", BOOT_SECONDS)
        if outcome.startswith("failed"):
            raise hosted.machine.failure(f"says: {outcome}")
        return hosted

    def expect_guest(self, side: Side) -> HostedGuest:
        """A QEMU that waits on a side for the guest to come in; it stands still until told to go on."""
        return self._host(side, incoming=True)

    def remove(self, hosted: HostedGuest) -> None:
        """End a QEMU."""
        self._guests.remove(hosted)
        hosted.close()

    def _host(self, side: Side, *, incoming: bool) -> HostedGuest:
        self._generation += 1
        hosted = HostedGuest(self.options, side, self._generation, incoming=incoming)
        self._guests.append(hosted)
        return hosted

    def __enter__(self) -> Self:
        try:
            self.start_network()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for hosted in self._guests[::-1]:
            self.remove(hosted)
        self._stack.close()


def _network_arguments(vhost_socket: Path, *, msix: bool) -> tuple[str, ...]:
    nic = f"virtio-net-pci,netdev=net0,mac={GUEST_MAC},romfile="
    return (
        *("-chardev", f"socket,id=vhost0,path={vhost_socket}"),
        *("-netdev", "vhost-user,id=net0,chardev=vhost0,queues=1"),
        # Without its option ROM the firmware does not try to boot from the network.
        *("-device", nic if msix else f"{nic},vectors=0"),
    )


def _kernel_command_line(guest: Guest) -> str:
    address = f"{GUEST_ADDRESS}/{PREFIX_LENGTH}"
    return guest.append("traffic", address=address, peer=LAB_ADDRESS, peer_mac=LAB_MAC, port=DEFAULT_PORT)
