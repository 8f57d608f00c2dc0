# SPDX-License-Identifier: Apache-2.0
"""`vdpa-net lab nested` as a user runs it: level-1 guests, a level-2 guest, its migration, the verdict."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vdpa_net.lab.console import LineReader

pytestmark = [pytest.mark.vm, pytest.mark.timeout(1500)]

RUN_SECONDS = 1200
PHASE_SECONDS = 600
END_SECONDS = 120


def nested(directory: Path, *arguments: str) -> tuple[int, dict[str, Any], str]:
    """Exit code, the JSON verdict and what was printed."""
    result = directory / "verdict.json"
    words = ["--json", str(result), "--logs", str(directory / "logs"), *arguments]
    done = subprocess.run(
        [sys.executable, "-m", "vdpa_net", "lab", "nested", *words],
        capture_output=True,
        text=True,
        timeout=RUN_SECONDS,
        check=False,
    )
    printed = done.stdout + done.stderr
    assert result.exists(), printed
    return done.returncode, json.loads(result.read_text()), printed


def outcomes(verdict: dict[str, Any]) -> dict[str, str]:
    return {line["name"].partition(": ")[2] or line["name"]: line["outcome"] for line in verdict["lines"]}


def passes(tmp_path: Path, *arguments: str) -> dict[str, Any]:
    code, verdict, printed = nested(tmp_path, *arguments)
    assert code == 0, printed
    found = outcomes(verdict)
    for name in ("load", "guest RAM", "ring state vq0", "ring state vq1", "dirty audit", "violations"):
        assert found[name] == "PASS", printed
    return verdict


@pytest.mark.exhaustive
def test_our_driver_on_the_kernels_vfio_migrates_a_level_2_guest(tmp_path: Path) -> None:
    verdict = passes(tmp_path, "--driver", "vdpa-net")
    assert verdict["context"]["profile"] == "vdpa"
    assert any("vfio:0000:01:00.0" in command for command in verdict["context"]["commands"])


@pytest.mark.exhaustive
def test_dropped_marks_fail_the_nested_verdict(tmp_path: Path) -> None:
    code, verdict, printed = nested(tmp_path, "--fault", "drop-dirty-mark=0.5")
    assert code == 1, printed
    assert outcomes(verdict)["dirty audit"] == "FAIL"


@pytest.mark.exhaustive
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_no_process(tmp_path: Path, number: signal.Signals) -> None:
    reader, writer = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "vdpa_net", "lab", "nested"], stdout=writer, stderr=writer
    )
    os.close(writer)
    output = LineReader(reader, tmp_path / "output", "nested")
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
    alive = [pid for pid in children if Path(f"/proc/{pid}").exists()]
    assert not alive


def below(root: int) -> set[int]:
    """All processes below one."""
    found: set[int] = set()
    pending = [root]
    while pending:
        for task in Path(f"/proc/{pending.pop()}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                numbers = {int(word) for word in task.read_text().split()}
                pending.extend(numbers)
                found |= numbers
    return found


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
