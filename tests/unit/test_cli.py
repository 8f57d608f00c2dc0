# SPDX-License-Identifier: Apache-2.0
"""The command line as a user meets it: processes, exit codes, one line for an error."""

import contextlib
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vdpa_net import __version__, cli
from vdpa_net.cli.table import COMMANDS, Group, run_command
from vdpa_net.errors import PeerGone
from vdpa_net.transport.control import ControlClient

DEADLINE_SECONDS = 30
NETDEV = "loopback,id=hostnet1"
DEVICE = "virtio-net-pci,netdev=hostnet1,id=net1,mac=56:4a:b7:4f:4d:a9,bus=pci.6,addr=0x0,vdpa=on"


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vdpa_net", *arguments]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        timeout=DEADLINE_SECONDS,
        env=environment or None,
    )


class Command:
    """A `vdpa-net` command that runs until it is told to end."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "vdpa_net", *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        self.output = b""

    def wait_listening(self) -> str:
        """Its output up to the line that says that it listens."""
        assert self.process.stdout is not None
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not re.search(rb"^listening on .*\n", self.output, re.M):
            ready, _, _ = select.select([self.process.stdout], [], [], max(0, deadline - time.monotonic()))
            assert ready, f"it does not listen: {self.output.decode()}"
            piece = self.process.stdout.read1()  # type: ignore[attr-defined]
            assert piece, f"it ended: {self.output.decode()}"
            self.output += piece
        return self.output.decode()

    def end(self, how: int = signal.SIGTERM) -> int:
        """Its exit code after this signal."""
        if self.process.poll() is None:
            self.process.send_signal(how)
        code = self.process.wait(DEADLINE_SECONDS)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code


Start = Callable[..., Command]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts commands; those that still run when the test is over are killed."""
    started: list[Command] = []

    def begin(*arguments: str) -> Command:
        started.append(Command(*arguments))
        return started[-1]

    yield begin
    for command in started:
        command.end(signal.SIGKILL)


@pytest.fixture
def serve(start: Start, socket_dir: Path) -> Command:
    return start(
        *("serve", "--socket", str(socket_dir / "vfio"), "--control", str(socket_dir / "control")),
        *("--netdev", NETDEV, "--device", DEVICE),
    )


def test_the_version_is_the_packages() -> None:
    done = run("--version")
    assert (done.returncode, done.stdout) == (0, f"vdpa-net {__version__}\n")


def command_names(group: Group, *words: str) -> Iterator[tuple[str, ...]]:
    for name, entry in group.members.items():
        yield (*words, name)
        if isinstance(entry, Group):
            yield from command_names(entry, *words, name)


