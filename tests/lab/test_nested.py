# SPDX-License-Identifier: Apache-2.0
"""`vdpa-net lab nested` as a user runs it: level-1 guests, a level-2 guest, its migration, the verdict."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lab.processes import below, wait_gone
from vdpa_net.lab.console import LineReader
from vdpa_net.lab.nested.topology import KILLABLE

pytestmark = [pytest.mark.vm, pytest.mark.timeout(1500)]

RUN_SECONDS = 1200
PHASE_SECONDS = 600
END_SECONDS = 120


def nested(directory: Path, *arguments: str) -> tuple[int, dict[str, Any], str]:
    """Exit code, the JSON verdict and what was printed; the run's own directory is in `directory`/tmp."""
    result, temporary = directory / "verdict.json", directory / "tmp"
    temporary.mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "vdpa_net", "lab", "nested", "--json", str(result), *arguments],
        capture_output=True,
        text=True,
        timeout=RUN_SECONDS,
        check=False,
        env={**os.environ, "TMPDIR": str(temporary)},
    )
    printed = done.stdout + done.stderr
    assert result.exists(), printed
    return done.returncode, json.loads(result.read_text()), printed


def outcomes(verdict: dict[str, Any]) -> dict[str, str]:
    return {line["name"].partition(": ")[2] or line["name"]: line["outcome"] for line in verdict["lines"]}


def measured(verdict: dict[str, Any], name: str) -> str:
    (text,) = (line["measured"] for line in verdict["lines"] if line["name"] == f"round 1: {name}")
    return str(text)


def passes(socket_dir: Path, *arguments: str, without: frozenset[str] = frozenset()) -> dict[str, Any]:
    """Run it: every line holds, none is missing but those `without` which it goes, and nothing is left."""
    code, verdict, printed = nested(socket_dir, *arguments)
    assert code == 0, printed
    found = outcomes(verdict)
    every = {"load", "guest RAM", "ring state vq0", "ring state vq1", "dirty audit", "violations", "log"}
    every |= {"migration", "traffic to the guest", "traffic to the bridge", "announcement", "rounds"}
    assert every - without <= found.keys()
    assert not list((socket_dir / "tmp").iterdir()), "a run that passed leaves files behind"
    return verdict


def test_our_driver_on_the_kernels_vfio_migrates_a_level_2_guest(socket_dir: Path) -> None:
    verdict = passes(socket_dir, "--driver", "vdpa-net")
    assert verdict["context"]["profile"] == "vdpa"
    assert any("vfio:0000:01:00.0" in command for command in verdict["context"]["commands"])


def test_stock_dpdk_migrates_a_level_2_guest_with_the_devices_own_log(socket_dir: Path) -> None:
    verdict = passes(socket_dir, "--driver", "dpdk")
    assert verdict["context"]["profile"] == "ifcvf"
    log = verdict["context"]["rounds"][0]["log"]
    assert log["registers"]["LM_LOGGING_CTRL"] == 1
    assert {entry["base"] for entry in log["started"]} == {1 << 44}
    assert log["pages_marked"] > 0


@pytest.mark.exhaustive
def test_dpdk_that_logs_in_software_keeps_the_device_out_of_it(socket_dir: Path) -> None:
    words = ("--driver", "dpdk", "--sw-live-migration")
    verdict = passes(socket_dir, *words, without=frozenset({"dirty audit"}))
    assert set(verdict["not_checked"]) == {"dirty audit"}
    log = verdict["context"]["rounds"][0]["log"]
    assert (log["registers"]["LM_LOGGING_CTRL"], log["started"], log["pages_marked"]) == (0, [], 0)


@pytest.mark.exhaustive
def test_level_2_guest_behind_an_iommu_of_its_own_moves(socket_dir: Path) -> None:
    verdict = passes(socket_dir, "--driver", "vdpa-net", "--iommu")
    assert any("intel-iommu" in command and "vhost-user" in command for command in commands(verdict))


def commands(verdict: dict[str, Any]) -> list[str]:
    return list(verdict["context"]["commands"])


@pytest.mark.exhaustive
def test_packed_rings_and_a_second_round_back(socket_dir: Path) -> None:
    verdict = passes(socket_dir, "--driver", "vdpa-net", "--packed", "--rounds", "2")
    assert measured(verdict, "ring state vq0").count("wrap") > 0
    assert [item["from"] for item in verdict["context"]["rounds"]] == ["A", "B"]


@pytest.mark.exhaustive
def test_a_second_try_passes_behind_one_that_was_cancelled(socket_dir: Path) -> None:
    verdict = passes(socket_dir, "--cancel-at", "pre-copy")
    assert "the device logs no more" in measured(verdict, "cancel at pre-copy")


@pytest.mark.exhaustive
def test_dropped_marks_fail_the_nested_verdict(socket_dir: Path) -> None:
    code, verdict, printed = nested(socket_dir, "--fault", "drop-dirty-mark=0.5")
    assert code == 1, printed
    failed = {name for name, outcome in outcomes(verdict).items() if outcome == "FAIL"}
    # The guest's own writes may save every page: whether RAM differs, too, is up to it.
    assert failed - {"guest RAM"} == {"dirty audit"}, printed
    assert list((socket_dir / "tmp").iterdir()), "a run that failed keeps its evidence"


@pytest.mark.exhaustive
@pytest.mark.parametrize("part", KILLABLE)
def test_source_goes_on_when_a_part_of_the_destination_dies(socket_dir: Path, part: str) -> None:
    code, verdict, printed = nested(socket_dir, "--kill", part)
    assert code == 0, printed
    found = outcomes(verdict)
    assert {f"{part} killed", f"{part} killed: traffic to the bridge"} <= found.keys()
    assert "the source is running" in measured(verdict, f"{part} killed")
    assert "guest RAM" not in found


@pytest.mark.exhaustive
def test_dpdk_that_leaves_the_log_on_is_told_of(socket_dir: Path) -> None:
    code, verdict, printed = nested(socket_dir, "--driver", "dpdk", "--kill", "l2-dst")
    assert code == 0, printed
    assert "its driver has left LM_LOGGING_CTRL at 1" in measured(verdict, "l2-dst killed")


@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.exhaustive)]
)
def test_an_interrupted_run_leaves_nothing(socket_dir: Path, number: signal.Signals) -> None:
    reader, writer = os.pipe()
    temporary = socket_dir / "tmp"
    temporary.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-m", "vdpa_net", "lab", "nested"],
        stdout=writer,
        stderr=writer,
        env={**os.environ, "TMPDIR": str(temporary)},
    )
    os.close(writer)
    output = LineReader(reader, socket_dir / "output", "nested")
    try:
        output.wait_for("booting level-1 guest L1-B", PHASE_SECONDS)
        children = below(process.pid)
        assert children
        process.send_signal(number)
        assert process.wait(END_SECONDS) != 0
    finally:
        process.kill()
        process.wait()
        output.join()
    wait_gone(children)
    assert not list(temporary.iterdir())


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["--driver", "dpdk", "--iommu"], "ACCESS_PLATFORM"),
        (["--driver", "dpdk", "--packed"], "split rings only"),
        (["--sw-live-migration"], "--driver dpdk"),
        (["--fault", "drop-dirty-marks=1"], "drop-dirty-marks"),
    ],
)
def test_what_can_not_be_run_is_refused_with_the_reason(arguments: list[str], what: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "vdpa_net", "lab", "nested", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert what in done.stderr
