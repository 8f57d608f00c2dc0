# SPDX-License-Identifier: Apache-2.0
"""The control channel: methods over JSON lines, and what happens to bad ones."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from vdpa_net.errors import PeerError, PeerGone, ProtocolError, StateError
from vdpa_net.transport.control import MAX_REQUEST_BYTES, ControlClient, ControlServer

DEADLINE_S = 20


def add(a: int, b: int = 1) -> int:
    return a + b


def fail() -> None:
    raise StateError("not now")


def unspeakable() -> object:
    return object()


METHODS = {"add": add, "fail": fail, "unspeakable": unspeakable, "blob": lambda size: "x" * size}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ControlServer]:
    with ControlServer(tmp_path / "ctl", METHODS) as running:
        yield running


@pytest.fixture
def client(server: ControlServer) -> Iterator[ControlClient]:
    with ControlClient(server.path) as connected:
        yield connected


def raw(server: ControlServer, data: bytes, lines: int) -> list[dict[str, object]]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(DEADLINE_S)
        sock.connect(str(server.path))
        sock.sendall(data)
        with sock.makefile("rb") as stream:
            return [json.loads(stream.readline()) for _ in range(lines)]


def test_method_is_called_with_its_params(client: ControlClient) -> None:
    assert client.call("add", a=2, b=3) == 5
    assert client.call("add", a=2) == 3


def test_error_of_a_method_is_told_with_its_type_and_the_connection_lives(client: ControlClient) -> None:
    with pytest.raises(PeerError, match="StateError: not now"):
        client.call("fail")
    assert client.call("add", a=1) == 2


def test_unknown_method_names_those_that_exist(client: ControlClient) -> None:
    with pytest.raises(PeerError, match=r"'nothing': expected one of add, blob, fail, unspeakable"):
        client.call("nothing")


def test_wrong_params_are_told(client: ControlClient) -> None:
    with pytest.raises(PeerError, match="TypeError"):
        client.call("add", c=1)


def test_result_that_json_cannot_express_is_an_error(client: ControlClient) -> None:
    with pytest.raises(PeerError, match="TypeError"):
        client.call("unspeakable")
    assert client.call("add", a=1) == 2


def test_answer_may_be_longer_than_a_request(client: ControlClient) -> None:
    assert client.call("blob", size=3 * MAX_REQUEST_BYTES) == "x" * 3 * MAX_REQUEST_BYTES


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{",
        b"[]",
        b"1",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"method": 1}',
        b'{"method": "add", "params": [1]}',
    ],
    ids=lambda line: repr(line[:20]),
)
def test_bad_line_is_answered_and_the_next_one_served(server: ControlServer, line: bytes) -> None:
    bad, good = raw(server, line + b'\n{"id": 7, "method": "add", "params": {"a": 1}}\n', 2)
    assert bad["error"]["type"] == "ProtocolError"  # type: ignore[index]
    assert good == {"id": 7, "result": 2}


def test_request_that_is_too_long_is_dropped_and_the_next_one_served(server: ControlServer) -> None:
    long = b'{"id": 1, "method": "' + b"x" * MAX_REQUEST_BYTES + b'"}\n'
    bad, good = raw(server, long + b'{"id": 2, "method": "add", "params": {"a": 1}}\n', 2)
    assert "more than 1048576 bytes" in bad["error"]["message"]  # type: ignore[index]
    assert good == {"id": 2, "result": 2}


def test_pipelined_requests_are_answered_in_order_with_their_ids(server: ControlServer) -> None:
    data = b"".join(
        json.dumps({"id": f"q{i}", "method": "add", "params": {"a": i}}).encode() + b"\n" for i in range(50)
    )
    assert raw(server, data, 50) == [{"id": f"q{i}", "result": i + 1} for i in range(50)]


def test_slow_client_does_not_hold_up_another(tmp_path: Path) -> None:
    entered, release = threading.Event(), threading.Event()

    def slow() -> str:
        entered.set()
        release.wait(DEADLINE_S)
        return "done"

    results: list[object] = []
    with (
        ControlServer(tmp_path / "s", {"slow": slow, "add": add}) as server,
        ControlClient(server.path) as first,
    ):
        thread = threading.Thread(target=lambda: results.append(first.call("slow")))
        thread.start()
        assert entered.wait(DEADLINE_S)
        with ControlClient(server.path) as second:
            assert second.call("add", a=1) == 2
        assert not results
        release.set()
        thread.join(DEADLINE_S)
    assert results == ["done"]


def test_close_ends_clients_and_threads_and_removes_the_socket(tmp_path: Path) -> None:
    before = set(threading.enumerate())
    server = ControlServer(tmp_path / "s", METHODS)
    with ControlClient(server.path) as client:
        assert client.call("add", a=1) == 2
        server.close()
        server.close()
        with pytest.raises(PeerGone):
            client.call("add", a=1)
    assert not server.path.exists()
    # What tests before this one have left may end meanwhile.
    assert set(threading.enumerate()) <= before


def test_method_may_close_its_own_server(tmp_path: Path) -> None:
    servers: list[ControlServer] = []
    closed = threading.Event()

    def close_it() -> None:
        servers[0].close()
        closed.set()

    servers.append(ControlServer(tmp_path / "s", {"quit": close_it}))
    with ControlClient(servers[0].path) as client, pytest.raises(PeerGone):
        client.call("quit")
    # The connection ends before the socket file goes.
    assert closed.wait(DEADLINE_S)
    assert not servers[0].path.exists()


def scripted_server(path: Path, reply: bytes) -> threading.Thread:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    listener.listen()

    def serve() -> None:
        with listener, listener.accept()[0] as sock:
            sock.recv(4096)
            sock.sendall(reply)

    thread = threading.Thread(target=serve)
    thread.start()
    return thread


@pytest.mark.parametrize(
    "reply", [b"{\n", b"[]\n", b'{"id": 2, "result": 1}\n', b'{"id": 1, "error": "x"}\n']
)
def test_senseless_answer_is_a_protocol_error(tmp_path: Path, reply: bytes) -> None:
    thread = scripted_server(tmp_path / "s", reply)
    with ControlClient(tmp_path / "s") as client, pytest.raises(ProtocolError):
        client.call("add")
    thread.join(DEADLINE_S)


def test_answer_that_ends_in_the_middle_means_the_server_is_gone(tmp_path: Path) -> None:
    thread = scripted_server(tmp_path / "s", b'{"id": 1')
    with ControlClient(tmp_path / "s") as client, pytest.raises(PeerGone):
        client.call("add")
    thread.join(DEADLINE_S)
