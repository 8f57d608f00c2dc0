# SPDX-License-Identifier: Apache-2.0
"""`vdpa-net migrate`: set up, migrate, judge, tell."""

from __future__ import annotations

import json
import platform
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from vdpa_net.lab.migrate.live import LiveFigures
from vdpa_net.lab.migrate.options import MigrateOptions
from vdpa_net.lab.migrate.session import Migration
from vdpa_net.lab.network import enter_private_network
from vdpa_net.lab.progress import shown_on
from vdpa_net.migration.junit import to_junit
from vdpa_net.migration.verdict import Line, Outcome, Verdict

MAX_LISTED_ROUNDS = 2
GAP_MEANING = (
    "gap: the longest time without a packet from the guest around the switch-over, seen at the bridge; "
    "downtime: QMP's, how long the source's QEMU had the machine stopped"
)


def run_migrate(
    options: MigrateOptions, console: Console | None = None, kind: type[Migration] = Migration
) -> int:
    """Migrate, judge, print; returns the exit code (0 PASS, 1 FAIL, 3 NOT RUN).

    Moves this process into a private network, except with foreign back ends. Raises OptionError for
    impossible options, LabError when the lab can't be set up; the message names the evidence. `kind` is in
    which world the guest lives.
    """
    options.check()
    if options.report is not None:
        from vdpa_net.lab.report import require_plots  # noqa: PLC0415 - matplotlib is an extra

        require_plots()
    console = console or Console()
    started_s = time.monotonic()
    directory = options.directory or Path(tempfile.mkdtemp(prefix="vdpa-net-migrate-"))
    directory.mkdir(parents=True, exist_ok=True)
    if options.backend_sockets is None:
        # Before the progress bar brings a thread of its own.
        enter_private_network()
    live = LiveFigures()
    try:
        with shown_on(console, live.text) as progress:
            migration = kind(options, directory, progress, live)
            migration.run()
    except KeyboardInterrupt:
        console.print("interrupted; everything has been taken down")
        if options.directory is None:
            shutil.rmtree(directory)
        raise
    verdict = migration.verdict()
    verdict.context["duration_s"] = round(time.monotonic() - started_s, 1)
    verdict.context["host"] = {"machine": platform.machine(), "kernel": platform.release()}
    _write_files(options, verdict)
    _print(console, options, migration, verdict)
    if verdict.outcome is Outcome.PASS and options.directory is None and not options.keep:
        shutil.rmtree(directory)
    else:
        console.print(f"evidence: {directory}", highlight=False)
    return verdict.exit_code


def _write_files(options: MigrateOptions, verdict: Verdict) -> None:
    if options.json_path:
        options.json_path.write_text(json.dumps(verdict.to_json(), indent=2, default=str) + "\n")
    if options.junit_path:
        plain = {name: value for name, value in verdict.context.items() if name not in ("rounds", "commands")}
        small = Verdict(verdict.lines, plain, verdict.not_checked)
        options.junit_path.write_bytes(to_junit(small, "vdpa-net migrate"))
    if options.report:
        from vdpa_net.lab.report import write_report  # noqa: PLC0415 - matplotlib is an extra

        write_report(options.report, verdict.to_json())


def _print(console: Console, options: MigrateOptions, migration: Migration, verdict: Verdict) -> None:
    console.print(figures_table(verdict))
    console.print(f"[dim]{GAP_MEANING}[/dim]", highlight=False)
    for fault, fired in migration.faults_fired().items():
        console.print(f"fault {fault}: fired {fired} times", highlight=False)
    listed = condensed(verdict.lines) if options.rounds > MAX_LISTED_ROUNDS else verdict.lines
    if options.report:
        console.print(f"report: {options.report / 'index.html'}", highlight=False)
    Verdict(listed, not_checked=verdict.not_checked).render(console)


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
    if len(expected) > 1:
        # Each round has an index of its own behind the comma.
        expected = {text.rpartition(", ")[0] for text in expected}
    return expected.pop() if len(expected) == 1 else "see --json"


def figures_table(verdict: Verdict) -> Table:
    """What was measured in each round, for a person."""
    # One blank between columns: it has to fit a terminal of 80.
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for heading in (
        "round",
        "from",
        "kind",
        "passes",
        "MiB",
        "gap ms",
        "downtime ms",
        "lost in gap",
        "late pages",
    ):
        table.add_column(heading, justify="left" if heading in ("from", "kind") else "right", no_wrap=True)
    rounds = verdict.context.get("rounds", [])
    assert isinstance(rounds, list)
    for item in rounds:
        timed = item.get("moved", True) and not item["compares_ram"]
        table.add_row(
            str(item["round"]),
            item["from"],
            "gap timed" if timed else "RAM compared" if item.get("moved", True) else "not moved",
            str(item.get("passes", "-")),
            f"{item.get('transferred_bytes', 0) / (1 << 20):.0f}",
            str(item.get("gap_ms", "-")) if timed else "-",
            str(item.get("downtime_ms", "-")) if timed else "-",
            str(item.get("lost_in_gap", "-")) if timed else "-",
            str(item["pages_after_first_pass"]),
        )
    return table
