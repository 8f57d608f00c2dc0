# SPDX-License-Identifier: Apache-2.0
"""`vdpa-net lab boot` as a user runs it: other people's drivers on a served device."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.vm, pytest.mark.timeout(400)]

RUN_SECONDS = 360
PINGS = 20


def boot(tmp_path: Path, *arguments: str) -> dict[str, Any]:
    """The result of a boot that passed."""
    result = tmp_path / "boot.json"
    words = [sys.executable, "-m", "vdpa_net", "lab", "boot", "--json", str(result), "--logs", str(tmp_path)]
    done = subprocess.run(
        [*words, *arguments], capture_output=True, text=True, timeout=RUN_SECONDS, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    seen: dict[str, Any] = json.loads(result.read_text())
    assert seen["violations"] == []
    return seen


def check_linux(seen: dict[str, Any]) -> None:
    assert seen["driver"] == "virtio_net"
    assert (seen["ping_sent"], seen["ping_received"]) == (PINGS, PINGS)
    assert seen["to_guest_bits_per_s"] > 0
    assert seen["from_guest_bits_per_s"] > 0
    assert {"VERSION_1", "ACCESS_PLATFORM"} <= set(seen["feature_names"])


ALL_AT_ONCE = ["--iommu", "--queues", "2", "--packed", "--profile", "ifcvf", "--device", "rx_queue_size=512"]


@pytest.mark.parametrize(
    "arguments", [[], ALL_AT_ONCE, ["--machine", "pc"]], ids=["plain", "all at once", "pc"]
)
def test_a_stock_guest_pings_and_streams_both_ways(tmp_path: Path, arguments: list[str]) -> None:
    seen = boot(tmp_path, *arguments)
    check_linux(seen)
    assert seen["iommu"] == seen["packed"] == ("--iommu" in arguments)
    assert seen["queues"] == (2 if "--queues" in arguments else 1)


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "arguments",
    [["--iommu"], ["--queues", "2"], ["--packed"], ["--profile", "ifcvf"], ["--profile", "ifcvf-linux"]],
    ids=" ".join,
)
def test_a_stock_guest_takes_each_option_alone(tmp_path: Path, arguments: list[str]) -> None:
    check_linux(boot(tmp_path, *arguments))


def test_a_guest_that_rebinds_resizes_and_reboots_under_traffic_keeps_its_network(tmp_path: Path) -> None:
    seen = boot(tmp_path, "--guest", "awkward", "--queues", "2")
    steps = seen["steps"]
    assert {"reset in mid-traffic", "reboot in mid-traffic"} <= set(steps)
    for when in ("first start", "after a reset", "after a reboot"):
        for step in ("rebind", "ring sizes", "channels"):
            assert steps[f"{when}: {step}"] == "5 of 5 pings answered"


@pytest.mark.parametrize("rings", [[], ["--packed"]], ids=["split", "packed"])
def test_dpdk_in_the_guest_returns_every_frame_with_its_content(tmp_path: Path, rings: list[str]) -> None:
    seen = boot(tmp_path, "--guest", "testpmd", "--memory", "512", *rings)
    assert seen["driver"] == "vfio-pci"
    assert seen["packed"] == bool(rings)
    assert seen["steps"] == {"frames that came back as they went": "400 of 400"}


def test_uefi_asks_for_an_address_and_takes_it(tmp_path: Path) -> None:
    assert set(boot(tmp_path, "--guest", "uefi")["steps"]) == {"DHCPDISCOVER", "DHCPREQUEST"}


@pytest.mark.exhaustive
def test_shell_gives_the_guests_console_until_it_is_left(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "vdpa_net", "lab", "boot", "--shell", "--logs", str(tmp_path)]
    ours, theirs = pty.openpty()
    before = termios.tcgetattr(theirs)
    with subprocess.Popen(words, stdin=theirs, stdout=theirs, stderr=subprocess.PIPE) as process:
        read_until(ours, b"~ # ")
        os.write(ours, b"echo $((40 + 2)) is the answer\n")
        read_until(ours, b"42 is the answer")
        os.write(ours, b"\x1d")
        assert process.wait(60) == 0
    assert termios.tcgetattr(theirs) == before, "the terminal is as it was"
    for fd in (ours, theirs):
        os.close(fd)


def read_until(fd: int, wanted: bytes) -> None:
    """Read a terminal; the test's time limit is the deadline."""
    seen = b""
    while wanted not in seen:
        seen += os.read(fd, 4096)
