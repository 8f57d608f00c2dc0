# SPDX-License-Identifier: Apache-2.0
"""What `vdpa-net serve` and `inspect` show of a device: trace, metrics, violations, state."""

from __future__ import annotations

import contextlib
import io
import json
import re
import socket
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console
from test_cli import DEVICE, NETDEV, Command, run

from vdpa_net.backend.loopback import Loopback
from vdpa_net.device.net_device import NetDevice
from vdpa_net.errors import MissingTool
from vdpa_net.inspection import render
from vdpa_net.migration.violations import Violation
from vdpa_net.observe import TOLD_VIOLATIONS, ViolationReport
from vdpa_net.transport.vfio_user.client import VfioUserClient

LM = 0x4000


@pytest.fixture
def served(socket_dir: Path) -> Iterator[Command]:
    command = Command(
        *("serve", "--socket", str(socket_dir / "vfio"), "--control", str(socket_dir / "control")),
        *("--netdev", NETDEV, "--device", f"{DEVICE},ats=on", "--metrics", "0"),
        *("--trace", str(socket_dir / "trace")),
    )
    command.wait_listening()
    yield command
    command.end()


def test_the_trace_goes_to_its_file(served: Command, socket_dir: Path) -> None:
    with VfioUserClient(socket_dir / "vfio") as client:
        client.region_write(4, 0x14, b"\x03")
        client.region_read(7, 0, 2)
    lines = [" ".join(line.split()) for line in (socket_dir / "trace").read_text().splitlines()]
    assert re.fullmatch(r"\+\d+\.\d{6} W common_cfg.device_status 0x03 ACKNOWLEDGE\|DRIVER", lines[0])
    assert re.fullmatch(r"\+\d+\.\d{6} R config.pci.vendor_id 0x1af4", lines[1])


def test_a_trace_without_a_file_goes_to_standard_error(socket_dir: Path) -> None:
    command = Command(
        "serve", "--socket", str(socket_dir / "vfio"), "--netdev", NETDEV, "--device", DEVICE, "--trace"
    )
    command.wait_listening()
    with VfioUserClient(socket_dir / "vfio") as client:
        client.region_read(7, 0, 2)
    assert command.process.stdout is not None
    # The helper puts standard error into the same pipe.
    line = command.process.stdout.readline().decode()
    assert "R config.pci.vendor_id" in line
    assert command.end() == 0


def test_a_trace_that_can_not_be_written_is_refused(socket_dir: Path) -> None:
    done = run(
        *("serve", "--socket", str(socket_dir / "vfio"), "--netdev", NETDEV),
        *("--device", DEVICE, "--trace", "/nowhere/trace"),
    )
    assert done.returncode == 2
    assert "/nowhere/trace" in done.stderr


def scrape(output: str) -> dict[str, float]:
    url = re.search(r"metrics: (http://127\.0\.0\.1:\d+/metrics)", output)
    assert url is not None
    text = urllib.request.urlopen(url[1], timeout=30).read().decode()
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def test_metrics_follow_the_device(served: Command, socket_dir: Path) -> None:
    output = served.output.decode()
    before = scrape(output)
    assert before['vdpa_net_info{mac="56:4a:b7:4f:4d:a9",profile="vdpa"}'] == 1
    assert before["vdpa_net_status"] == 0
    assert before['vdpa_net_queue_packets_total{queue="1"}'] == 0
    assert before['vdpa_net_queue_drops_total{queue="0",reason="no_buffer"}'] == 0
    with VfioUserClient(socket_dir / "vfio") as client:
        client.region_write(4, 0x14, b"\x03")
        client.dma_map(0x1000, 0x1000, None)
        client.region_write(4, LM, b"\x01\0\0\0")
        after = scrape(output)
    assert (after["vdpa_net_status"], after["vdpa_net_dma_maps"]) == (3, 1)
    assert after['vdpa_net_violations_total{kind="log_start_refused"}'] == 1