@pytest.mark.parametrize("words", list(command_names(COMMANDS)), ids=" ".join)
def test_every_command_has_help(words: tuple[str, ...]) -> None:
    done = run(*words, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"usage: vdpa-net {' '.join(words)} " in done.stdout


def test_help_lists_every_command_with_what_it_is_for() -> None:
    done = run("--help")
    assert done.returncode == 0
    # A summary may go on below itself.
    told = re.sub(r"\n {4,}", " ", done.stdout)
    for name, entry in COMMANDS.members.items():
        assert re.search(rf"^  {name} +{re.escape(entry.summary)}$", told, re.M)


@pytest.mark.parametrize("words", [(), *command_names(COMMANDS)], ids=" ".join)
def test_help_fits_80_columns(
    words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with contextlib.suppress(SystemExit):
        run_command([*words, "--help"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 5
    assert [line for line in lines if len(line) > 80] == []


def test_without_a_command_there_is_help_and_exit_code_2() -> None:
    done = run("lab")
    assert done.returncode == 2
    assert "build" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("serv",), "unknown command 'serv' (did you mean 'serve'?)"),
        (("--verbose",), "unknown option '--verbose'"),
        (("lab", "bot"), "vdpa-net lab: unknown command 'bot' (did you mean 'boot'?)"),
        (("migrate", "--round", "3"), "'--round' (did you mean '--rounds'?)"),
        (("migrate", "--rounds", "0"), "--rounds: '0'; expected a number from 1 on"),
        (("migrate", "--rounds", "many"), "'many'; expected a number"),
        (("migrate", "--transport", "tcp"), "'in-process', 'vfio-user'"),
        (("lab", "build", "now"), "unexpected argument 'now'"),
        (("migrate", "--profile", "ifc"), "no profile 'ifc'"),
        (("lab", "boot", "--profile", "ifc"), "no profile 'ifc'"),
        (("lab", "boot", "--device", "rx_queue_siz=256"), "did you mean 'rx_queue_size'?"),
        (("log-test", "--json", "/nowhere/result"), "there is no directory /nowhere"),
        (("migrate", "--junit", "/"), "it is a directory"),
        (("libvirt", "convert", "/nowhere.xml"), "/nowhere.xml: No such file or directory"),
    ],
)
def test_wrong_usage_is_told_in_one_line(arguments: tuple[str, ...], words: str) -> None:
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("vdpa-net: error: ")
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr


def test_a_reader_that_goes_away_is_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "vdpa_net", "--help"]
    done = subprocess.run(
        command, stdout=writer, stderr=subprocess.PIPE, check=False, timeout=DEADLINE_SECONDS
    )
    os.close(writer)
    assert done.stderr == b""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--netdev", "tap,vhost=on", "--device", DEVICE), "vhost=on"),
        (("--netdev", "tab,id=a", "--device", DEVICE), "did you mean 'tap'?"),
        (("--netdev", NETDEV, "--device", "virtio-net-pci,vpda=on"), "did you mean 'vdpa'?"),
        (("--netdev", "loopback,id=other", "--device", DEVICE), "netdev=hostnet1"),
        (("--netdev", NETDEV, "--device", DEVICE, "--fault", "drop-dirty-mark=2"), "drop-dirty-mark"),
        (("--netdev", NETDEV, "--device", DEVICE, "--fault", "melt=1"), "no fault 'melt'"),
        (("--netdev", NETDEV, "--device", DEVICE, "--fault", "ring-state=vq9:+1"), "vq9"),
        (("--netdev", NETDEV, "--device", DEVICE, "--socket", "/dev/null/x"), "/dev/null/x"),
        (
            ("--netdev", NETDEV, "--device", DEVICE, "--socket", "/nowhere/x"),
            "there is no directory /nowhere",
        ),
        (
            ("--netdev", NETDEV, "--device", DEVICE, "--socket", f"/{'a' * 107}"),
            "at most 107 bytes, this one 108",
        ),
    ],
)
def test_an_error_is_one_line_and_exit_code_2(
    arguments: tuple[str, ...], words: str, socket_dir: Path
) -> None:
    done = run("serve", "--socket", str(socket_dir / "vfio"), *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("vdpa-net: error: ")
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr


def test_the_debug_variable_adds_the_traceback(socket_dir: Path) -> None:
    arguments = ("serve", "--socket", str(socket_dir / "vfio"), "--netdev", "tab", "--device", DEVICE)
    done = run(*arguments, VDPA_NET_DEBUG="1")
    assert done.returncode != 0
    assert "Traceback" in done.stderr


def test_a_missing_option_is_named() -> None:
    done = run("serve", "--netdev", NETDEV, "--device", DEVICE)
    assert done.returncode == 2
    assert "--socket" in done.stderr


def test_a_device_that_is_not_vfio_user_is_refused() -> None:
    done = run("driver", "--device", "pci:0000:01:00.0", "--vhost-socket", "/nowhere")
    assert done.returncode == 2
    assert "expected vfio-user:PATH" in done.stderr


def test_a_driver_without_its_device_says_which_socket(socket_dir: Path) -> None:
    missing = socket_dir / "no-device"
    done = run("driver", "--device", f"vfio-user:{missing}", "--vhost-socket", str(socket_dir / "vhost"))
    assert done.returncode == 2
    assert f"`vdpa-net serve --socket {missing} ...` offers one there" in done.stderr


def test_what_is_no_control_socket_is_told_with_the_option_that_makes_one(
    serve: Command, socket_dir: Path
) -> None:
    serve.wait_listening()
    for name in ("nothing", "vfio"):
        done = run("inspect", "--socket", str(socket_dir / name))
        assert (done.returncode, done.stdout) == (2, "")
        assert "by --control" in done.stderr
        assert len(done.stderr.splitlines()) == 1, done.stderr


def test_serve_prints_the_qemu_arguments_and_when_it_listens(serve: Command, socket_dir: Path) -> None:
    output = serve.wait_listening()
    assert "-object memory-backend-memfd,id=mem,size=1G,share=on" in output
    assert "-device pcie-root-port,id=pci.6,slot=1" in output
    assert "intel-iommu,intremap=on,caching-mode=on" in output
    assert re.search(r"start to listening: \d+ ms", output)
    properties = re.search(r"-device '(\{.*\})'", output)
    assert properties is not None
    assert json.loads(properties[1]) == {
        "driver": "vfio-user-pci",
        "bus": "pci.6",
        "id": "net1",
        "addr": "0x0",
        "socket": {"type": "unix", "path": str(socket_dir / "vfio")},
    }


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_serve_ends_cleanly_on_a_signal(serve: Command, socket_dir: Path, how: int) -> None:
    serve.wait_listening()
    assert serve.end(how) == 0
    assert list(socket_dir.iterdir()) == [], "sockets left behind"


def test_a_second_sigterm_does_not_disturb_what_the_first_one_has_set_going() -> None:
    before = signal.signal(signal.SIGTERM, cli._end)
    try:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_serve_ends_while_a_client_is_connected(serve: Command, socket_dir: Path) -> None:
    serve.wait_listening()
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(socket_dir / "vfio"))
        assert serve.end() == 0


