# SPDX-License-Identifier: Apache-2.0
"""The wire that the lab slows down at will."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import pytest

from vdpa_net.lab.nested.wire import CHUNK_BYTES, MigrationWire

SECONDS = 30
HELD_BYTES = 100_000


class Ends:
    """Both ends of a wire."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.wire = MigrationWire("127.0.0.1", self.listener.getsockname())
        self.near = socket.create_connection(self.wire.address, SECONDS)
        self.far = self.listener.accept()[0]
        self.far.settimeout(SECONDS)

    def close(self) -> None:
        self.wire.close()
        for end in (self.near, self.far, self.listener):
            end.close()


@pytest.fixture
def ends(no_fd_leak: None) -> Iterator[Ends]:
    made = Ends()
    yield made
    made.close()


def take(end: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size and (chunk := end.recv(size - len(data))):
        data += chunk
    return data


def take_what_is_there(end: socket.socket) -> bytes:
    data = b""
    end.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while chunk := end.recv(1 << 20):
            data += chunk
    end.settimeout(SECONDS)
    return data


def test_both_directions_arrive_whole(ends: Ends) -> None:
    sent = bytes(range(256)) * 4096
    ends.near.sendall(sent)
    assert take(ends.far, len(sent)) == sent
    ends.far.sendall(b"back")
    assert take(ends.near, 4) == b"back"


def test_hold_keeps_what_comes_behind_it_until_it_goes_on(ends: Ends) -> None:
    ends.wire.hold_after(HELD_BYTES)
    # More than all buffers take.
    sent = bytes(8 << 20)
    ends.near.settimeout(0.5)
    done = 0
    with pytest.raises(TimeoutError):
        while done < len(sent):
            done += ends.near.send(sent[done:])
    assert ends.wire.wait_held(SECONDS)
    # A chunk is carried whole.
    carried = len(take_what_is_there(ends.far))
    assert HELD_BYTES <= carried < HELD_BYTES + CHUNK_BYTES
    ends.wire.go_on()
    assert not ends.wire.wait_held(0)
    assert len(take(ends.far, done - carried)) == done - carried


def test_sender_learns_of_a_receiver_that_dies_while_it_is_held(ends: Ends) -> None:
    ends.wire.hold_after(0)
    ends.near.sendall(b"x")
    assert ends.wire.wait_held(SECONDS)
    ends.far.close()
    assert ends.near.recv(1) == b""
    assert not ends.wire.wait_held(SECONDS)


def test_end_of_one_side_is_that_of_the_other(ends: Ends) -> None:
    ends.near.sendall(b"last")
    ends.near.shutdown(socket.SHUT_WR)
    assert take(ends.far, 10) == b"last"
    ends.far.sendall(b"answer")
    ends.far.close()
    assert take(ends.near, 10) == b"answer"


def test_wire_that_is_cut_ends_both(ends: Ends) -> None:
    ends.near.sendall(b"x")
    assert take(ends.far, 1) == b"x"
    ends.wire.close()
    assert ends.near.recv(1) == b""
    assert ends.far.recv(1) == b""


def test_wire_that_nobody_uses_is_closed(no_fd_leak: None) -> None:
    MigrationWire("127.0.0.1", ("127.0.0.1", 1)).close()
