# SPDX-License-Identifier: Apache-2.0
"""What the bench prints: a table that fits a terminal, and the goals that are missed; samples are made up."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from vdpa_net.bench.case import SUBJECT, Bound, Case, CaseResult, Goal, Series
from vdpa_net.bench.report import Report
from vdpa_net.bench.terminal import print_goals, print_report

LONG_NAME = "DPDK net_vhost + net_tap, 1500 B"
RATES = Case(
    "tap-tx-64", "transmit", "Mframes/s", goals=(Goal(LONG_NAME, at_least=0.95), Goal("b", at_most=1))
)
START = Case("control-start", "start to listening", "ms", bound=Bound(300.0))


def a_report(*, reached: bool = False) -> Report:
    """Three goals, of which two are missed."""
    own = 0.96 if reached else 0.9496
    rates = {
        SUBJECT: Series([own, own, 1.25]),
        LONG_NAME: Series([1.0, 1.0, 1.5]),
        "b": Series([1000.0] * 3),
    }
    start = {SUBJECT: Series([290.0 if reached else 300.4])}
    results = [CaseResult(RATES, rates), CaseResult(START, start)]
    machine = {"processor": "A processor of which the name is rather long", "cores": 2, "kernel": "6.12"}
    return Report(machine, 3, 0.1, results)


def printed(report: Report, columns: int | None) -> list[str]:
    """On a terminal with so many columns, or to a file."""
    file = io.StringIO()
    console = Console(file=file, width=columns, force_terminal=columns is not None, color_system=None)
    print_report(report, console)
    print_goals(report, console)
    return file.getvalue().splitlines()


@pytest.mark.parametrize("columns", [72, 80, 105, 200])
def test_no_line_is_longer_than_the_terminal_and_none_is_cut_in_two(columns: int) -> None:
    lines = printed(a_report(), columns)
    assert max(map(len, lines)) <= columns
    (row,) = [line for line in lines if line.startswith("  DPDK")]
    assert row.split()[-6:] == ["1", "1-1.5", "0.9496", "0.83-0.95", "MISSED", ">=0.95"]


def test_what_goes_to_a_file_is_the_same_at_any_width_of_the_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    lines = printed(a_report(), None)
    assert lines[0] == "A processor of which the name is rather long, 2 cores, Linux 6.12"
    assert [line for line in lines if LONG_NAME in line and "MISSED" in line]
    # Columns of a file stand below each other too.
    places = {line.index(word) for line in lines for word in ("MISSED", "ok <=") if f" {word}" in line}
    assert len(places) == 1


def test_a_name_that_does_not_fit_is_folded_in_its_own_column() -> None:
    lines = printed(a_report(), 74)
    at = next(number for number, line in enumerate(lines) if line.startswith("  DPDK"))
    place = lines[at].index(" 1 1-1.5 ")
    assert f"{lines[at][:place].strip()} {lines[at + 1].strip()}" == LONG_NAME
    assert len(lines[at + 1]) < place


def test_the_last_lines_tell_which_goals_are_missed_and_how_many() -> None:
    lines = printed(a_report(), 80)
    assert lines[-1] == "1 of 3 goals reached, 2 missed"
    # In digits that do not look like the goal itself.
    assert "  tap-tx-64: 0.9496, goal >= 0.95 of DPDK net_vhost + net_tap, 1500 B" in lines
    assert "  control-start: 300.4 ms, goal <= 300" in lines
    assert [line.split()[-2:] for line in lines if "ok" in line] == [["ok", "<=1"]]


def test_a_run_tells_how_long_it_took_and_where() -> None:
    report = a_report()
    assert not any("measured in" in line for line in printed(report, 80))
    report.spent_s = {"tap": 61.4, "guest": 30.0}
    assert "measured in 91 s: tap 61, guest 30" in printed(report, 80)
    assert Report.from_json(report.to_json()).spent_s == report.spent_s


def test_a_run_that_reaches_its_goals_says_so_and_one_without_goals_too() -> None:
    assert printed(a_report(reached=True), 80)[-1] == "3 of 3 goals reached"
    plain = Report(a_report().host, 1, 0.1, [CaseResult(Case("a-b", "c", "us"), {SUBJECT: Series([1.0])})])
    plain.failures.append("x: nobody there")
    assert printed(plain, 80)[-1] == "no case has a goal; 1 could not be measured"
