# SPDX-License-Identifier: Apache-2.0
"""The log test and its fixtures against somebody else's back end: sound, and with bugs that others had."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from integration.other_backend import BUGS
from vdpa_net.errors import OptionError, PeerError
from vdpa_net.migration.verdict import Outcome
from vdpa_net.testing.front_end import Manners
from vdpa_net.testing.log_test import LogTestOptions
from vdpa_net.testing.pytest_plugin import VhostMigration

HERE = Path(__file__).resolve().parent
EXAMPLE = HERE.parents[1] / "examples" / "vhost_backend"
MARKS = {"guest RAM", "dirty audit"}

FOUND_BY = {
    "buffers-not-marked": MARKS,
    "first-page-only": MARKS,
    "used-ring-not-marked": MARKS,
    "non-atomic": {"dirty audit"},
    "offset-ignored": {*MARKS, "violations"},
    "offset-twice": {*MARKS, "violations"},
    "whole-log-pages": MARKS,
    "first-log-forever": {*MARKS, "violations"},
    "behind-the-log": {"violations"},
    "late-dma": {"ring state vq0"},
    "base-behind": {"ring state vq1"},
}
"""Lines that each bug makes fail, whatever else comes of it."""

StartBackend = Callable[..., Path]


@pytest.fixture
def start_backend(tmp_path: Path) -> Iterator[StartBackend]:
    """Starts a back end in a process of its own, with a bug or without."""
    with ExitStack() as stack:

        def start(name: str, bug: str = "") -> Path:
            path = tmp_path / name
            command = [sys.executable, str(HERE / "other_backend.py"), str(path), *([bug] if bug else [])]
            process = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
            stack.callback(process.kill)
            assert process.stdout is not None
            assert process.stdout.readline() == "listening\n"
            return path

        yield start


@pytest.mark.parametrize("manners", [Manners(), Manners(disable_first=False)], ids=["disable", "no-disable"])
def test_a_sound_back_end_passes_and_the_verdict_says_what_it_can_not_check(
    start_backend: StartBackend, manners: Manners
) -> None:
    verdict = VhostMigration()(start_backend("a"), start_backend("b"), rounds=2, manners=manners)
    names = [line.name for line in verdict.lines]
    assert "round 2: dirty audit" in names
    assert not [name for name in names if "kernel" in name or "announcement" in name]
    assert list(verdict.not_checked) == [
        "dirty audit by the kernel",
        "announcement",
        "ring state in LM_RING_STATE, violations of the device",
    ]


@pytest.mark.parametrize("bug", BUGS)
def test_a_bug_is_found(start_backend: StartBackend, bug: str) -> None:
    verdict = VhostMigration().verdict(start_backend("a", bug), start_backend("b"))
    assert verdict.outcome is Outcome.FAIL
    assert FOUND_BY[bug] <= set(verdict.failed()), verdict.lines


def test_a_failed_migration_fails_the_test_with_its_verdict(start_backend: StartBackend) -> None:
    with pytest.raises(pytest.fail.Exception, match=r"(?s)does not pass.*guest RAM.*verdict: FAIL"):
        VhostMigration()(start_backend("a", "buffers-not-marked"), start_backend("b"))


def test_a_back_end_that_knows_split_rings_only_is_refused_packed_ones(start_backend: StartBackend) -> None:
    with pytest.raises(PeerError, match="without packed rings"):
        VhostMigration()(start_backend("a"), start_backend("b"), packed=True)


def test_a_back_end_that_never_comes_is_named(tmp_path: Path) -> None:
    with pytest.raises(PeerError, match=r"nobody\.sock: no back end has come to listen there"):
        VhostMigration()(tmp_path / "nobody.sock", tmp_path / "b", wait_s=0.05)


def test_the_command_tests_back_ends_by_their_sockets(start_backend: StartBackend, tmp_path: Path) -> None:
    sockets = f"{start_backend('a')},{start_backend('b')}"
    command = [sys.executable, "-m", "vdpa_net", "log-test", "--backend-socket", sockets]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "not checked: announcement: somebody else's back end" in " ".join(done.stdout.split())


def test_our_own_device_serves_other_peoples_front_ends(
    vhost_device: Callable[..., object], vhost_migration: VhostMigration
) -> None:
    source, destination = vhost_device("log-bit-order"), vhost_device()
    verdict = vhost_migration.verdict(source.path, destination.path)  # type: ignore[attr-defined]
    assert set(verdict.failed()) == MARKS
    with pytest.raises(OptionError, match="no fault 'melt'"):
        vhost_device("melt")


def test_the_example_for_other_projects_runs(tmp_path: Path, socket_dir: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(EXAMPLE)]
    # Its cleaning up is about directories of its own.
    command += ["--basetemp", str(socket_dir / "inner")]
    done = subprocess.run(
        [*command, str(EXAMPLE)], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed, 1 skipped" in done.stdout


def test_options_for_other_back_ends_keep_the_rest() -> None:
    sockets = (Path("a"), Path("b"))
    assert LogTestOptions(seed=5, rounds=2).against(sockets) == LogTestOptions(
        seed=5, rounds=2, backend_sockets=sockets
    )
