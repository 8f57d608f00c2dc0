# SPDX-License-Identifier: Apache-2.0
"""The nested topology: the flat one with a level-1 guest on each side.

    traffic endpoint -- virbr0 -- tap -- device -- QEMU of L1 -- vfio-pci in L1 -- driver -- vhost socket
                           |                                                                     |
                           +------------- manager NIC of L1 ------- QEMU of L2 in L1 ------------+

The level-2 guest lives in one of the level-1 guests and moves to the other over the manager network.
"""

from __future__ import annotations

import os
import signal
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from vdpa_net.errors import LabError
from vdpa_net.lab.guest import Guest
from vdpa_net.lab.image import Image
from vdpa_net.lab.migrate.announce import AnnouncementWatch
from vdpa_net.lab.migrate.hold import Wire
from vdpa_net.lab.migrate.pace import Pace
from vdpa_net.lab.migrate.precopy import is_final
from vdpa_net.lab.migrate.topology import GUEST_MAC, SIDE_NAMES, FlatTopology, HostedGuest, TopologyOptions
from vdpa_net.lab.nested.level1 import INSIDE, Level1, Level1Options
from vdpa_net.lab.nested.level2 import QEMU, Level2Machine, describe
from vdpa_net.lab.nested.level2_ram import Level2Ram
from vdpa_net.lab.nested.side import DRIVERS, NestedSide
from vdpa_net.lab.nested.wire import MigrationWire
from vdpa_net.lab.network import GUEST_ADDRESS, LAB_ADDRESS, LabNetwork
from vdpa_net.lab.progress import ProgressCallback
from vdpa_net.lab.side import Side

BRIDGE = "virbr0"
KILLABLE = ("l1-dst", "l2-dst", "device-dst")
"""Parts of the destination: its level-1 guest, the QEMU of the level-2 guest, the device's process."""

KILL_SECONDS = 60
MIGRATION_PORT = 4789
NESTED = Pace(
    phase_s=300,
    logging_s=120,
    progress_s=600,
    traffic_s=300,
    load_s=180,
    sample_s=0.5,
    busy_window_s=1,
    window_datagrams=2,
    afterwards_datagrams=30,
    warm_up_datagrams=10,
)


@dataclass(frozen=True)
class NestedTopologyOptions:
    """What a nested topology is made of, besides the flat part: `flat.memory_mib` is the level-2 guest's RAM.

    `state` is the file that the level-2 guest comes in from (`warm`). `say` tells how far things have come.
    """

    flat: TopologyOptions
    image: Image
    level1_guest: Guest
    package: Path
    state: Path
    driver: str
    say: ProgressCallback
    software_live_migration: bool = False
    level1_mib: int = 1536


class Level2Hosted(HostedGuest):
    """A QEMU in a level-1 guest, with RAM that the lab can read."""

    def __init__(self, options: NestedTopologyOptions, side: NestedSide, generation: int) -> None:
        self.side = side
        flat, level1 = options.flat, side.level1
        name = f"qemu-{side.name}-{generation}"
        self._stack = ExitStack()
        made = level1.call("make_ram", name=name, size=flat.memory_mib << 20)
        self._stack.callback(level1.call_if_there, "drop_ram", name=name)
        if level1.ram is None:
            raise LabError(f"{level1.name} has no RAM")
        path = Path(made["path"])
        self.ram = Level2Ram(level1.ram, path, made["page_bytes"], made["addresses"])
        guest = Guest(Path("/boot") / flat.guest.kernel.name, INSIDE / "guests" / flat.guest.initrd.name)
        machine = describe(flat, QEMU, guest, side.vhost_socket, name=name, memory_path=path)
        self.machine = Level2Machine(level1, machine, flat.directory)
        try:
            self._stack.enter_context(self.machine)
        except BaseException:
            self._stack.close()
            raise


