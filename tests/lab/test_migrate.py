# SPDX-License-Identifier: Apache-2.0
"""`vdpa-net migrate` as a user runs it: real QEMU, a stock Linux guest, real taps.

Few machines are booted here, each for several claims at once; the matrices are in `exhaustive` tests.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as Xml

import pytest

from lab.migrate_command import RUN_SECONDS, migrate
from lab.processes import END_SECONDS, below, wait_gone
from vdpa_net.lab.console import LineReader
from vdpa_net.lab.migrate.options import CANCEL_PHASES

PHASE_SECONDS = 180
SETUPS = (("in-process", "image"), ("vfio-user", "image"), ("in-process", "host"))

pytestmark = [pytest.mark.vm, pytest.mark.timeout(RUN_SECONDS + 100)]


def lines_of(verdict: dict[str, Any], number: int) -> set[str]:
    prefix = f"round {number}: "
    return {line["name"].removeprefix(prefix) for line in verdict["lines"] if line["name"].startswith(prefix)}


def assert_sound(code: int, verdict: dict[str, Any], printed: str, rounds: int) -> None:
    """Every line holds, and none that a round must have is missing."""
    assert code == 0, printed
    assert verdict["verdict"] == "PASS"
    assert printed.rstrip().endswith("verdict: PASS") or "evidence:" in printed.splitlines()[-1]
    every = {"load", "ring state vq0", "ring state vq1", "dirty audit", "violations", "announcement"}
    every |= {"migration", "traffic to the guest", "traffic to the bridge", "TCP stream"}
    for number in range(1, rounds + 1):
        names = lines_of(verdict, number)
        assert every <= names
        assert ("guest RAM" in names) == (number % 2 == 1)
    timed = [item for item in verdict["context"]["rounds"] if not item["compares_ram"]]
    assert all(item["gap_ms"] > 0 for item in timed)


def test_three_rounds_back_and_forth_lose_nothing_and_are_reported(tmp_path: Path) -> None:
    report, junit = tmp_path / "report", tmp_path / "junit.xml"
    words = ("--rounds", "3", "--qemu", "image", "--report", str(report), "--junit", str(junit))
    code, verdict, printed = migrate(tmp_path, *words)
    assert_sound(code, verdict, printed, 3)
    page = (report / "index.html").read_text()
    assert page.count("data:image/png;base64,") == 6
    assert all(command in page for command in ("qemu-A-1", "virtio-net-pci", "--vhost-socket"))
    cases = Xml.fromstring(junit.read_bytes()).iter("testcase")
    assert {str(case.get("name")) for case in cases} == {line["name"] for line in verdict["lines"]}


def test_guest_may_reboot_rebind_and_reset_its_nic_in_pre_copy_over_vfio_user(tmp_path: Path) -> None:
    words = ("--disturb", "reboot", "--disturb", "rebind", "--disturb", "reset")
    code, verdict, printed = migrate(
        tmp_path, "--rounds", "1", "--qemu", "image", "--transport", "vfio-user", *words
    )
    assert_sound(code, verdict, printed, 1)


def test_cancelled_migration_leaves_a_source_with_packed_rings_that_migrates_after_all(
    tmp_path: Path,
) -> None:
    words = ("--rounds", "1", "--qemu", "host", "--cancel-at", "switch-over", "--packed")
    code, verdict, printed = migrate(tmp_path, *words)
    assert_sound(code, verdict, printed, 1)
    names = lines_of(verdict, 1)
    assert {"cancel at switch-over", "cancelled: traffic to the guest", "cancelled: TCP stream"} <= names


@pytest.mark.exhaustive
@pytest.mark.timeout(4000)
@pytest.mark.parametrize(("transport", "qemu"), SETUPS)
def test_twenty_rounds_back_and_forth_lose_nothing(tmp_path: Path, transport: str, qemu: str) -> None:
    words = ("--rounds", "20", "--transport", transport, "--qemu", qemu)
    code, verdict, printed = migrate(tmp_path, *words, seconds=3600)
    assert_sound(code, verdict, printed, 20)


@pytest.mark.exhaustive
@pytest.mark.parametrize("phase", CANCEL_PHASES)
@pytest.mark.parametrize(("transport", "qemu"), SETUPS)
def test_cancel_in_every_phase(tmp_path: Path, transport: str, qemu: str, phase: str) -> None:
    words = ("--rounds", "1", "--transport", transport, "--qemu", qemu, "--cancel-at", phase)
    code, verdict, printed = migrate(tmp_path, *words)
    assert_sound(code, verdict, printed, 1)
    assert f"cancel at {phase}" in lines_of(verdict, 1)


@pytest.mark.exhaustive
@pytest.mark.parametrize(("transport", "qemu"), SETUPS)
@pytest.mark.parametrize(
    "words", [("--packed",), ("--queue-pairs", "2"), ("--queue-pairs", "2", "--packed")], ids=" ".join
)
def test_packed_rings_and_several_queue_pairs(
    tmp_path: Path, transport: str, qemu: str, words: tuple[str, ...]
) -> None:
    fixed = ("--rounds", "4", "--transport", transport, "--qemu", qemu)
    code, verdict, printed = migrate(tmp_path, *fixed, *words)
    assert_sound(code, verdict, printed, 4)


@pytest.mark.exhaustive
@pytest.mark.parametrize(("transport", "qemu"), SETUPS)
@pytest.mark.parametrize("words", [(), ("--queue-pairs", "2", "--disturb", "channels")], ids=" ".join)
def test_guest_may_do_all_of_it_in_pre_copy(
    tmp_path: Path, transport: str, qemu: str, words: tuple[str, ...]
) -> None:
    disturbed = ("--disturb", "reboot", "--disturb", "rebind", "--disturb", "reset")
    fixed = ("--rounds", "2", "--transport", transport, "--qemu", qemu)
    code, verdict, printed = migrate(tmp_path, *fixed, *words, *disturbed)
    assert_sound(code, verdict, printed, 2)


@pytest.mark.exhaustive
@pytest.mark.parametrize(("transport", "qemu"), SETUPS)
def test_guest_behind_an_iommu_moves_and_is_audited(tmp_path: Path, transport: str, qemu: str) -> None:
    words = ("--rounds", "4", "--transport", transport, "--qemu", qemu, "--iommu")
    code, verdict, printed = migrate(tmp_path, *words)
    assert_sound(code, verdict, printed, 4)
    assert not verdict["not_checked"]


@pytest.mark.exhaustive
def test_guest_that_can_not_follow_loses_only_what_waits_for_it(tmp_path: Path) -> None:
    code, verdict, printed = migrate(tmp_path, "--rounds", "2", "--qemu", "image", "--rate", "10000")
    assert_sound(code, verdict, printed, 2)


@pytest.mark.exhaustive
@pytest.mark.parametrize("profile", ["ifcvf", "ifcvf-linux"])
def test_other_layouts_of_the_registers(tmp_path: Path, profile: str) -> None:
    code, verdict, printed = migrate(tmp_path, "--rounds", "2", "--qemu", "image", "--profile", profile)
    assert_sound(code, verdict, printed, 2)


@pytest.mark.parametrize(
    "phase",
    [
        "pre-copy",
        *(pytest.param(name, marks=pytest.mark.exhaustive) for name in ("first-pass", "switch-over")),
    ],
)
def test_killed_qemu_leaves_a_device_that_the_next_machine_can_use(phase: str) -> None:
    script = Path(__file__).parent / "kill_source.py"
    done = subprocess.run(
        [sys.executable, str(script), phase], capture_output=True, text=True, timeout=RUN_SECONDS, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.rstrip().endswith("the next machine's traffic is whole")


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

    def end(self, number: int) -> int:
        self.process.send_signal(number)
        code = self.process.wait(END_SECONDS)
        self.output.join()
        return code


@pytest.mark.parametrize(
    ("phase", "number"),
    [
        ("booting the guest", signal.SIGINT),
        ("pre-copy", signal.SIGTERM),
        ("pre-copy", signal.SIGKILL),
        pytest.param("booting the guest", signal.SIGKILL, marks=pytest.mark.exhaustive),
        pytest.param("pre-copy", signal.SIGINT, marks=pytest.mark.exhaustive),
    ],
)
def test_an_interrupted_migration_leaves_no_process(
    tmp_path: Path, phase: str, number: signal.Signals
) -> None:
    running = Running(tmp_path)
    try:
        running.output.wait_for(phase, PHASE_SECONDS)
        children = below(running.process.pid)
        assert children
        code = running.end(number)
    finally:
        running.process.kill()
        running.process.wait()
    assert code != 0
    wait_gone(children)


def test_impossible_options_are_refused_by_name(tmp_path: Path) -> None:
    for arguments, what in (
        (["--fault", "drop-dirty-marks=1"], "drop-dirty-marks"),
        (["--memory", "100000"], "100000"),
        (["--qemu", str(tmp_path / "no-qemu")], "no-qemu"),
        (["--transport", "carrier-pigeon"], "carrier-pigeon"),
        (["--iommu", "--transport", "vfio-user", "--profile", "ifcvf"], "--iommu with --transport vfio-user"),
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
