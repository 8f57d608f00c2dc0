# SPDX-License-Identifier: Apache-2.0
"""`vdpa-net lab boot` as a user runs it: a stock guest on a served device, with and without a vIOMMU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.vm, pytest.mark.timeout(300)]

RUN_SECONDS = 200
PINGS = 20


@pytest.mark.parametrize("arguments", [[], ["--iommu"]], ids=["plain", "intel-iommu"])
def test_a_stock_guest_pings_and_streams_both_ways(tmp_path: Path, arguments: list[str]) -> None:
    result = tmp_path / "boot.json"
    done = subprocess.run(
        [sys.executable, "-m", "vdpa_net", "lab", "boot", "--json", str(result), *arguments],
        capture_output=True,
        text=True,
        timeout=RUN_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    seen = json.loads(result.read_text())
    assert seen["driver"] == "virtio_net"
    assert seen["iommu"] == bool(arguments)
    assert (seen["ping_sent"], seen["ping_received"]) == (PINGS, PINGS)
    assert seen["to_guest_bits_per_s"] > 0
    assert seen["from_guest_bits_per_s"] > 0
    # Bit 33, ACCESS_PLATFORM, and bit 32, VERSION_1.
    assert seen["features"] >> 32 & 3 == 3
