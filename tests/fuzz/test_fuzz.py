# SPDX-License-Identifier: Apache-2.0
"""Fuzzing for a while: nothing breaks, the coverage keeps its floor, and a planted bug is found.

A plant is a change of the source, made in a copy: what is fuzzed is the real code with one check taken out.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from conftest import require, require_tool

ROOT = Path(__file__).resolve().parents[2]
SHORT_SECONDS, LONG_SECONDS, PLANT_SECONDS = 20, 600, 240
BUILD_SECONDS = 600


@dataclass(frozen=True)
class Target:
    """`floor` is how much coverage (edges, as libFuzzer counts them) the corpus has to bring.

    The plant is `old` in `file`, replaced by `new`; the run then has to end with `found` in its output.
    """

    floor: int
    file: str
    old: str
    new: str
    found: str


TARGETS = {
    "rings": Target(
        floor=700,
        file="rust/dataplane/src/memory/access.rs",
        old="clip(ranges, limit).for_each(|range| self.mark(range));",
        new="clip(ranges, limit).take(1).for_each(|range| self.mark(range));",
        found="was written and not marked",
    ),
    "registers": Target(
        floor=600,
        file="src/vdpa_net/device/common_cfg.py",
        old="        self.config_msix_vector = MSI_NO_VECTOR\n        self._values",
        new="        self._values",
        found="a reset left config_msix_vector",
    ),
    "vfio_user": Target(
        floor=640,
        file="src/vdpa_net/transport/vfio_user/session.py",
        old="        if not head.expects_reply:\n            return None\n        flags =",
        new="        flags =",
        found="a reply, unless none is wanted",
    ),
    "vhost_user": Target(
        floor=900,
        file="src/vdpa_net/driver/memory_table.py",
        old="        for item in self._mapped:\n            # A device that is gone has no maps.",
        new="        for item in self._mapped[1:]:\n            # A device that is gone has no maps.",
        found="a front end that left has memory here",
    ),
}


def test_every_target_is_run() -> None:
    assert set(TARGETS) == {path.name for path in (ROOT / "fuzz/corpus").iterdir()}


def fuzz(target: str, root: Path, output: Path, seconds: int) -> subprocess.CompletedProcess[str]:
    """A run of this long on the corpus, in this copy of the repository."""
    if target == "rings":
        require_tool("c++")
    else:
        has_atheris = importlib.util.find_spec("atheris") is not None
        where = platform.machine() == "x86_64" and sys.version_info < (3, 14)
        require(has_atheris or not where, "the Python package atheris")
        if not has_atheris:
            pytest.skip(f"there is no atheris for Python {platform.python_version()} on {platform.machine()}")
    environment = dict(
        os.environ, VDPA_NET_FUZZ_OUTPUT=str(output), CARGO_TARGET_DIR=str(ROOT / "target/fuzz")
    )
    return subprocess.run(
        [root / "fuzz/run", target, f"-max_total_time={seconds}", "-timeout=60"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
        env=environment,
        timeout=seconds + BUILD_SECONDS,
    )


def coverage(output: str) -> int:
    """The last that libFuzzer told."""
    return int(re.findall(r"cov: (\d+)", output)[-1])


@pytest.mark.timeout(SHORT_SECONDS + BUILD_SECONDS + 60)
@pytest.mark.parametrize("target", TARGETS)
def test_twenty_seconds_break_nothing_and_keep_the_coverage(target: str, tmp_path: Path) -> None:
    done = fuzz(target, ROOT, tmp_path, SHORT_SECONDS)
    assert done.returncode == 0, done.stdout[-4000:]
    assert coverage(done.stdout) >= TARGETS[target].floor


@pytest.mark.exhaustive
@pytest.mark.timeout(LONG_SECONDS + BUILD_SECONDS + 60)
@pytest.mark.parametrize("target", TARGETS)
def test_ten_minutes_break_nothing(target: str, tmp_path: Path) -> None:
    done = fuzz(target, ROOT, tmp_path, LONG_SECONDS)
    assert done.returncode == 0, done.stdout[-4000:]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of what is fuzzed, to change."""
    root = tmp_path / "copy"
    for name in ("fuzz", "rust", "src/vdpa_net"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__", "agent-*"))
    shutil.copy(ROOT / "Cargo.toml", root)
    (root / ".venv").symlink_to(ROOT / ".venv")
    return root


@pytest.mark.timeout(PLANT_SECONDS + BUILD_SECONDS + 60)
@pytest.mark.parametrize("target", TARGETS)
def test_a_planted_bug_is_found(target: str, copy: Path, tmp_path: Path) -> None:
    plant = TARGETS[target]
    source = copy / plant.file
    text = source.read_text()
    assert text.count(plant.old) == 1, f"{plant.file} has changed: plant another bug"
    source.write_text(text.replace(plant.old, plant.new))
    done = fuzz(target, copy, tmp_path / "output", PLANT_SECONDS)
    assert done.returncode != 0, f"not found in {PLANT_SECONDS} s: {done.stdout[-1000:]}"
    assert plant.found in done.stdout, done.stdout[-4000:]
    assert list((tmp_path / "output").glob(f"{target}-crash-*")), "the input that shows it is kept"