def test_the_control_socket_answers_and_ends_the_command(serve: Command, socket_dir: Path) -> None:
    serve.wait_listening()
    with ControlClient(socket_dir / "control") as control:
        snapshot = control.call("inspect")
        assert isinstance(snapshot, dict)
        assert (snapshot["mac"], snapshot["vdpa"]) == ("56:4a:b7:4f:4d:a9", True)
        assert control.call("events") == []
        # The process may be gone before it has answered.
        with contextlib.suppress(PeerGone):
            control.call("shutdown")
    assert serve.process.wait(DEADLINE_SECONDS) == 0


def test_the_vhost_command_listens_and_ends_cleanly(start: Start, socket_dir: Path) -> None:
    path = socket_dir / "vhost"
    command = start("vhost", "--vhost-socket", str(path), "--netdev", NETDEV, "--device", DEVICE)
    command.wait_listening()
    assert path.is_socket()
    assert command.end() == 0
    assert not path.exists()


def test_the_driver_command_drives_a_served_device(serve: Command, start: Start, socket_dir: Path) -> None:
    serve.wait_listening()
    sockets = ("--vhost-socket", str(socket_dir / "vhost"), "--control", str(socket_dir / "driver"))
    driver = start("driver", "--device", f"vfio-user:{socket_dir / 'vfio'}", *sockets)
    driver.wait_listening()
    with ControlClient(socket_dir / "driver") as control:
        assert isinstance(control.call("evidence"), dict)
        assert control.call("wire_log") == []
    assert driver.end() == 0
    assert serve.end() == 0


def test_a_device_without_the_lm_registers_has_no_vdpa_driver(socket_dir: Path) -> None:
    plain = DEVICE.replace("vdpa=on", "vdpa=off")
    done = run("vhost", "--vhost-socket", str(socket_dir / "vhost"), "--netdev", NETDEV, "--device", plain)
    assert done.returncode == 2
    assert "vdpa" in done.stderr
