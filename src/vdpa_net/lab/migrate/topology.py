# SPDX-License-Identifier: Apache-2.0
"""The flat topology: one bridge, and per side a tap, a device, a vDPA driver and a QEMU with the guest.

    traffic endpoint -- bridge -- tap -- device -- registers -- vDPA driver -- vhost socket -- QEMU -- guest

Two sides hang on the bridge; the guest lives on one of them and moves to the other.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from vdpa_net.closing import Starting
from vdpa_net.errors import LabError
from vdpa_net.lab.guest import Guest
from vdpa_net.lab.machine import Machine, MachineOptions
from vdpa_net.lab.migrate.announce import AnnouncementWatch
from vdpa_net.lab.migrate.hold import Wire
from vdpa_net.lab.migrate.pace import FLAT, Pace
from vdpa_net.lab.network import GUEST_ADDRESS, LAB_ADDRESS, LAB_MAC, PREFIX_LENGTH, LabNetwork
from vdpa_net.lab.program import Program
from vdpa_net.lab.ram import GuestRam, Ram
from vdpa_net.lab.side import Side, SideOptions
from vdpa_net.lab.traffic.format import DEFAULT_PORT
from vdpa_net.migration.faults import Side as FaultSide
from vdpa_net.migration.faults import parse_fault

GUEST_MAC = "56:4a:b7:4f:4d:a9"
SIDE_NAMES = ("A", "B")
BOOT_SECONDS = 120
WINDOW_BEHIND_IOMMU_S = 1.0
"""Each packet waits for translations there: hundreds of milliseconds can pass without one."""


@dataclass(frozen=True)
class TopologyOptions:
    """What the topology is made of. `faults` go to the side that they are about.

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
    profile: str = "vdpa"
    queue_pairs: int = 1
    packed: bool = False
    iommu: bool = False
    dirty_kib_per_s: int = 1024
    image: Path | None = None
    own_guest: bool = False
    qemu_arguments: tuple[str, ...] = ()
    backend_sockets: tuple[Path, Path] | None = None


class HostedGuest:
    """A QEMU on one side, with RAM that the lab can read."""

    ram: Ram

    def __init__(
        self,
        options: TopologyOptions,
        side: Side,
        generation: int,
        netdev: tuple[str, ...],
        *,
        incoming: bool,
    ) -> None:
        self.side = side
        name = f"qemu-{side.name}-{generation}"
        self._stack = ExitStack()
        ram = self._stack.enter_context(GuestRam(name, options.memory_mib << 20))
        self.ram = ram
        machine = MachineOptions(
            name,
            options.qemu,
            options.guest,
            kernel_command_line(options),
            accel=options.accel,
            memory_mib=options.memory_mib,
            memory_path=ram.path,
            pass_fds=(ram.fd,),
            cpus=options.queue_pairs,
            iommu=options.iommu,
            boots_disk=options.image is not None and options.guest.kernel == Path(),
            arguments=(*nic_arguments(netdev, options), *_disk(options), *options.qemu_arguments),
            incoming="defer" if incoming else None,
            paused=incoming,
        )
        self.machine: Machine = Machine(machine, options.directory)
        try:
            self._stack.enter_context(self.machine)
        except BaseException:
            self._stack.close()
            raise

    def close(self) -> None:
        """End QEMU, give the RAM back."""
        self._stack.close()


