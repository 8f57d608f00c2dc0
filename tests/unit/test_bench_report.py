# SPDX-License-Identifier: Apache-2.0
"""Results of the bench as JSON, Markdown and pictures, from samples that are made up."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from vdpa_net.bench import host, markdown
from vdpa_net.bench.case import SUBJECT, Bound, Case, CaseResult, Goal, Series
from vdpa_net.bench.families import by_family
from vdpa_net.bench.plot import LONGEST_RATIO, bars, draw, drawn_families
from vdpa_net.bench.report import SCHEMA, Report
from vdpa_net.cli.table import run_command
from vdpa_net.errors import OptionError

ROOT = Path(__file__).resolve().parents[2]
PEER, LIMIT = "DPDK", "bare tap"


def a_result(key: str = "tap-tx-64", bound: Bound | None = None, own: float = 2.0) -> CaseResult:
    goals = (Goal(PEER, at_least=1.0), Goal(LIMIT, at_most=0.5))
    case = Case(key, "transmit, 64 B", "Mframes/s", goals=goals, bound=bound)
    return CaseResult(
        case, {SUBJECT: Series([own, own, 3.0]), PEER: Series([4.0] * 3), LIMIT: Series([5.0] * 3)}
    )


def a_report(*results: CaseResult) -> Report:
    return Report({"processor": "P", "cores": 2, "peers": {"DPDK": "24.11"}}, 3, 0.4, list(results))


def test_a_result_that_was_written_is_read_again_with_its_goals(tmp_path: Path) -> None:
    first = a_report(a_result(), a_result("control-start", bound=Bound(1.0)))
    path = tmp_path / "result.json"
    path.write_text(json.dumps(first.to_json()))
    again = Report.read(path)
    assert again.to_json() == first.to_json()
    assert [result.missed() for result in again.results] == [result.missed() for result in first.results]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{", "Expecting property name"),
        ("[]", "not a result of"),
        (
            json.dumps({"schema": SCHEMA - 1}),
            f"schema {SCHEMA - 1}, this version reads {SCHEMA}; measure again",
        ),
        (json.dumps({"schema": SCHEMA}), "not a result of .*cases"),
    ],
)
def test_a_file_that_is_no_result_is_refused_with_its_name(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(OptionError, match=rf"other\.json: .*{complaint}"):
        Report.read(path)


def test_a_row_tells_every_contestant_with_ratio_and_goal() -> None:
    assert markdown.row(a_result(bound=Bound(1.5))) == (
        "| transmit, 64 B | Mframes/s | 2 [2 to 3] | DPDK 4<br>bare tap 5 "
        "| 0.50 [0.50 to 0.75]<br>0.40 [0.40 to 0.60] "
        "| >= 1 (**missed**)<br><= 0.5<br><= 1.5 (**missed**) |"
    )


def test_a_picture_is_shown_where_there_is_one() -> None:
    lines = list(markdown.figures(a_report(a_result(), a_result("ring-rx")), "images", {"tap"}))
    assert [line for line in lines if line.startswith("!")] == [
        "![On a tap: ratios and goals](images/bench-tap.svg)"
    ]
    assert [line for line in lines if line.startswith("###")] == ["### On a tap", "### The ring engine alone"]


def test_families_come_in_their_order_and_unknown_ones_last() -> None:
    results = [a_result(key) for key in ("new-a", "ring-a", "tap-a", "ring-b")]
    assert {name: len(members) for name, members in by_family(results).items()} == {
        "tap": 1,
        "ring": 2,
        "new": 1,
    }
    assert list(by_family(results)) == ["tap", "ring", "new"]


def test_a_bar_says_its_ratio_its_goal_and_whether_that_is_missed() -> None:
    missed, held, limit = bars(a_result(bound=Bound(4.0)))
    assert (missed.label, missed.words, missed.holds) == (PEER, "0.50, MISSED ≥ 1", False)
    assert (held.label, held.words, held.holds) == (LIMIT, "0.40, goal ≤ 0.5", True)
    assert (limit.label, limit.words) == ("limit of 4 Mframes/s", "0.50, goal ≤ 1")
    assert (missed.low, missed.high) == (0.5, 0.75)


def test_a_miss_that_rounding_would_hide_is_told_in_more_digits() -> None:
    case = Case("a-b", "c", "us", goals=(Goal(PEER, at_least=0.95),), bound=Bound(15.0))
    near = CaseResult(case, {SUBJECT: Series([15.04]), PEER: Series([15.84])})
    assert [bar.words for bar in bars(near)] == ["0.949, MISSED ≥ 0.95", "1.003, MISSED ≤ 1"]
    assert markdown.row(near) == (
        "| c | us | 15.04 | DPDK 15.8 | 0.949 | >= 0.95 (**missed**)<br><= 15 (**missed**) |"
    )


def test_a_bar_of_a_peer_that_lost_nothing_is_infinite() -> None:
    case = Case("migration-lost", "lost", "packets", goals=(Goal(PEER, at_most=1.0),), may_be_zero=True)
    (bar,) = bars(CaseResult(case, {SUBJECT: Series([1.0]), PEER: Series([0.0])}))
    assert (math.isinf(bar.ratio), bar.words) == (True, "inf, MISSED ≤ 1")


def test_every_family_is_drawn_and_a_missed_goal_is_told_in_words(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    report = a_report(a_result(), a_result("ring-rx", own=10 * LONGEST_RATIO))
    assert drawn_families(report) == {"tap", "ring"}
    written = draw(report, tmp_path)
    assert [path.name for path in written] == [
        f"bench-{family}.{kind}" for family in ("tap", "ring") for kind in ("png", "svg")
    ]
    drawing = (tmp_path / "bench-tap.svg").read_text()
    for words in ("0.50, MISSED ≥ 1", "0.40, goal ≤ 0.5", "transmit, 64 B", "P, 2 cores, DPDK 24.11"):
        assert words in drawing
    assert "»" in (tmp_path / "bench-ring.svg").read_text()


def test_versions_of_the_peers_are_those_of_the_image_s_packages(tmp_path: Path) -> None:
    status = tmp_path / "var/lib/dpkg/status"
    status.parent.mkdir(parents=True)
    status.write_text(
        "Package: dpdk-dev\nVersion: 1.0\n\nPackage: dpdk\nStatus: ok\nVersion: 24.11.8-0+deb13u1\n\n"
        "Package: qemu-system-x86\nVersion: 1:11.1.3+ds-1\n"
    )
    assert host.peer_versions(tmp_path) == {"QEMU": "11.1.3", "DPDK": "24.11.8"}
    assert host.peer_versions(tmp_path / "var") == {}


def test_an_earlier_result_is_told_again_and_strict_about_its_goals(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "result.json"
    path.write_text(json.dumps(a_report(a_result()).to_json()))
    assert run_command(["bench", "--from", str(path)]) == 0
    assert "transmit, 64 B" in capsys.readouterr().out
    assert run_command(["bench", "--strict", "--from", str(path)]) == 1


def test_the_page_tells_the_figures_of_the_result_beside_it() -> None:
    command = [sys.executable, ROOT / "scripts/write_performance.py", "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
