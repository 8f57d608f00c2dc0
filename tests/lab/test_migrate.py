# SPDX-License-Identifier: Apache-2.0
"""`vdpa-net migrate` as a user runs it: real QEMU, a stock Linux guest, real taps."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vdpa_net.lab.console import LineReader

pytestmark = [pytest.mark.vm, pytest.mark.timeout(600)]

RUN_SECONDS = 400
PHASE_SECONDS = 120
END_SECONDS = 60


def migrate(directory: Path, *arguments: str) -> tuple[int, dict[str, Any], str]:
    """Exit code, the JSON verdict and what was printed."""
    result = directory / "verdict.json"
    done = subprocess.run(
        [sys.executable, "-m", "vdpa_net", "migrate", "--json", str(result), *arguments],
        capture_output=True,
        text=True,
        timeout=RUN_SECONDS,
        check=False,
    )
    printed = done.stdout + done.stderr
    assert result.exists(), printed
    return done.returncode, json.loads(result.read_text()), printed


def failed(verdict: dict[str, Any]) -> set[str]:
    return {line["name"].partition(": ")[2] for line in verdict["lines"] if line["outcome"] == "FAIL"}


@pytest.mark.parametrize(
    ("transport", "qemu"), [("in-process", "image"), ("vfio-user", "image"), ("in-process", "host")]
)
def test_ten_rounds_back_and_forth_lose_nothing(tmp_path: Path, transport: str, qemu: str) -> None:
    code, verdict, printed = migrate(tmp_path, "--rounds", "10", "--transport", transport, "--qemu", qemu)
    assert code == 0, printed
    assert verdict["verdict"] == "PASS"
    assert printed.rstrip().endswith("verdict: PASS")
    names = [line["name"] for line in verdict["lines"]]
    for number in range(1, 11):
        compared = f"round {number}: guest RAM" in names
        assert compared == (number % 2 == 1)
        for name in ("load", "ring state vq0", "ring state vq1", "dirty audit", "violations"):
            assert f"round {number}: {name}" in names
    timed = [item for item in verdict["context"]["rounds"] if not item["compares_ram"]]
    assert all(item["gap_ms"] > 0 for item in timed)


@pytest.mark.parametrize("qemu", ["image", "host"])
def test_marks_that_are_dropped_fail_the_dirty_audit(tmp_path: Path, qemu: str) -> None:
    code, verdict, printed = migrate(
        tmp_path, "--rounds", "1", "--qemu", qemu, "--fault", "drop-dirty-mark=0.5"
    )
    assert code == 1, printed
    # The guest's own writes save most pages: whether RAM differs, too, is up to it.
    assert failed(verdict) - {"guest RAM"} == {"dirty audit"}
    assert verdict["context"]["rounds"][0]["faults_fired"]["drop-dirty-mark=0.5"] > 0


def test_a_wrong_ring_state_fails_that_queue(tmp_path: Path) -> None:
    code, verdict, printed = migrate(
        tmp_path, "--rounds", "1", "--qemu", "image", "--fault", "ring-state=vq0:+3"
    )
    assert code == 1, printed
    assert "ring state vq0" in failed(verdict)
    assert "ring state vq1" not in failed(verdict)
    assert "dirty audit" not in failed(verdict)
    (line,) = (line for line in verdict["lines"] if line["name"].endswith("ring state vq0"))
    assert any("LM_RING_STATE after the stop" in detail for detail in line["detail"])


class Running:
    """A migration that has come as far as a line of its output."""

    def __init__(self, directory: Path) -> None:
        reader, writer = os.pipe()
        self.logs = directory / "logs"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "vdpa_net", "migrate", "--logs", str(self.logs)],
            stdout=writer,
            stderr=writer,
            stdin=subprocess.DEVNULL,
        )
        os.close(writer)
        self.output = LineReader(reader, directory / "output", "migrate")

    def children(self) -> set[int]:
        """All processes below ours."""
        found: set[int] = set()
        pending = [self.process.pid]
        while pending:
            for task in Path(f"/proc/{pending.pop()}/task").glob("*/children"):
                with contextlib.suppress(OSError):
                    numbers = {int(word) for word in task.read_text().split()}
                    pending.extend(numbers)
                    found |= numbers
        return found

    def end(self, number: int) -> int:
        self.process.send_signal(number)
        code = self.process.wait(END_SECONDS)
        self.output.join()
        return code


def wait_gone(processes: set[int]) -> None:
    """Return when none of the processes runs any more."""
    for pid in processes:
        with contextlib.suppress(ProcessLookupError):
            fd = os.pidfd_open(pid)
            try:
                assert _is_readable(fd), f"process {pid} outlives the lab"
            finally:
                os.close(fd)


def _is_readable(fd: int) -> bool:
    return bool(select.select([fd], [], [], END_SECONDS)[0])


@pytest.mark.parametrize("phase", ["booting the guest", "pre-copy"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_migration_leaves_no_process(
    tmp_path: Path, phase: str, number: signal.Signals
) -> None:
    running = Running(tmp_path)
    try:
        running.output.wait_for(phase, PHASE_SECONDS)
        children = running.children()
        assert children
        code = running.end(number)
    finally:
        running.process.kill()
    assert code != 0
    wait_gone(children)


def test_impossible_options_are_refused_by_name(tmp_path: Path) -> None:
    for arguments, what in (
        (["--fault", "drop-dirty-marks=1"], "drop-dirty-marks"),
        (["--memory", "100000"], "100000"),
        (["--qemu", str(tmp_path / "no-qemu")], "no-qemu"),
        (["--transport", "carrier-pigeon"], "carrier-pigeon"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "vdpa_net", "migrate", *arguments],
            capture_output=True,
            text=True,
            timeout=PHASE_SECONDS,
            check=False,
        )
        assert done.returncode == 2, done.stderr
        assert what in done.stderr
        assert "Traceback" not in done.stderr
