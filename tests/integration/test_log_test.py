# SPDX-License-Identifier: Apache-2.0
"""`vdpa-net log-test` passes on sound devices, however they are reached and whatever their rings."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as Xml

import pytest
from rich.console import Console

from integration.vhost_steps import await_true
from vdpa_net.errors import OptionError
from vdpa_net.migration.verdict import Outcome, Verdict
from vdpa_net.testing import log_verdict
from vdpa_net.testing.front_end import Manners, VhostFrontEnd
from vdpa_net.testing.guest_cpu import TX
from vdpa_net.testing.log_round import UNSENT_AT_STOP
from vdpa_net.testing.log_test import LogTest, LogTestOptions, run_log_test

LINES = [
    "load",
    "guest RAM",
    "dirty audit",
    "dirty audit by the kernel",
    "ring state vq0",
    "ring state vq1",
    "frames from the guest",
    "frames to the guest",
    "announcement",
    "violations",
]


def migrate(tmp_path: Path, **options: Any) -> Verdict:
    return LogTest(LogTestOptions(**{"seed": 1, **options})).run(tmp_path)


def report(verdict: Verdict) -> str:
    out = io.StringIO()
    verdict.render(Console(file=out, width=140))
    return out.getvalue() + json.dumps(verdict.context)


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
@pytest.mark.parametrize(
    "seed", [0, 1, *(pytest.param(n, marks=pytest.mark.exhaustive) for n in range(2, 12))]
)
def test_sound_device_passes_every_line(tmp_path: Path, seed: int, packed: bool) -> None:
    verdict = migrate(tmp_path, seed=seed, packed=packed)
    assert verdict.outcome is Outcome.PASS, report(verdict)
    assert [line.name for line in verdict.lines] == LINES
    assert verdict.not_checked == {}
    # What is marked between the start of logging and the start of the audit has no write beside it.
    assert verdict.context["over_marking_percent"] < 2


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
def test_each_queue_pair_has_lines_of_its_own(tmp_path: Path, packed: bool) -> None:
    verdict = migrate(tmp_path, queue_pairs=2, packed=packed, rounds=2)
    assert verdict.outcome is Outcome.PASS, report(verdict)
    names = {line.name for line in verdict.lines}
    assert {"round 2: ring state vq3", "round 2: frames to the guest, pair 1"} <= names


@pytest.mark.parametrize(
    "manners",
    [
        Manners(log_base_first=False),
        Manners(disable_first=False),
        Manners(memory_slots=False, enable_early=True),
        Manners(stop_order=(1, 0)),
    ],
    ids=["log-base-last", "no-disable", "mem-table", "transmit-first"],
)
def test_sound_device_passes_with_any_front_end(tmp_path: Path, manners: Manners) -> None:
    verdict = migrate(tmp_path, manners=manners)
    assert verdict.outcome is Outcome.PASS, report(verdict)


@pytest.mark.parametrize("over_vfio_user", [False, True], ids=["in-process", "vfio-user"])
def test_guest_goes_back_and_forth(tmp_path: Path, over_vfio_user: bool) -> None:
    verdict = migrate(tmp_path, rounds=3, over_vfio_user=over_vfio_user)
    assert verdict.outcome is Outcome.PASS, report(verdict)
    assert [line.name for line in verdict.lines] == [
        f"round {number}: {name}" for number in (1, 2, 3) for name in LINES
    ]


def test_a_broken_round_is_the_last(tmp_path: Path) -> None:
    verdict = migrate(tmp_path, rounds=3, faults=("lost-irq",))
    assert verdict.failed()[:2] == ["round 1: frames to the guest", "round 1: announcement"], report(verdict)


def test_verdict_is_printed_and_written(tmp_path: Path) -> None:
    out, path, junit = io.StringIO(), tmp_path / "verdict.json", tmp_path / "verdict.xml"
    options = LogTestOptions(seed=3)
    console = Console(file=out, width=140)
    assert run_log_test(options, console, json_path=path, junit_path=junit) == 0
    assert out.getvalue().startswith("log-test: two devices on loopbacks, split rings, seed 3, faults: none")
    assert out.getvalue().rstrip().endswith("verdict: PASS")
    written = json.loads(path.read_text())
    assert written["verdict"] == "PASS"
    assert written["context"]["seed"] == 3
    assert written["context"]["pages_written_by_device"] >= log_verdict.MINIMUM_PAGES
    suite = Xml.parse(junit).getroot()[0]
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == (str(len(LINES)), "0", "0")


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
def test_a_device_that_has_emptied_its_ring_leaves_frames_for_its_successor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packed: bool
) -> None:
    stop = VhostFrontEnd.stop

    def stop_when_all_is_sent(front_end: VhostFrontEnd) -> list[int]:
        for queue, ring in enumerate(front_end.rings):
            if queue % 2 == TX:
                front_end.kick(queue)
                assert await_true(lambda ring=ring: ring.in_flight == 0)
        return stop(front_end)

    monkeypatch.setattr(VhostFrontEnd, "stop", stop_when_all_is_sent)
    verdict = migrate(tmp_path, packed=packed, queue_pairs=2)
    assert verdict.outcome is Outcome.PASS, report(verdict)
    for queue in ("vq1", "vq3"):
        assert f"{queue}: {UNSENT_AT_STOP}" in verdict.lines[0].measured
        assert f"of {queue} once it had stopped: {UNSENT_AT_STOP}" in verdict.lines[0].measured


def test_round_without_enough_writes_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_verdict, "MINIMUM_PAGES", 1_000_000)
    verdict = migrate(tmp_path)
    assert verdict.outcome is Outcome.NOT_RUN
    assert verdict.exit_code == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"faults": ("drop-everything",)}, "no fault 'drop-everything'"),
        ({"rounds": 0}, "0 rounds"),
        ({"queue_pairs": 17}, "17 queue pairs"),
        ({"backend_sockets": (Path("a"), Path("b")), "faults": ("lost-irq",)}, "those of our own devices"),
    ],
)
def test_what_does_not_go_together_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        LogTestOptions(**options)
