# SPDX-License-Identifier: Apache-2.0
"""Short real runs of the bench: each kind of contestant does its work and is measured."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import require
from vdpa_net.bench import native
from vdpa_net.errors import MissingTool

pytestmark = [pytest.mark.vm, pytest.mark.timeout(180)]

RUN_SECONDS = 150


def bench(tmp_path: Path, *words: str) -> dict[str, dict[str, float]]:
    """Medians of the cases that were run, by key and contestant."""
    result = tmp_path / "result.json"
    short = ("--quick", "--rounds", "1", "--sample-ms", "20", "--json", str(result))
    done = subprocess.run(
        [sys.executable, "-m", "vdpa_net", "bench", *short, *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=RUN_SECONDS,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    cases = json.loads(result.read_text())["cases"]
    return {
        case["key"]: {name: series["median"] for name, series in case["series"].items()} for case in cases
    }


@pytest.fixture(autouse=True)
def native_ends() -> None:
    try:
        native.find()
    except MissingTool as error:
        require(False, str(error))


def test_device_bare_loops_and_dpdk_move_frames_both_ways_at_once(tmp_path: Path) -> None:
    measured = bench(tmp_path, "--group", "tap", "--only", "tap-both-64")
    assert set(measured) == {"tap-both-64"}
    contestants = measured["tap-both-64"]
    assert set(contestants) == {"vdpa-net", "bare tap, read and write", "DPDK net_vhost + net_tap"}
    assert min(contestants.values()) > 0


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("group", "part", "count"),
    [
        ("tap", "gso", 4),
        ("tap", "variant-rx", 3),
        ("tap", "limit", 4),
        ("tap", "self", 5),
        ("user", "64-packed", 1),
        ("ring", "loop-64", 1),
        ("control", "unmap-", 2),
    ],
)
def test_every_kind_of_contestant_is_measured(tmp_path: Path, group: str, part: str, count: int) -> None:
    measured = bench(tmp_path, "--group", group, "--only", part)
    assert len(measured) == count
    assert all(value > 0 for contestants in measured.values() for value in contestants.values())