class NestedTopology(FlatTopology):
    """Network, level-1 guests, sides and the level-2 guest."""

    pace = NESTED

    def __init__(self, options: NestedTopologyOptions) -> None:
        super().__init__(options.flat)
        self.nested = options
        self._wire: MigrationWire | None = None
        self._stack.callback(self._cut_wire)

    def start(self) -> None:
        """The bridge; per side the device on its tap, the level-1 guest on it, and the driver in that."""
        say = self.nested.say
        self.network = self._stack.enter_context(LabNetwork(bridge=BRIDGE))
        sides: list[NestedSide] = []
        for number, name in enumerate(SIDE_NAMES):
            side = self._make_side(number, name)
            side.start_device()
            self._stack.callback(side.stop)
            self.network.attach(side.options.tap)
            self._stack.enter_context(side.level1)
            self.network.attach(side.level1.options.manager_tap)
            sides.append(side)
            self.sides.append(side)
        for side in sides:
            say(f"booting level-1 guest {side.level1.name}", None)
            side.level1.wait_ready()
            side.start_driver()
        for side in sides:
            say(f"starting the driver in {side.level1.name}", None)
            side.wait_driver()
        self.network.add_neighbour(GUEST_ADDRESS, GUEST_MAC)
        self.announcements = self._stack.enter_context(AnnouncementWatch(side.options.tap for side in sides))

    def _make_side(self, number: int, name: str) -> NestedSide:
        options = self.nested
        flat = self._side_options(number, name)
        level1 = Level1Options(
            f"L1-{name}",
            options.image,
            options.flat.qemu,
            options.level1_guest,
            options.package,
            options.flat.guest,
            options.flat.directory,
            options.flat.directory / f"{name}.vfio-user",
            f"mgr{number}",
            f"02:87:00:00:01:{number + 1:02x}",
            f"10.87.0.{11 + number}",
            accel=options.flat.accel,
            memory_mib=options.level1_mib,
            level2_mib=options.flat.memory_mib,
        )
        driver = DRIVERS[options.driver](options.software_live_migration)
        return NestedSide(flat, Level1(level1), driver)

    def kill(self, part: str, destination: HostedGuest) -> None:
        """Kill one of `KILLABLE`. Raises LabError."""
        side = destination.side
        assert isinstance(side, NestedSide)
        if part == "l1-dst":
            os.kill(side.level1.machine.pid, signal.SIGKILL)
            side.level1.machine.wait_exit(KILL_SECONDS)
        elif part == "l2-dst":
            side.level1.call("signal", name=destination.machine.name, number=int(signal.SIGKILL))
            destination.machine.wait_exit(KILL_SECONDS)
        else:
            side.kill_device()

    def migration_uris(self, target: Side) -> tuple[str, str]:
        """The wire on the manager network, and the target's level-1 guest at its end."""
        assert isinstance(target, NestedSide)
        place = (target.level1.options.address, MIGRATION_PORT)
        self._cut_wire()
        self._wire = MigrationWire(LAB_ADDRESS, place)
        return "tcp:{}:{}".format(*self._wire.address), "tcp:{}:{}".format(*place)

    @property
    def wire(self) -> Wire | None:
        """The wire that the last migration goes over."""
        return self._wire

    def _cut_wire(self) -> None:
        if self._wire is not None:
            self._wire.close()
            self._wire = None

    def boot(self, side: Side) -> HostedGuest:
        """The level-2 guest, ready for traffic: it comes in from its saved state."""
        self.nested.say("starting the level-2 guest", None)
        hosted = self._host(side, incoming=True)
        machine = hosted.machine
        switches = [{"capability": "events", "state": True}]
        machine.qmp("migrate-set-capabilities", {"capabilities": switches})
        machine.qmp("migrate-incoming", {"uri": f"file:{INSIDE / 'guests' / self.nested.state.name}"})
        ended = machine.wait_event("MIGRATION", self.pace.phase_s, where=is_final)
        if ended.data["status"] != "completed":
            raise machine.failure(f"can't take its state: {machine.qmp('query-migrate')}")
        machine.qmp("cont")
        return hosted

    def _make_hosted(self, side: Side, *, incoming: bool) -> HostedGuest:  # noqa: ARG002
        assert isinstance(side, NestedSide)
        return Level2Hosted(self.nested, side, self.generation)
