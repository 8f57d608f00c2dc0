# SPDX-License-Identifier: Apache-2.0
"""A run of the bench: set up what a group of cases needs, measure it, take it down."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from rich.console import Console

from vdpa_net.bench import GROUPS, host
from vdpa_net.bench.case import Case
from vdpa_net.bench.contestants import Site
from vdpa_net.bench.control import MAP_BATCH, control_cases
from vdpa_net.bench.guests import guest_cases
from vdpa_net.bench.migrations import migration_cases
from vdpa_net.bench.native import Peers, require_processors
from vdpa_net.bench.pace import probing
from vdpa_net.bench.report import Report
from vdpa_net.bench.rings import ring_cases
from vdpa_net.bench.rounds import Conditions, run_case
from vdpa_net.bench.tap_limits import Bare
from vdpa_net.bench.taps import tap_cases
from vdpa_net.bench.terminal import print_goals, print_report
from vdpa_net.bench.virtio_user import user_cases
from vdpa_net.errors import LabError, MissingTool, OptionError
from vdpa_net.lab import image
from vdpa_net.lab.network import LabNetwork, enter_private_network
from vdpa_net.lab.progress import ProgressCallback, shown_on

QUICK_LEAVES_OUT = {
    "tap": "512 B, most sizes of packed rings, pairs and logging, most of both ways",
    "user": "512 and 1500 B, packed rings and two pairs but in transmit",
    "ring": "1500 B packed, most of loopback",
    "control": f"a million maps (it has {MAP_BATCH})",
}

Group = Callable[[], AbstractContextManager[list[Case]]]


@dataclass(frozen=True)
class BenchOptions:
    """What to measure. `rounds_wanted` and `sample_ms` are instead of what `quick` decides.

    `groups` are names of GROUPS, empty for all; `only` is a part of the keys wanted.

    `poll_us` is how long the device polls after work in the groups `tap`, `user` and `ring`; None: its
    default.
    """

    quick: bool = False
    rounds_wanted: int | None = None
    sample_ms: int | None = None
    groups: tuple[str, ...] = ()
    only: str = ""
    poll_us: int | None = None
    json_path: Path | None = None
    plot_directory: Path | None = None
    cache: Path | None = None

    @property
    def rounds(self) -> int:
        """Samples of each contestant."""
        return self.rounds_wanted or (5 if self.quick else 9)

    @property
    def seconds(self) -> float:
        """Length of a sample."""
        return (self.sample_ms or 100) / 1000


def run_bench(options: BenchOptions, console: Console) -> Report:
    """Measure, print the table, write what was asked for.

    Moves this process into a private network. Raises MissingTool for a peer that is not there, LabError for
    samples that can't be taken (all else has been measured and written by then), OptionError for an unknown
    group.
    """
    unknown = set(options.groups) - set(GROUPS)
    if unknown:
        raise OptionError(f"--group {min(unknown)}: expected one of {', '.join(GROUPS)}")
    require_processors()
    report = Report(describe_machine(options), options.rounds, options.seconds, [], options.poll_us)
    enter_private_network()
    try:
        with (
            tempfile.TemporaryDirectory(prefix="vdpa-net-bench-") as directory,
            shown_on(console) as progress,
        ):
            _run_groups(options, Path(directory), progress, report)
    finally:
        # Whatever ended the run: what it has measured is told.
        if report.results:
            tell(report, options, console)
    if report.failures:
        raise LabError("these cases could not be measured:\n" + "\n".join(report.failures))
    return report


def left_out(options: BenchOptions) -> str:
    """What a quick run does not measure, and the command that does."""
    command = " ".join(["vdpa-net bench", *(f"--group {name}" for name in options.groups)])
    groups = options.groups or GROUPS
    told = [f"{name}: {QUICK_LEAVES_OUT[name]}" for name in groups if name in QUICK_LEAVES_OUT]
    if options.rounds_wanted is None:
        told.insert(0, "half of the rounds")
    return f"--quick leaves out: {'; '.join(told) or 'nothing of these'}. All of it: {command}"


def describe_machine(options: BenchOptions) -> dict[str, object]:
    """The machine and the peers in the lab image. Raises LabError where there is no image."""
    return host.describe() | {"peers": host.peer_versions(image.require(options.cache).root)}


def tell(report: Report, options: BenchOptions, console: Console) -> None:
    """Print the table, write the JSON and the pictures that were asked for; the goals come last.

    Raises MissingTool.
    """
    print_report(report, console)
    if options.json_path:
        report.write(options.json_path)
    if options.plot_directory:
        from vdpa_net.bench.plot import draw  # noqa: PLC0415

        console.print()
        for path in draw(report, options.plot_directory):
            console.print(f"picture: {path}", highlight=False, soft_wrap=True)
    if options.quick:
        console.print(f"\n{left_out(options)}", highlight=False, soft_wrap=True)
    print_goals(report, console)


def _run_groups(options: BenchOptions, directory: Path, progress: ProgressCallback, report: Report) -> None:
    built = image.require(options.cache)
    peers = Peers(options.seconds)
    with ExitStack() as stack:
        network = stack.enter_context(LabNetwork())
        measured = Measuring(report, Conditions(stack.enter_context(probing()), peers.waits))
        bare = cache(lambda: Bare.prepare(peers, network))
        site = Site(built, directory, network, options.poll_us, options.quick)
        groups: dict[str, Group] = {
            "tap": lambda: tap_cases(bare(), site),
            "user": lambda: user_cases(bare(), site),
            "ring": lambda: ring_cases(peers, site),
            "control": lambda: control_cases(directory, network, quick=options.quick),
            "guest": lambda: guest_cases(built, directory, network, options.seconds, quick=options.quick),
            "migration": lambda: migration_cases(directory, quick=options.quick),
        }
        for name in options.groups or GROUPS:
            progress(f"setting up: {name}", None)
            started = time.monotonic()
            measured.add_group(name, groups[name], options.only, progress)
            report.spent_s[name] = round(time.monotonic() - started, 1)
            if options.json_path:
                report.write(options.json_path)


@dataclass
class Measuring:
    """Adds to a report what can be measured, and why the rest can't be."""

    report: Report
    conditions: Conditions | None = None

    def add_group(self, name: str, group: Group, only: str, progress: ProgressCallback) -> None:
        """Set a group up and measure its cases; one that can't be set up leaves the others alone.

        Raises MissingTool.
        """
        with self._kept(f"group {name}"), group() as cases:
            wanted = [case for case in cases if only in case.key]
            for number, case in enumerate(wanted):
                progress(case.title, number / len(wanted))
                self.add(case)

    def add(self, case: Case) -> None:
        """Measure a case; one that can't be leaves the others alone. Raises MissingTool."""
        with self._kept(case.key):
            result = run_case(case, self.report.rounds, self.conditions)
            result.ratios()
            self.report.results.append(result)

    @contextmanager
    def _kept(self, what: str) -> Iterator[None]:
        try:
            yield
        except MissingTool:
            raise
        except LabError as error:
            self.report.failures.append(f"{what}: {error}")
