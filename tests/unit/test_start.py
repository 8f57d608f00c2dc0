# SPDX-License-Identifier: Apache-2.0
"""What a device loads before it listens. A time can't be asserted; what the time is made of can."""

import subprocess
import sys
from pathlib import Path

import pytest

DEADLINE_SECONDS = 30
NETDEV = "loopback,id=n"
DEVICE = "virtio-net-pci,netdev=n,vdpa=on"

MODULES_MAX = 180
"""Of Python's own and ours; 160 when this was written. A few more are no harm, a library is."""

NOT_AT_THE_START = {
    "asyncio",
    "ctypes",
    "dataclasses",
    "difflib",
    "hypothesis",
    "importlib.metadata",
    "inspect",
    "logging",
    "matplotlib",
    "platform",
    "prometheus_client",
    "pydantic",
    "pyroute2",
    "qemu",
    "random",
    "rich",
    "shutil",
    "subprocess",
    "textwrap",
    "traceback",
    "typer",
    "vdpa_net.bench",
    "vdpa_net.device.trace",
    "vdpa_net.driver",
    "vdpa_net.lab",
    "vdpa_net.metrics",
    "vdpa_net.testing",
}
"""Each of them takes a good part of the start, and none is needed to listen."""


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Full names of the modules that `vdpa-net serve` has imported when it says that it listens."""
    directory = tmp_path_factory.mktemp("start")
    words = ["serve", "--socket", str(directory / "s"), "--netdev", NETDEV, "--device", DEVICE]
    report = directory / "imports"
    with report.open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-X", "importtime", "-m", "vdpa_net", *words],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
    try:
        assert process.stdout is not None
        printed: list[str] = []
        while not printed or not printed[-1].startswith("listening on"):
            line = process.stdout.readline()
            assert line, f"it ended: {printed}"
            printed.append(line)
        return {line.rpartition("|")[2].strip() for line in report.read_text().splitlines()}
    finally:
        process.terminate()
        process.communicate(timeout=DEADLINE_SECONDS)


def test_a_device_listens_before_it_loads_what_only_some_need(loaded: set[str]) -> None:
    assert "vdpa_net.device.net_device" in loaded
    heavy = {name for name in loaded for banned in NOT_AT_THE_START if f"{name}.".startswith(f"{banned}.")}
    assert not heavy


def test_a_device_loads_few_modules_before_it_listens(loaded: set[str]) -> None:
    assert len(loaded) <= MODULES_MAX, sorted(loaded)


def test_the_package_is_compiled_when_it_is_built() -> None:
    """Or each start would compile it, where Python is told not to write bytecode."""
    package = Path(sys.modules["vdpa_net"].__file__ or "").parent
    assert list((package / "device" / "__pycache__").glob("net_device.*.pyc"))
