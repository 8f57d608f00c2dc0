# SPDX-License-Identifier: Apache-2.0
"""The library as its documentation and its examples use it."""

from __future__ import annotations

import ast
import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import vdpa_net
from vdpa_net.driver.vfio_user import VfioUserHandle
from vdpa_net.testing.guest_driver import GuestDriver
from vdpa_net.testing.guest_memory import GuestMemory
from vdpa_net.transport.vfio_user.client import VfioUserClient

ROOT = Path(__file__).resolve().parents[2]
DEADLINE_SECONDS = 60
STATUS = 0x14

Start = Callable[[str], "subprocess.Popen[str]"]


@pytest.fixture
def start(socket_dir: Path) -> Iterator[Start]:
    """Starts an example and waits until it listens."""
    started: list[subprocess.Popen[str]] = []

    def begin(name: str) -> subprocess.Popen[str]:
        command = [sys.executable, str(ROOT / "examples" / name), str(socket_dir / "vfio")]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        started.append(process)
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("listening on"):
                return process
        raise AssertionError(f"{name} ended with exit code {process.wait(DEADLINE_SECONDS)}")

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def finish(process: subprocess.Popen[str]) -> str:
    """What it printed since it listened; it must end cleanly."""
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=DEADLINE_SECONDS)
    assert process.returncode == 0, output
    return output


def test_minimal_example_is_a_device_in_at_most_60_lines(start: Start, socket_dir: Path) -> None:
    assert len((ROOT / "examples/minimal.py").read_text().splitlines()) <= 60
    process = start("minimal.py")
    with GuestMemory([(0, 4 << 20)]) as memory, VfioUserHandle(socket_dir / "vfio") as handle:
        guest = GuestDriver(handle, memory)
        guest.start()
        guest.close()
    output = finish(process)
    assert "the driver sets its status to 0xf" in output
    assert "driver_ok" in output
    assert "client_detached" in output
    assert "\n0 violations\n" in output


def test_template_example_sees_and_changes_what_a_driver_does(start: Start, socket_dir: Path) -> None:
    process = start("template.py")
    with VfioUserClient(socket_dir / "vfio") as client:
        assert client.region_read(4, 0x18, 2) == b"\x40\0", "the hook makes queues small"
        client.region_write(4, 0x4000, b"\x07\0\0\0")
        client.region_write(4, STATUS, b"\x03")
    output = finish(process)
    assert "W common_cfg.device_status" in output
    assert "violation lm: bad_logging_ctrl" in output
    assert "event client_detached" in output
    snapshot = json.JSONDecoder().raw_decode(output[output.index("\n{\n") + 1 :])[0]
    assert snapshot["faults"] == {"drop-dirty-mark=0.01": 0}


def test_template_names_every_option_of_a_device() -> None:
    text = (ROOT / "examples/template.py").read_text()
    calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
    made = next(
        call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "TemplateDevice"
    )
    options = set(vdpa_net.NetDevice.__init__.__annotations__) - {"backend", "engine", "return"}
    assert {keyword.arg for keyword in made.keywords} == options


def test_code_of_the_documentation_runs(socket_dir: Path) -> None:
    text = (ROOT / "docs/library.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)
    assert len(blocks) >= 8
    names: dict[str, object] = {"socket_path": socket_dir / "vfio"}
    for block in blocks:
        exec(compile(block, "docs/library.md", "exec"), names)


def test_every_public_name_can_be_imported_and_is_documented() -> None:
    for name in vdpa_net.__all__:
        thing = getattr(vdpa_net, name)
        assert thing is getattr(__import__("vdpa_net", fromlist=[name]), name)
    assert set(vdpa_net.__all__) <= set(dir(vdpa_net))
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = vdpa_net.Nothing  # type: ignore[attr-defined]
