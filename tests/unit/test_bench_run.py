# SPDX-License-Identifier: Apache-2.0
"""A run of the bench that fails or is interrupted keeps what it has measured; its groups are made up."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from rich.console import Console

from vdpa_net.bench import GROUPS, run
from vdpa_net.bench.case import SUBJECT, Case, Take
from vdpa_net.bench.report import Report
from vdpa_net.bench.run import BenchOptions, Group, Measuring, run_bench
from vdpa_net.errors import LabError, MissingTool
from vdpa_net.lab.progress import silent

PEER = "peer"


def fail() -> float:
    raise LabError("nobody there")


def a_case(key: str, take: Take = lambda: 1.0) -> Case:
    return Case(key, key, "us", {SUBJECT: lambda: 1.0, PEER: take})


def a_group(*cases: Case) -> Group:
    @contextmanager
    def group() -> Iterator[list[Case]]:
        yield list(cases)

    return group


def a_report() -> Report:
    return Report({"processor": "P", "cores": 2}, 1, 0.1, [])


def test_a_case_that_can_not_be_measured_leaves_the_others_alone() -> None:
    report = a_report()
    for key, take in (("a", lambda: 1.0), ("b", fail), ("c", lambda: 0.0), ("d", lambda: 2.0)):
        Measuring(report).add(a_case(key, take))
    assert [result.case.key for result in report.results] == ["a", "d"]
    assert report.failures == ["b: nobody there", f"c: c: {PEER} measured 0 us; expected more"]


def test_a_group_that_can_not_be_set_up_leaves_the_others_alone() -> None:
    @contextmanager
    def broken() -> Iterator[list[Case]]:
        raise LabError("no boot")
        yield

    report = a_report()
    measuring = Measuring(report)
    measuring.add_group("guest", broken, "", silent)
    measuring.add_group("ring", a_group(a_case("ring-rx"), a_case("ring-tx")), "rx", silent)
    assert report.failures == ["group guest: no boot"]
    assert [result.case.key for result in report.results] == ["ring-rx"]


def test_a_missing_peer_ends_the_run() -> None:
    def missing() -> float:
        raise MissingTool("no testpmd: run `vdpa-net lab build`")

    with pytest.raises(MissingTool, match="lab build"):
        Measuring(a_report()).add(a_case("a", missing))


def test_what_was_measured_before_an_interruption_is_told_and_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted() -> float:
        raise KeyboardInterrupt

    def groups(options: BenchOptions, directory: Path, progress: object, report: Report) -> None:
        measuring = Measuring(report)
        measuring.add_group("ring", a_group(a_case("ring-a"), a_case("ring-b", interrupted)), "", silent)

    monkeypatch.setattr(run, "_run_groups", groups)
    monkeypatch.setattr(run, "require_processors", lambda: None)
    monkeypatch.setattr(run, "enter_private_network", lambda: None)
    monkeypatch.setattr(run, "describe_machine", lambda _options: {"processor": "P", "cores": 2})
    path = tmp_path / "result.json"
    console = Console(record=True, width=110)
    with pytest.raises(KeyboardInterrupt):
        run_bench(BenchOptions(json_path=path, rounds_wanted=1), console)
    assert [case["key"] for case in json.loads(path.read_text())["cases"]] == ["ring-a"]
    assert "ring-a" in console.export_text()
    assert list(tmp_path.iterdir()) == [path]


def test_a_quick_run_says_what_it_leaves_out_and_how_to_measure_it() -> None:
    assert set(run.QUICK_LEAVES_OUT) <= set(GROUPS)
    told = run.left_out(BenchOptions(quick=True))
    assert "a million maps" in told
    assert told.endswith("All of it: vdpa-net bench")
    told = run.left_out(BenchOptions(quick=True, groups=("ring", "guest")))
    assert "half of the rounds" in told
    assert "maps" not in told
    assert told.endswith("vdpa-net bench --group ring --group guest")
    told = run.left_out(BenchOptions(quick=True, groups=("guest",), rounds_wanted=9))
    assert told == "--quick leaves out: nothing of these. All of it: vdpa-net bench --group guest"
