# SPDX-License-Identifier: Apache-2.0
"""The wire that the lab slows down at will."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from vdpa_net.lab.nested.wire import MigrationWire

SECONDS = 30
CRAWL_BYTES_PER_S = 1000


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


def test_both_directions_arrive_whole(ends: Ends) -> None:
    sent = bytes(range(256)) * 4096
    ends.near.sendall(sent)
    assert take(ends.far, len(sent)) == sent
    ends.far.sendall(b"back")
    assert take(ends.near, 4) == b"back"


def test_crawl_holds_the_sender_until_the_limit_goes(ends: Ends) -> None:
    ends.wire.limit(CRAWL_BYTES_PER_S)
    # More than all buffers take: at this limit it would last for hours.
    sent = bytes(8 << 20)
    ends.near.settimeout(0.5)
    done = 0
    with pytest.raises(TimeoutError):
        while done < len(sent):
            done += ends.near.send(sent[done:])
    ends.wire.limit(None)
    ends.near.settimeout(SECONDS)
    assert take(ends.far, done) == sent[:done]


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
