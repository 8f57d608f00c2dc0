# SPDX-License-Identifier: Apache-2.0
"""`vdpa-net log-test` passes on a sound device; each fault makes exactly the lines fail that it should."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from vdpa_net.errors import OptionError
from vdpa_net.migration.verdict import Outcome, Verdict
from vdpa_net.testing import log_test
from vdpa_net.testing.front_end import Manners
from vdpa_net.testing.log_test import LogTest, run_log_test

LINES = [
    "load",
    "guest RAM",
    "dirty audit",
    "ring state vq0",
    "ring state vq1",
    "frames from the guest",
    "frames to the guest",
    "violations",
]


def migrate(tmp_path: Path, *faults: str, seed: int = 1, manners: Manners | None = None) -> Verdict:
    return LogTest(seed, faults, manners).run(tmp_path)


def report(verdict: Verdict) -> str:
    out = io.StringIO()
    verdict.render(Console(file=out, width=140))
    return out.getvalue() + json.dumps(verdict.context)


@pytest.mark.parametrize("seed", range(12))
def test_sound_device_passes_every_line(tmp_path: Path, seed: int) -> None:
    verdict = migrate(tmp_path, seed=seed)
    assert verdict.outcome is Outcome.PASS, report(verdict)
    assert [line.name for line in verdict.lines] == LINES


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


@pytest.mark.parametrize("faults", [[], ["drop-dirty-mark=0.5"]], ids=["sound", "faulty"])
def test_driver_behind_a_vfio_user_socket_gets_the_same_verdict(tmp_path: Path, faults: list[str]) -> None:
    verdict = LogTest(5, faults, over_vfio_user=True).run(tmp_path)
    assert verdict.failed() == (["guest RAM", "dirty audit"] if faults else []), report(verdict)
    assert Outcome.NOT_RUN not in {line.outcome for line in verdict.lines}, report(verdict)


@pytest.mark.parametrize("seed", range(3))
def test_dropped_marks_fail_ram_and_audit_and_nothing_else(tmp_path: Path, seed: int) -> None:
    verdict = migrate(tmp_path, "drop-dirty-mark=0.5", seed=seed)
    assert verdict.failed() == ["guest RAM", "dirty audit"], report(verdict)
    assert verdict.exit_code == 1


def test_a_few_dropped_marks_fail_the_audit(tmp_path: Path) -> None:
    verdict = migrate(tmp_path, "drop-dirty-mark=0.1")
    assert "dirty audit" in verdict.failed(), report(verdict)
    assert set(verdict.failed()) <= {"guest RAM", "dirty audit"}


@pytest.mark.parametrize("delta", ["+1", "-2"])
def test_wrong_receive_ring_state_fails_its_line(tmp_path: Path, delta: str) -> None:
    verdict = migrate(tmp_path, f"ring-state=vq0:{delta}")
    assert "ring state vq0" in verdict.failed(), report(verdict)
    assert not {"guest RAM", "dirty audit", "ring state vq1"} & set(verdict.failed()), report(verdict)


def test_skipped_transmit_entries_fail_their_line_and_lose_frames(tmp_path: Path) -> None:
    verdict = migrate(tmp_path, "ring-state=vq1:+3")
    failed = set(verdict.failed())
    assert {"ring state vq1", "frames from the guest"} <= failed, report(verdict)
    assert not {"guest RAM", "dirty audit", "ring state vq0"} & failed, report(verdict)


def test_repeated_transmit_entries_fail_their_line_and_repeat_frames(tmp_path: Path) -> None:
    verdict = migrate(tmp_path, "ring-state=vq1:-1")
    assert verdict.failed() == ["ring state vq1", "frames from the guest"], report(verdict)
    verdict = migrate(tmp_path, "ring-state=vq1:-30")
    assert verdict.failed() == ["ring state vq1", "frames from the guest", "frames to the guest"], report(
        verdict
    )
    assert any("duplicate" in item for line in verdict.lines for item in line.detail)


def test_verdict_is_printed_and_written(tmp_path: Path) -> None:
    out, path = io.StringIO(), tmp_path / "verdict.json"
    code = run_log_test(seed=3, faults=[], json_path=path, console=Console(file=out, width=140))
    assert code == 0
    assert out.getvalue().rstrip().endswith("verdict: PASS")
    written = json.loads(path.read_text())
    assert written["verdict"] == "PASS"
    assert written["context"]["seed"] == 3
    assert written["context"]["pages_written_by_device"] >= log_test.MINIMUM_PAGES


def test_round_without_enough_writes_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_test, "MINIMUM_PAGES", 1_000_000)
    verdict = migrate(tmp_path)
    assert verdict.outcome is Outcome.NOT_RUN
    assert verdict.exit_code == 3


def test_unknown_fault_is_refused() -> None:
    with pytest.raises(OptionError, match="no fault 'drop-everything'"):
        LogTest(0, ["drop-everything"])
