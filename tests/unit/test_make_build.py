# SPDX-License-Identifier: Apache-2.0
"""`make build` twice at the same time in one working copy, with steps that only say when they ran."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from conftest import require_tool

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 60

STEP = """#!/bin/bash
echo "begin $1" >> steps
mkdir busy || echo "at the same time: $1" >> steps
sleep 0.1
rmdir busy
"""


def working_copy(directory: Path) -> Path:
    """What the target looks at: sources, stamps, and the scripts, which do nothing here."""
    shutil.copy(ROOT / "Makefile", directory)
    for name in ("pyproject.toml", "Cargo.toml", "scripts/constraints.txt", ".venv/bin/python"):
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).touch()
    for name in ("rust/dataplane", "rust/python", "rust/guest-agent", "src", "target/guest/release"):
        (directory / name).mkdir(parents=True)
    (directory / "target/guest/release/vdpa-net-guest-agent").touch()
    for name, text in (("step", STEP), ("setup", "#!/bin/sh\n")):
        script = directory / "scripts" / name
        script.write_text(text)
        script.chmod(0o755)
    return directory


def test_two_builds_at_once_take_turns_and_build_once(tmp_path: Path) -> None:
    for tool in ("make", "flock"):
        require_tool(tool)
    directory = working_copy(tmp_path)
    builds = [
        subprocess.Popen(["make", "build"], cwd=directory, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for _ in range(2)
    ]
    outputs = [build.communicate(timeout=TIMEOUT_S)[0].decode() for build in builds]
    assert [build.returncode for build in builds] == [0, 0], outputs
    steps = (directory / "steps").read_text().splitlines()
    assert [step for step in steps if not step.startswith("begin ")] == []
    assert len(steps) == len(set(steps)) == 4
