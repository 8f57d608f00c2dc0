# SPDX-License-Identifier: Apache-2.0
"""`vdpa-net bench`: the device beside its peers and its limits, in one run."""

from __future__ import annotations

import argparse
from pathlib import Path

from vdpa_net.bench import GROUPS
from vdpa_net.cli import options
from vdpa_net.cli.parser import whole_number

DETAILS = """\
Contestants take turns; a case tells medians, extremes and ratios. Goals that are missed are told in the table
and by --strict in the exit code. Needs root, the lab image (vdpa-net lab build) and the native ends
(make bench in a checkout)."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "--quick", action="store_true", help="fewer rounds and cases, every kind of them: a few minutes"
    )
    parser.add_argument(
        "--group",
        action="append",
        default=[],
        choices=GROUPS,
        metavar="NAME",
        help=f"only this group of cases, repeatable: {', '.join(GROUPS)}",
    )
    parser.add_argument("--only", default="", metavar="TEXT", help="only cases whose key has this in it")
    parser.add_argument("--rounds", type=whole_number(1), metavar="N", help="samples of each contestant")
    parser.add_argument("--sample-ms", type=whole_number(1), metavar="N", help="length of a sample")
    parser.add_argument("--plot", type=Path, metavar="DIR", help="draw pictures of the ratios there")
    parser.add_argument("--strict", action="store_true", help="exit with 1 if a goal is missed")
    parser.add_argument(
        "--from",
        dest="from_path",
        type=Path,
        metavar="FILE",
        help="measure nothing: tell and draw what an earlier run wrote with --json",
    )
    options.add_poll_us(parser)
    options.add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """0, or with --strict 1 if a goal is missed."""
    from rich.console import Console  # noqa: PLC0415

    from vdpa_net.bench.report import Report  # noqa: PLC0415
    from vdpa_net.bench.run import BenchOptions, run_bench, tell  # noqa: PLC0415

    console = Console()
    asked = BenchOptions(
        quick=arguments.quick,
        rounds_wanted=arguments.rounds,
        sample_ms=arguments.sample_ms,
        groups=tuple(arguments.group),
        only=arguments.only,
        poll_us=arguments.poll_us,
        json_path=arguments.json,
        plot_directory=arguments.plot,
    )
    if arguments.from_path:
        report = Report.read(arguments.from_path)
        tell(report, asked, console)
    else:
        report = run_bench(asked, console)
    return 1 if arguments.strict and report.missed else 0
