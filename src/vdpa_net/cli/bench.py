# SPDX-License-Identifier: Apache-2.0
"""`vdpa-net bench`: the device beside its peers and its limits, in one run."""

from __future__ import annotations

import argparse
from pathlib import Path

from vdpa_net.bench import GROUPS
from vdpa_net.cli import options
from vdpa_net.cli.parser import whole_number

DETAILS = """\
groups:
  tap        the device on a tap, beside a bare tap and DPDK's net_vhost
  user       the same, driven by DPDK's virtio_user
  ring       the rings alone, beside DPDK's net_vhost
  control    register reads, doorbells, maps, start, memory, idle cost
  guest      a Linux guest, beside the same guest on QEMU's own virtio-net
  migration  gap and downtime, beside those of QEMU's own virtio-net

examples:
  vdpa-net bench --quick --json out.json
  vdpa-net bench --group ring --only tx-64
  vdpa-net bench --from out.json --plot pictures

Contestants take turns, in rounds. A case tells the median of each, and that of
the rounds' ratios, with extremes. Goals that are missed are told in the table,
below it, and with --strict in the exit code. Needs root, the lab image
(vdpa-net lab build) and the native ends (make bench-peers in a checkout).
docs/performance.md says what is measured, and how."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "--quick", action="store_true", help="5 rounds, fewer cases, every kind of them: a few minutes"
    )
    parser.add_argument(
        "--group",
        action="append",
        default=[],
        choices=GROUPS,
        metavar="NAME",
        help="only this group of cases (see below); may be repeated",
    )
    parser.add_argument("--only", default="", metavar="TEXT", help="only cases with this in their key")
    parser.add_argument(
        "--rounds",
        type=whole_number(1),
        metavar="N",
        help="samples of each contestant (default: 9, with --quick 5)",
    )
    parser.add_argument(
        "--sample-ms", type=whole_number(1), metavar="N", help="length of a sample (default: 100)"
    )
    parser.add_argument("--plot", type=Path, metavar="DIR", help="draw the ratios as pictures there")
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
