# SPDX-License-Identifier: Apache-2.0
"""All rounds of a run. What goes wrong after the set-up becomes a line of the verdict."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vdpa_net.errors import LabError, PeerError
from vdpa_net.lab import accelerator, guest, image, quirks
from vdpa_net.lab.guest import Guest
from vdpa_net.lab.migrate.guest_kit import StartScript, agent_disk, own_guest, throw_away_copy
from vdpa_net.lab.migrate.live import LiveFigures
from vdpa_net.lab.migrate.observe import OUT_OF_REACH, Round
from vdpa_net.lab.migrate.options import MigrateOptions
from vdpa_net.lab.migrate.precopy import FULL_SPEED_BYTES_PER_S, MIB, PrecopyOptions
from vdpa_net.lab.migrate.reference import NOT_OURS, ReferenceTopology
from vdpa_net.lab.migrate.switchover import RoundOptions, RoundRunner
from vdpa_net.lab.migrate.topology import GUEST_MAC, FlatTopology, TopologyOptions, agent_words
from vdpa_net.lab.network import GUEST_ADDRESS, LAB_ADDRESS, PREFIX_LENGTH
from vdpa_net.lab.progress import ProgressCallback
from vdpa_net.lab.traffic.endpoint import TrafficEndpoint
from vdpa_net.lab.traffic.flows import TrafficOptions
from vdpa_net.lab.traffic.format import DEFAULT_PORT
from vdpa_net.migration.verdict import Line, Outcome, Verdict

SCHEMA = 2
GUEST_TOOLS = ("usr/sbin/ethtool",)


class Migration:
    """One run of `vdpa-net migrate`: `run`, then `verdict`."""

    def __init__(
        self, options: MigrateOptions, directory: Path, progress: ProgressCallback, live: LiveFigures
    ) -> None:
        self._options = options
        self._directory = directory
        self._progress = progress
        self._live = live
        self._rounds: list[Round] = []
        self._problem = ""
        self._context: dict[str, Any] = {}
        self._commands: list[str] = []

    def run(self) -> None:
        """Set up, migrate, take down. Raises LabError if it does not come to a first round."""
        topology_options = self._prepare()
        self._progress("starting the devices", None)
        local, agent = (LAB_ADDRESS, DEFAULT_PORT), (GUEST_ADDRESS, DEFAULT_PORT)
        with (
            self._make_topology(topology_options) as topology,
            TrafficEndpoint(local, agent, self._traffic_options(topology)) as endpoint,
        ):
            self._live.endpoint = endpoint
            try:
                self._run_rounds(topology, endpoint)
            finally:
                self._live.endpoint = None
                self._commands = topology.command_lines()

    def _traffic_options(self, topology: FlatTopology) -> TrafficOptions:
        return TrafficOptions(
            rate_pps=self._options.rate_pps,
            lengths=self._options.lengths,
            flows=self._options.flows,
            stream_bytes_per_s=self._options.stream_bytes_per_s,
            seed=self._options.seed,
            window=topology.pace.window_datagrams,
        )

    def _make_topology(self, options: TopologyOptions) -> FlatTopology:
        return ReferenceTopology(options) if self._options.reference else FlatTopology(options)

    def _prepare(self) -> TopologyOptions:
        options = self._options
        built = image.require(options.cache)
        qemu = accelerator.choose_qemu(built, options.qemu)
        small = guest.build(built, cache=options.cache, tools=GUEST_TOOLS)
        self._progress("trying KVM", None)
        accel = accelerator.choose_accelerator(qemu, small, options.accel, options.cache)
        number = accelerator.qemu_version(qemu)
        one_pass = quirks.loses_writes_after_second_pass(number, accel)
        self._context = {
            "schema": SCHEMA,
            "command": "migrate",
            "qemu": accelerator.version_text(number),
            "accel": accel,
            "transport": options.transport,
            "profile": options.profile,
            "queue_pairs": options.queue_pairs,
            "packed": options.packed,
            "iommu": options.iommu,
            "reference": options.reference,
            "seed": options.seed,
            "faults": list(options.faults),
            "memory_mib": options.memory_mib,
            "rate_pps": options.rate_pps,
            "lengths": list(options.lengths),
            "cancel_at": options.cancel_at,
            "disturbances": list(options.disturbances),
            "rounds_wanted": options.rounds,
            "directory": str(self._directory),
        }
        disk, extra = self._disk(options)
        return TopologyOptions(
            qemu,
            self._guest(options, small),
            accel,
            options.memory_mib,
            options.transport,
            self._directory,
            faults=options.faults,
            seed=options.seed,
            msix=not quirks.crashes_with_msix(number, accel),
            one_pass=one_pass,
            profile=options.profile,
            queue_pairs=options.queue_pairs,
            packed=options.packed,
            iommu=options.iommu,
            dirty_kib_per_s=options.dirty_kib_per_s,
            image=disk,
            own_guest=options.initrd is not None or disk is not None,
            qemu_arguments=(*extra, *options.qemu_arguments),
            backend_sockets=options.backend_sockets,
        )

    def _script(self, options: MigrateOptions) -> StartScript:
        address = f"{GUEST_ADDRESS}/{PREFIX_LENGTH}"
        words = agent_words(options.memory_mib, options.dirty_kib_per_s)
        return StartScript(GUEST_MAC, address, LAB_ADDRESS, DEFAULT_PORT, " ".join(words))

    def _guest(self, options: MigrateOptions, small: Guest) -> Guest:
        if options.kernel is None:
            return small if options.image is None else Guest(Path(), small.initrd)
        return own_guest(options.kernel, options.initrd, small, self._script(options), self._directory)

    def _disk(self, options: MigrateOptions) -> tuple[Path | None, tuple[str, ...]]:
        if options.image is None:
            return None, ()
        agent = agent_disk(self._script(options), self._directory)
        drive = f"if=virtio,id=agent0,file={agent},format=raw,readonly=on"
        return throw_away_copy(options.image, self._directory), ("-drive", drive)

    def _run_rounds(self, topology: FlatTopology, endpoint: TrafficEndpoint) -> None:
        self._progress("booting the guest", None)
        hosted = topology.boot(topology.sides[0])
        for number in range(1, self._options.rounds + 1):
            runner = RoundRunner(
                topology,
                hosted,
                endpoint,
                self._round_options(number, topology),
                (self._progress, self._live),
            )
            try:
                done = runner.run()
            except (LabError, PeerError) as error:
                self._problem = f"round {number} broke off: {error}"
                endpoint.abandon()
                return
            self._rounds.append(done)
            if not done.moved:
                return
            topology.remove(hosted)
            hosted = runner.arrived()
            if any(line.outcome is Outcome.FAIL for line in self._lines(done)):
                # A guest that has lost something is no base for another round.
                return

    def _round_options(self, number: int, topology: FlatTopology) -> RoundOptions:
        options = self._options
        bandwidth = options.bandwidth_mib_per_s
        precopy = PrecopyOptions(
            options.minimum_pages,
            topology.options.one_pass,
            options.downtime_limit_ms,
            FULL_SPEED_BYTES_PER_S if bandwidth is None else bandwidth * MIB,
            topology.pace,
            device_logs=self._device_logs,
            audits_by_file=topology.options.iommu,
        )
        # Odd rounds compare RAM, even ones time the gap.
        compares_ram = number % 2 == 1 and not options.gap_only
        return RoundOptions(
            number, compares_ram, precopy, options.cancel_at, options.disturbances, self._kill
        )

    @property
    def _kill(self) -> str | None:
        """What of the destination is killed in pre-copy."""
        return None

    @property
    def _device_logs(self) -> bool:
        """Whether the device marks pages itself; a driver may do it in its place."""
        return True

    def _lines(self, done: Round) -> list[Line]:
        return done.lines(self._options.minimum_pages)

    def verdict(self) -> Verdict:
        """One verdict on all rounds."""
        lines = [line for item in self._rounds for line in self._lines(item)]
        lines.append(self._rounds_line())
        rounds = [
            {
                "round": item.number,
                "from": item.source_name,
                "compares_ram": item.compares_ram,
                "moved": item.moved,
                "faults_fired": item.faults_fired,
                "pages_after_first_pass": item.pages_after_first_pass,
                **item.figures,
            }
            for item in self._rounds
        ]
        context = {**self._context, "commands": self._commands, "rounds": rounds}
        return Verdict(lines, context, self._not_checked())

    def _not_checked(self) -> dict[str, str]:
        claims = {"guest RAM": "no round compares it (--gap-only)"} if self._options.gap_only else {}
        if self._options.reference:
            return claims | NOT_OURS
        return claims | OUT_OF_REACH if self._options.backend_sockets is not None else claims

    def faults_fired(self) -> dict[str, int]:
        """How often each fault had fired at the end of the last round."""
        return self._rounds[-1].faults_fired if self._rounds else {}

    def _rounds_line(self) -> Line:
        done, wanted = len(self._rounds), self._options.rounds
        moved = [item for item in self._rounds if item.moved]
        compared = sum(item.compares_ram for item in moved)
        outcome = Outcome.PASS if done == wanted and not self._problem else Outcome.NOT_RUN
        detail = [self._problem] if self._problem else []
        measured = f"{done} of {wanted} ran ({compared} compared RAM, {len(moved) - compared} timed the gap)"
        return Line("rounds", outcome, measured, f"{wanted} of {wanted}", tuple(detail))