class FlatTopology(Starting):
    """Network, sides and the guest. Entered in the lab's private network; leaves nothing behind."""

    pace: Pace = FLAT

    def __init__(self, options: TopologyOptions) -> None:
        self.options = options
        if options.iommu:
            window_s = max(self.pace.busy_window_s, WINDOW_BEHIND_IOMMU_S)
            self.pace = replace(self.pace, busy_window_s=window_s)
        self._stack = ExitStack()
        self.generation = 0
        self._guests: list[HostedGuest] = []
        self._commands: list[str] = []
        self.sides: list[Side] = []
        self.network: LabNetwork | None = None
        self.announcements: AnnouncementWatch | None = None

    def start(self) -> None:
        """The bridge, and both sides with their taps on it; with foreign back ends there is neither."""
        if self.options.backend_sockets is not None:
            for name, path in zip(SIDE_NAMES, self.options.backend_sockets, strict=True):
                self.sides.append(Side.foreign(name, path))
            return
        self.network = self._stack.enter_context(LabNetwork())
        for number, name in enumerate(SIDE_NAMES):
            side = self._enter_side(self.network, self._side_options(number, name))
            self.network.attach(side.options.tap)
            self.sides.append(side)
        self.network.add_neighbour(GUEST_ADDRESS, GUEST_MAC)
        self.announcements = self._stack.enter_context(
            AnnouncementWatch(side.options.tap for side in self.sides)
        )

    def _enter_side(self, _network: LabNetwork, options: SideOptions) -> Side:
        return self._stack.enter_context(Side(options))

    def _side_options(self, number: int, name: str) -> SideOptions:
        options = self.options
        wanted = FaultSide.SOURCE if number == 0 else FaultSide.DESTINATION
        return SideOptions(
            name,
            f"vt{number}",
            GUEST_MAC,
            options.directory,
            transport=options.transport,
            profile=options.profile,
            queue_pairs=options.queue_pairs,
            packed=options.packed,
            faults=tuple(text for text in options.faults if parse_fault(text).side is wanted),
            seed=options.seed,
        )

    def migration_uris(self, _target: Side) -> tuple[str, str]:
        """Where QEMU sends the guest to, and where the other one waits for it."""
        uri = f"unix:{self.options.directory / f'migration-{self.generation}'}"
        return uri, uri

    @property
    def wire(self) -> Wire | None:
        """What holds the migration between the URIs, where QEMU's own limit is not enough."""
        return None

    def boot(self, side: Side) -> HostedGuest:
        """The guest, started on a side, ready for traffic. Raises LabError with its console."""
        hosted = self._host(side, incoming=False)
        if self.options.own_guest:
            # It says nothing that we know: the first request to its agent waits for it.
            return hosted
        outcome = hosted.machine.wait_console(r"LAB (ready .*|failed .*)", BOOT_SECONDS)
        if outcome.startswith("failed"):
            raise hosted.machine.failure(f"says: {outcome}")
        return hosted

    def expect_guest(self, side: Side) -> HostedGuest:
        """A QEMU that waits on a side for the guest to come in; it stands still until told to go on."""
        return self._host(side, incoming=True)

    def kill(self, part: str, _destination: HostedGuest) -> None:
        """Kill a part of the destination. Raises LabError for one that there is none of."""
        raise LabError(f"this topology has no part {part!r} that could be killed")

    def remove(self, hosted: HostedGuest) -> None:
        """End a QEMU."""
        self._guests.remove(hosted)
        hosted.close()

    def command_lines(self) -> list[str]:
        """Exactly what has been run, in the order of its start."""
        sides = [line for side in self.sides for line in side.command_lines()]
        return [*sides, *self._commands]

    def _host(self, side: Side, *, incoming: bool) -> HostedGuest:
        self.generation += 1
        hosted = self._make_hosted(side, incoming=incoming)
        self._guests.append(hosted)
        self._commands.append(hosted.machine.command_line())
        return hosted

    def _make_hosted(self, side: Side, *, incoming: bool) -> HostedGuest:
        return HostedGuest(self.options, side, self.generation, self._netdev(side), incoming=incoming)

    def _netdev(self, side: Side) -> tuple[str, ...]:
        return vhost_netdev(side.vhost_socket, self.options.queue_pairs)

    def close(self) -> None:
        """End the QEMUs that are left, and give the network back."""
        for hosted in self._guests[::-1]:
            self.remove(hosted)
        self._stack.close()


def vhost_netdev(vhost_socket: Path, queue_pairs: int) -> tuple[str, ...]:
    """QEMU's arguments for a network back end behind a vhost socket; its id is net0."""
    return (
        *("-chardev", f"socket,id=vhost0,path={vhost_socket}"),
        *("-netdev", f"vhost-user,id=net0,chardev=vhost0,queues={queue_pairs}"),
    )


def nic_arguments(netdev: tuple[str, ...], options: TopologyOptions) -> tuple[str, ...]:
    """QEMU's arguments for the guest's NIC on the network back end net0, which `netdev` makes."""
    pairs = options.queue_pairs
    # Without its option ROM the firmware does not try to boot from the network. A function behind a port of
    # its own can be reset alone.
    properties = f"virtio-net-pci,bus=rp0,netdev=net0,mac={GUEST_MAC},romfile="
    if pairs > 1:
        properties += f",mq=on,vectors={2 * pairs + 2}"
    if not options.msix:
        properties += ",vectors=0"
    if options.packed:
        properties += ",packed=on"
    if options.iommu:
        properties += ",iommu_platform=on,ats=on,disable-legacy=on"
    return (
        *("-device", "pcie-root-port,id=rp0,slot=1"),
        *netdev,
        *("-device", properties),
    )


def _disk(options: TopologyOptions) -> tuple[str, ...]:
    """The user's disk image and, where it has to bring its own agent, ours on a second disk."""
    if options.image is None:
        return ()
    disks = (f"file={options.image},format={image_format(options.image)}", "media=disk")
    return ("-drive", f"if=virtio,id=disk0,{','.join(disks)}")


def image_format(path: Path) -> str:
    """The format of a disk image, as QEMU calls it."""
    with path.open("rb") as image:
        return "qcow2" if image.read(4) == b"QFI\xfb" else "raw"


def kernel_command_line(options: TopologyOptions, *words: str) -> str:
    """The guest's kernel command line, with more words for the kernel."""
    address = f"{GUEST_ADDRESS}/{PREFIX_LENGTH}"
    agent = ",".join(agent_words(options.memory_mib, options.dirty_kib_per_s))
    # A network of the user's has a link address of its own, which the guest asks for.
    known = {"peer_mac": LAB_MAC} if options.backend_sockets is None else {}
    return options.guest.append(
        "traffic",
        *(("intel_iommu=on",) if options.iommu else ()),
        *words,
        address=address,
        peer=LAB_ADDRESS,
        port=DEFAULT_PORT,
        agent=agent,
        **known,
    )


def agent_words(memory_mib: int, dirty_kib_per_s: int) -> tuple[str, ...]:
    """Arguments of the guest's agent: how much memory it rewrites, at which pace."""
    pool_kib = max(8192, min(memory_mib << 8, 2 * dirty_kib_per_s))
    return ("--dirty-kib-per-s", str(dirty_kib_per_s), "--dirty-pool-kib", str(pool_kib))
