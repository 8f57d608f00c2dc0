# SPDX-License-Identifier: Apache-2.0
"""`vdpa-net migrate` as the tests run it, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

RUN_SECONDS = 900


def migrate(directory: Path, *arguments: str, seconds: int = RUN_SECONDS) -> tuple[int, dict[str, Any], str]:
    """Exit code, the JSON verdict and what was printed."""
    result = directory / "verdict.json"
    done = subprocess.run(
        [sys.executable, "-m", "vdpa_net", "migrate", "--json", str(result), *arguments],
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    printed = done.stdout + done.stderr
    assert result.exists(), printed
    return done.returncode, json.loads(result.read_text()), printed


def failed(verdict: dict[str, Any]) -> set[str]:
    return {line["name"].partition(": ")[2] for line in verdict["lines"] if line["outcome"] == "FAIL"}
