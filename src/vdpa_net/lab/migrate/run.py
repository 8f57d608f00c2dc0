# SPDX-License-Identifier: Apache-2.0
"""`vdpa-net migrate`: a running Linux guest moves between two vdpa net devices, and the verdict on it."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from vdpa_net.errors import LabError
from vdpa_net.lab import accelerator, guest, image, quirks
from vdpa_net.lab.migrate.observe import Round
from vdpa_net.lab.migrate.options import MigrateOptions
from vdpa_net.lab.migrate.switchover import RoundOptions, RoundRunner
from vdpa_net.lab.migrate.topology import FlatTopology, TopologyOptions
from vdpa_net.lab.network import GUEST_ADDRESS, LAB_ADDRESS, enter_private_network
from vdpa_net.lab.progress import ProgressCallback, shown_on
from vdpa_net.lab.traffic.endpoint import TrafficEndpoint
from vdpa_net.lab.traffic.flows import TrafficOptions
from vdpa_net.lab.traffic.format import DEFAULT_PORT
from vdpa_net.migration.verdict import Line, Outcome, Verdict

MAX_LISTED_ROUNDS = 2
SCHEMA = 1


def run_migrate(options: MigrateOptions, console: Console | None = None) -> int:
    """Migrate, judge, print; returns the exit code (0 PASS, 1 FAIL, 3 NOT RUN).

    Moves this process into a private network. Raises OptionError for impossible options, LabError when the
    lab can't be set up; the message names the evidence.
    """
    options.check()
    console = console or Console()
    started_s = time.monotonic()
    directory = options.directory or Path(tempfile.mkdtemp(prefix="vdpa-net-migrate-"))
    directory.mkdir(parents=True, exist_ok=True)
    # Before the progress bar brings a thread of its own.
    enter_private_network()
    try:
        with shown_on(console) as progress:
            migration = _Migration(options, directory, progress)
            migration.run()
    except KeyboardInterrupt:
        console.print("interrupted; everything has been taken down")
        if options.directory is None:
            shutil.rmtree(directory)
        raise
    verdict = migration.verdict()
    verdict.context["duration_s"] = round(time.monotonic() - started_s, 1)
    if options.json_path:
        options.json_path.write_text(json.dumps(verdict.to_json(), indent=2, default=str) + "\n")
    console.print(migration.figures_table())
    for fault, fired in migration.faults_fired().items():
        console.print(f"fault {fault}: fired {fired} times", highlight=False)
    Verdict(condensed(verdict.lines) if options.rounds > MAX_LISTED_ROUNDS else verdict.lines).render(console)
    if verdict.outcome is Outcome.PASS and options.directory is None and not options.keep:
        shutil.rmtree(directory)
    else:
        console.print(f"evidence: {directory}", highlight=False)
    return verdict.exit_code


def condensed(lines: Sequence[Line]) -> list[Line]:
    """Lines for a person: a claim that holds in every round is one line; of the others each line stays."""
    claims: dict[str, list[Line]] = {}
    for line in lines:
        _round, _, claim = line.name.rpartition(": ")
        claims.setdefault(claim, []).append(line)
    shown: list[Line] = []
    for claim, same in claims.items():
        if len(same) > 1 and all(line.outcome is Outcome.PASS for line in same):
            shown.append(Line(claim, Outcome.PASS, f"holds in {len(same)} rounds", _common_expectation(same)))
        else:
            shown += same
    return shown


def _common_expectation(lines: Sequence[Line]) -> str:
    expected = {line.expected for line in lines}
    return expected.pop() if len(expected) == 1 else "all are used->idx in RAM"


class _Migration:
    """All rounds of a run. What goes wrong after the set-up becomes a line of the verdict."""

    def __init__(self, options: MigrateOptions, directory: Path, progress: ProgressCallback) -> None:
        self._options = options
        self._directory = directory
        self._progress = progress
        self._rounds: list[Round] = []
        self._problem = ""
        self._context: dict[str, Any] = {}

    def run(self) -> None:
        """Set up, migrate, take down."""
        topology_options = self._prepare()
        self._progress("starting the devices", None)
        with (
            FlatTopology(topology_options) as topology,
            TrafficEndpoint(
                (LAB_ADDRESS, DEFAULT_PORT),
                (GUEST_ADDRESS, DEFAULT_PORT),
                TrafficOptions(rate_pps=self._options.rate_pps, seed=self._options.seed),
            ) as endpoint,
        ):
            self._run_rounds(topology, endpoint)

    def _prepare(self) -> TopologyOptions:
        options = self._options
        built = image.require(options.cache)
        qemu = accelerator.choose_qemu(built, options.qemu)
        small = guest.build(built, cache=options.cache)
        self._progress("trying KVM", None)
        accel = accelerator.choose_accelerator(qemu, small, options.accel, options.cache)
        number = accelerator.qemu_version(qemu)
        version = accelerator.version_text(number)
        self._context = {
            "schema": SCHEMA,
            "command": "migrate",
            "qemu": version,
            "accel": accel,
            "transport": options.transport,
            "seed": options.seed,
            "faults": list(options.faults),
            "memory_mib": options.memory_mib,
            "rate_pps": options.rate_pps,
            "rounds_wanted": options.rounds,
            "directory": str(self._directory),
        }
        return TopologyOptions(
            qemu,
            small,
            accel,
            options.memory_mib,
            options.transport,
            self._directory,
            faults=options.faults,
            seed=options.seed,
            msix=not quirks.crashes_with_msix(number, accel),
            one_pass=quirks.loses_writes_after_second_pass(number, accel),
        )

    def _run_rounds(self, topology: FlatTopology, endpoint: TrafficEndpoint) -> None:
        self._progress("booting the guest", None)
        hosted = topology.boot(topology.sides[0])
        for number in range(1, self._options.rounds + 1):
            # Odd rounds compare RAM, even ones time the gap.
            options = RoundOptions(number, number % 2 == 1, self._options.minimum_pages)
            runner = RoundRunner(topology, hosted, endpoint, options, self._progress)
            try:
                done = runner.run()
            except LabError as error:
                self._problem = f"round {number} broke off: {error}"
                return
            self._rounds.append(done)
            topology.remove(hosted)
            hosted = runner.arrived()
            if any(line.outcome is Outcome.FAIL for line in done.lines(options.minimum_pages)):
                # A guest that has lost something is no base for another round.
                return

    def verdict(self) -> Verdict:
        """One verdict on all rounds."""
        lines = [line for item in self._rounds for line in item.lines(self._options.minimum_pages)]
        lines.append(self._rounds_line())
        rounds = [
            {
                "round": item.number,
                "from": item.source_name,
                "compares_ram": item.compares_ram,
                "faults_fired": item.faults_fired,
                **item.figures,
            }
            for item in self._rounds
        ]
        return Verdict(lines, {**self._context, "rounds": rounds})

    def faults_fired(self) -> dict[str, int]:
        """How often each fault had fired at the end of the last round."""
        return self._rounds[-1].faults_fired if self._rounds else {}

    def _rounds_line(self) -> Line:
        done, wanted = len(self._rounds), self._options.rounds
        compared = sum(item.compares_ram for item in self._rounds)
        outcome = Outcome.PASS if done == wanted and not self._problem else Outcome.NOT_RUN
        detail = [self._problem] if self._problem else []
        measured = f"{done} of {wanted} ran ({compared} compared RAM, {done - compared} timed the gap)"
        return Line("rounds", outcome, measured, f"{wanted} of {wanted}", tuple(detail))

    def figures_table(self) -> Table:
        """What was measured in each round, for a person."""
        table = Table(box=None, pad_edge=False, header_style="bold")
        for heading in (
            "round",
            "from",
            "kind",
            "passes",
            "gap ms",
            "downtime ms",
            "lost in gap",
            "pages written",
        ):
            table.add_column(heading, justify="right" if heading not in ("from", "kind") else "left")
        for item in self._rounds:
            figures = item.figures
            timed = not item.compares_ram
            table.add_row(
                str(item.number),
                item.source_name,
                "gap timed" if timed else "RAM compared",
                str(figures.get("passes", "-")),
                str(figures.get("gap_ms", "-")) if timed else "-",
                str(figures.get("downtime_ms", "-")) if timed else "-",
                str(figures.get("lost_in_gap", "-")) if timed else "-",
                str(item.pages_after_first_pass),
            )
        return table
