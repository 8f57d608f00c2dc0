# SPDX-License-Identifier: Apache-2.0
"""A run of the bench: set up what a group of cases needs, measure it, take it down."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from rich.console import Console

from vdpa_net.bench import GROUPS, host
from vdpa_net.bench.case import Case, CaseResult, run_case
from vdpa_net.bench.control import control_cases
from vdpa_net.bench.guests import guest_cases
from vdpa_net.bench.migrations import migration_cases
from vdpa_net.bench.native import Peers, require_processors
from vdpa_net.bench.report import Report
from vdpa_net.bench.rings import ring_cases
from vdpa_net.bench.tap_limits import Bare
from vdpa_net.bench.taps import tap_cases
from vdpa_net.bench.virtio_user import user_cases
from vdpa_net.errors import LabError, MissingTool, OptionError
from vdpa_net.lab import image
from vdpa_net.lab.network import LabNetwork, enter_private_network
from vdpa_net.lab.progress import ProgressCallback, shown_on

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
        return self.rounds_wanted or (3 if self.quick else 5)

    @property
    def seconds(self) -> float:
        """Length of a sample."""
        return (self.sample_ms or (250 if self.quick else 500)) / 1000


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
    machine = host.describe() | {"peers": host.peer_versions(image.require(options.cache).root)}
    enter_private_network()
    with tempfile.TemporaryDirectory(prefix="vdpa-net-bench-") as directory, shown_on(console) as progress:
        measured = _run_groups(options, Path(directory), progress)
    report = Report(machine, options.rounds, options.seconds, measured.results, options.poll_us)
    tell(report, options, console)
    if measured.failures:
        raise LabError("these cases could not be measured:\n" + "\n".join(measured.failures))
    return report


def tell(report: Report, options: BenchOptions, console: Console) -> None:
    """Print the table, write the JSON and the pictures that were asked for. Raises MissingTool."""
    console.print(report.table())
    if options.json_path:
        options.json_path.write_text(json.dumps(report.to_json(), indent=2) + "\n")
    if options.plot_directory:
        from vdpa_net.bench.plot import draw  # noqa: PLC0415

        for path in draw(report, options.plot_directory):
            console.print(f"picture: {path}", highlight=False)


def _run_groups(options: BenchOptions, directory: Path, progress: ProgressCallback) -> Measured:
    built = image.require(options.cache)
    peers = Peers(options.seconds)
    measured = Measured()
    with ExitStack() as stack:
        network = stack.enter_context(LabNetwork())
        bare = cache(lambda: Bare.prepare(peers, network))
        groups: dict[str, Group] = {
            "tap": lambda: tap_cases(bare(), built, directory, network, options.poll_us, quick=options.quick),
            "user": lambda: user_cases(
                bare(), built, directory, network, options.poll_us, quick=options.quick
            ),
            "ring": lambda: ring_cases(peers, built, directory, options.poll_us),
            "control": lambda: control_cases(directory, quick=options.quick),
            "guest": lambda: guest_cases(built, directory, network, options.seconds),
            "migration": lambda: migration_cases(directory, quick=options.quick),
        }
        for name in options.groups or GROUPS:
            progress(f"setting up: {name}", None)
            with groups[name]() as cases:
                wanted = [case for case in cases if options.only in case.key]
                for number, case in enumerate(wanted):
                    progress(case.title, number / len(wanted))
                    measured.add(case, options.rounds)
    return measured


@dataclass
class Measured:
    """What could be measured, and why the rest could not."""

    results: list[CaseResult] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def add(self, case: Case, rounds: int) -> None:
        """Measure a case; one that can't be leaves the others alone. Raises MissingTool."""
        try:
            result = run_case(case, rounds)
            result.ratios()
        except MissingTool:
            raise
        except LabError as error:
            self.failures.append(f"{case.key}: {error}")
        else:
            self.results.append(result)
