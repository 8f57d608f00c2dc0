# SPDX-License-Identifier: Apache-2.0
"""`vdpa-net lab nested`: the guest of a guest moves between two level-1 guests, and the verdict on it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from rich.console import Console

from vdpa_net.driver.log_area import LOG_IOVA
from vdpa_net.errors import OptionError
from vdpa_net.lab import accelerator, guest, image
from vdpa_net.lab.migrate.observe import Round
from vdpa_net.lab.migrate.options import MigrateOptions
from vdpa_net.lab.migrate.run import run_migrate
from vdpa_net.lab.migrate.session import SCHEMA, Migration
from vdpa_net.lab.migrate.topology import GUEST_MAC, FlatTopology, TopologyOptions
from vdpa_net.lab.nested.level1 import build_guest
from vdpa_net.lab.nested.level2 import describe
from vdpa_net.lab.nested.log_line import log_line
from vdpa_net.lab.nested.package import staged
from vdpa_net.lab.nested.side import DRIVERS
from vdpa_net.lab.nested.topology import KILLABLE, NestedTopology, NestedTopologyOptions
from vdpa_net.lab.nested.warm import warm_state
from vdpa_net.lab.program import machine_name
from vdpa_net.migration.verdict import Line

RATE_PPS = 100
"""By the guest's clock, which is slow while it works; what is sent to it follows the pace of its own."""

IOMMU_RATE_PPS = 10
"""With an IOMMU of the guest's own each packet costs it translations besides."""

MEMORY_MIB = 128
LOGGED_BY_DRIVER = {
    "dirty audit": "with sw-live-migration=1 it is DPDK's driver that marks pages; the device logs nothing"
}
"""Claims about the device that are not about it then, and why."""


@dataclass(frozen=True)
class NestedOptions(MigrateOptions):
    """What to run. `memory_mib` is the level-2 guest's RAM, `level1_mib` that of each level-1 guest.

    `driver` is "vdpa-net" or "dpdk"; `software_live_migration` is DPDK's mode in which the driver logs.
    `kill` is a part of the destination (`KILLABLE`) that is killed in pre-copy: the guest has to go on.
    """

    rounds: int = 1
    rate_pps: int = RATE_PPS
    memory_mib: int = MEMORY_MIB
    dirty_kib_per_s: int = 0
    stream_bytes_per_s: int = 0
    downtime_limit_ms: int = 2000
    driver: str = "vdpa-net"
    software_live_migration: bool = False
    level1_mib: int = 1536
    kill: str | None = None

    def check(self) -> None:
        """Raises OptionError, naming the value."""
        super().check()
        if self.driver not in DRIVERS:
            raise OptionError(f"driver {self.driver!r}: expected {' or '.join(DRIVERS)}")
        if self.kill is not None and self.kill not in KILLABLE:
            raise OptionError(f"kill {self.kill!r}: expected {', '.join(KILLABLE)}")
        if self.kill is not None and self.rounds != 1:
            raise OptionError(f"--kill: the guest stays where it is, so there is 1 round, not {self.rounds}")
        if self.software_live_migration and self.driver != "dpdk":
            raise OptionError("--sw-live-migration is a mode of DPDK's driver: --driver dpdk")
        if self.iommu and self.driver == "dpdk":
            raise OptionError(
                "--iommu: DPDK's ifc driver hides ACCESS_PLATFORM, so a NIC behind it bypasses the vIOMMU; "
                "--driver vdpa-net translates"
            )
        if self.packed and self.driver == "dpdk":
            raise OptionError("--packed: the live migration of DPDK's ifc driver knows split rings only")
        if machine_name() != "x86_64":
            raise OptionError("lab nested: level-1 guests need an intel-iommu, which is for x86_64 only")


def run_nested(options: NestedOptions, console: Console | None = None) -> int:
    """Migrate, judge, print; returns the exit code (0 PASS, 1 FAIL, 3 NOT RUN). Raises as `run_migrate`."""
    return run_migrate(options, console, NestedMigration)


class NestedMigration(Migration):
    """One run of `vdpa-net lab nested`."""

    _options: NestedOptions

    @property
    def _device_logs(self) -> bool:
        return not self._options.software_live_migration

    @property
    def _kill(self) -> str | None:
        return self._options.kill

    def _lines(self, done: Round) -> list[Line]:
        if not done.moved:
            return super()._lines(done)
        # Where DPDK maps it is no option of DPDK's; ours may change the place.
        at = LOG_IOVA if self._options.driver == "dpdk" else None
        line = log_line(done.figures["log"], device_logs=self._device_logs, at=at)
        return [*super()._lines(done), replace(line, name=f"round {done.number}: {line.name}")]

    def _not_checked(self) -> dict[str, str]:
        return super()._not_checked() if self._device_logs else dict(LOGGED_BY_DRIVER)

    def _prepare(self) -> TopologyOptions:
        options = self._options
        built = image.require(options.cache)
        qemu = accelerator.choose_qemu(built, options.qemu, accelerator.VFIO_USER_SINCE)
        small = guest.build(built, cache=options.cache)
        self._progress("trying KVM", None)
        accel = accelerator.choose_accelerator(qemu, small, options.accel, options.cache)
        profile = DRIVERS[options.driver](options.software_live_migration).profile
        flat = TopologyOptions(
            qemu,
            small,
            accel,
            options.memory_mib,
            "vfio",
            self._directory,
            faults=options.faults,
            seed=options.seed,
            profile=profile,
            queue_pairs=options.queue_pairs,
            packed=options.packed,
            iommu=options.iommu,
            dirty_kib_per_s=options.dirty_kib_per_s,
        )
        self._built = built
        self._context = {
            "schema": SCHEMA,
            "command": "lab nested",
            "qemu": accelerator.version_text(accelerator.qemu_version(qemu)),
            "qemu_level2": accelerator.version_text(accelerator.qemu_version(built.qemu())),
            "accel": accel,
            "driver": options.driver,
            "sw_live_migration": options.software_live_migration,
            "profile": profile,
            "packed": options.packed,
            "iommu": options.iommu,
            "seed": options.seed,
            "faults": list(options.faults),
            "kill": options.kill,
            "memory_mib": options.memory_mib,
            "rate_pps": options.rate_pps,
            "rounds_wanted": options.rounds,
            "directory": str(self._directory),
        }
        return flat

    def _make_topology(self, flat: TopologyOptions) -> FlatTopology:
        options = self._options
        qemu = self._built.qemu()
        state = warm_state(
            lambda socket: describe(flat, qemu, flat.guest, socket, name="warm"),
            [str(self._built.root), flat.guest.initrd.name, _shape(flat)],
            f"mac={GUEST_MAC}" + (",packed=on" if flat.packed else ""),
            self._progress,
            options.cache,
        )
        return NestedTopology(
            NestedTopologyOptions(
                flat,
                self._built,
                build_guest(self._built, options.cache),
                staged(self._built, options.cache),
                state,
                options.driver,
                self._progress,
                options.software_live_migration,
                options.level1_mib,
            )
        )


def _shape(flat: TopologyOptions) -> list[object]:
    """What else decides how the level-2 guest comes out."""
    described = describe(flat, flat.qemu, flat.guest, flat.directory / "x", name="warm")
    words = [word.replace(str(flat.directory), "") for word in described.arguments]
    return [described.append, described.cpu, described.memory_mib, described.iommu, words]