def test_metrics_listen_on_the_loopback_address_only(served: Command) -> None:
    port = int(re.search(r"metrics: http://[^:]+:(\d+)", served.output.decode())[1])  # type: ignore[index]
    listening = [line.split()[1] for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    assert [place for place in listening if place.endswith(f":{port:04X}")] == [f"0100007F:{port:04X}"]


def test_a_port_that_is_taken_is_an_error(socket_dir: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = run(
            *("serve", "--socket", str(socket_dir / "vfio"), "--netdev", NETDEV),
            *("--device", DEVICE, "--metrics", str(taken.getsockname()[1])),
        )
        port = taken.getsockname()[1]
    assert done.returncode == 2
    assert f"127.0.0.1:{port}: Address already in use; port 0 takes a free one" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_metrics_without_their_package_say_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from vdpa_net.metrics import MetricsServer  # noqa: PLC0415

    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(MissingTool, match=r"pip install 'vdpa-net\[metrics\]'"):
        MetricsServer(object(), 0)  # type: ignore[arg-type]


def test_violations_are_told_as_they_happen(served: Command, socket_dir: Path) -> None:
    with VfioUserClient(socket_dir / "vfio") as client:
        client.region_write(4, LM, b"\x07\0\0\0")
    assert served.process.stdout is not None
    assert served.process.stdout.readline().startswith(b"violation: lm: bad_logging_ctrl (value 0x7")


def test_very_many_violations_are_not_told_one_by_one() -> None:
    lines: list[str] = []
    report = ViolationReport(lines.append)
    for value in range(3 * TOLD_VIOLATIONS):
        report(Violation("lm", "bad", value, "clause"))
    assert len(lines) == TOLD_VIOLATIONS + 1
    assert "vdpa-net inspect" in lines[-1]


def test_inspect_shows_the_live_device(served: Command, socket_dir: Path) -> None:
    with VfioUserClient(socket_dir / "vfio") as client:
        client.region_write(4, 0x14, b"\x03")
        client.region_write(4, LM, b"\x07\0\0\0")
        done = run("inspect", "--socket", str(socket_dir / "control"), COLUMNS="100")
    assert (done.returncode, done.stderr) == (0, "")
    for words in (
        "56:4a:b7:4f:4d:a9, MTU 1500",
        "0x03 ACKNOWLEDGE, DRIVER",
        "MRG_RXBUF",
        "an enable bit and nothing more",
        "0 receive",
        "2 control",
        "LM_RING_STATE[1]",
        "last_avail_idx=0 used_idx=0",
        "violations: 1",
        "bad_logging_ctrl, value 0x7",
    ):
        assert words in done.stdout


def test_inspect_as_json_is_the_snapshot(served: Command, socket_dir: Path) -> None:
    done = run("inspect", "--socket", str(socket_dir / "control"), "--json")
    state = json.loads(done.stdout)
    assert state["mac"] == "56:4a:b7:4f:4d:a9"
    assert state["ats"] == {"enabled": False}
    assert [queue["size"] for queue in state["queues"]] == [256, 256, 64]


def test_inspect_reads_the_registers_of_an_idle_device(served: Command, socket_dir: Path) -> None:
    by_control = json.loads(run("inspect", "--socket", str(socket_dir / "control"), "--json").stdout)
    device = f"vfio-user:{socket_dir / 'vfio'}"
    by_registers = json.loads(run("inspect", "--device", device, "--json").stdout)
    for queue in by_registers["queues"]:
        queue["counters"] = by_control["queues"][queue["index"]]["counters"]
    assert by_registers == {name: by_control[name] for name in by_registers}
    shown = run("inspect", "--device", device, COLUMNS="100")
    assert "1 transmit" in shown.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "one of the arguments --socket --device is required"),
        (("--socket", "/nowhere/control"), "/nowhere/control"),
        (("--device", "vfio-user:/nowhere/vfio"), "/nowhere/vfio"),
        (("--device", "usb:1"), "expected vfio-user:PATH"),
        (("--socket", "a", "--device", "b"), "not allowed with"),
    ],
)
def test_inspect_says_what_is_wrong_in_one_line(arguments: tuple[str, ...], words: str) -> None:
    done = run("inspect", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr


def test_inspect_of_a_driver_process_says_what_it_is(served: Command, socket_dir: Path) -> None:
    driver = Command(
        *("driver", "--device", f"vfio-user:{socket_dir / 'vfio'}"),
        *("--vhost-socket", str(socket_dir / "vhost"), "--control", str(socket_dir / "driver")),
    )
    driver.wait_listening()
    done = run("inspect", "--socket", str(socket_dir / "driver"))
    assert driver.end() == 0
    assert done.returncode == 2
    assert "a process without a device of its own" in done.stderr


def test_inspect_shows_indices_and_wrap_counters_of_packed_rings() -> None:
    with contextlib.closing(Loopback()) as backend, NetDevice(backend, mac="52:54:00:00:00:01") as device:
        state = json.loads(json.dumps(device.snapshot()))
    state["features"] = ["RING_PACKED"]
    state["queues"][0] |= {"last_avail_idx": 0x8007, "used_idx": 5}
    state["lm"]["LM_RING_STATE[0]"] = 0x00058007
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(*render(state))
    shown = " ".join(console.export_text().split())
    assert "7 wrap 1 5 wrap 0" in shown
    assert "last_avail_idx=7 last_avail_wrap_counter=1 used_idx=5 used_wrap_counter=0" in shown
