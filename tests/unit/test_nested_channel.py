# SPDX-License-Identifier: Apache-2.0
"""The control channel of level-1 guests, both ends in one process."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from vdpa_net.errors import PeerError, PeerGone
from vdpa_net.lab.nested.channel import Channel

DEADLINE_S = 20
Pair = tuple[Channel, Channel]


def connect(methods: dict[str, Callable[..., Any]]) -> Pair:
    near, far = socket.socketpair()
    ends = Channel(near.detach(), "guest"), Channel(far.detach(), "lab", methods)
    for end in ends:
        end.start()
    return ends


def hang_up(end: Channel) -> None:
    with socket.socket(fileno=os.dup(end._fd)) as again:
        again.shutdown(socket.SHUT_RDWR)
    end.join()


@pytest.fixture
def release() -> threading.Event:
    return threading.Event()


@pytest.fixture
def channels(release: threading.Event) -> Iterator[Pair]:
    def fail(text: str) -> None:
        raise ValueError(text)

    def late() -> str:
        assert release.wait(DEADLINE_S)
        return "late"

    pair = connect({"double": lambda value: 2 * value, "fail": fail, "late": late})
    yield pair
    release.set()
    hang_up(pair[0])
    pair[1].join()


def test_call_returns_what_the_method_returns(channels: Pair) -> None:
    assert channels[0].call("double", value="ab") == "abab"


def test_exception_of_a_method_is_told_to_the_caller(channels: Pair) -> None:
    with pytest.raises(PeerError, match="guest: fail: ValueError: no such page"):
        channels[0].call("fail", text="no such page")
    with pytest.raises(PeerError, match="no method 'nothing'"):
        channels[0].call("nothing")


def test_call_that_takes_its_time_does_not_hold_up_the_next(channels: Pair, release: threading.Event) -> None:
    answers: list[str] = []
    caller = threading.Thread(target=lambda: answers.append(channels[0].call("late")))
    caller.start()
    assert channels[0].call("double", value=1) == 2
    assert answers == []
    release.set()
    caller.join(DEADLINE_S)
    assert answers == ["late"]


def test_call_that_is_not_answered_in_time_says_so(channels: Pair) -> None:
    with pytest.raises(PeerError, match=r"did not answer late within 0.01 s"):
        channels[0].call("late", within_s=0.01)


def test_stream_joins_two_sockets_until_each_side_has_ended(channels: Pair) -> None:
    ends: list[socket.socket] = []
    for channel in channels:
        mine, its = socket.socketpair()
        mine.settimeout(DEADLINE_S)
        channel.add_stream(7, its)
        ends.append(mine)
    data = bytes(range(256)) * 1000
    threading.Thread(target=ends[0].sendall, args=(data,), daemon=True).start()
    got = b""
    while len(got) < len(data):
        got += ends[1].recv(1 << 16)
    assert got == data
    ends[1].sendall(b"back")
    assert ends[0].recv(16) == b"back"
    ends[0].shutdown(socket.SHUT_WR)
    assert ends[1].recv(16) == b""
    ends[1].sendall(b"still")
    assert ends[0].recv(16) == b"still"
    ends[1].close()
    assert ends[0].recv(16) == b""
    ends[0].close()


def test_peer_that_goes_away_ends_calls_and_streams(release: threading.Event) -> None:
    pair = connect({"late": lambda: release.wait(DEADLINE_S)})
    mine, its = socket.socketpair()
    mine.settimeout(DEADLINE_S)
    pair[0].add_stream(1, its)
    problems: list[BaseException] = []

    def call() -> None:
        try:
            pair[0].call("late")
        except PeerGone as error:
            problems.append(error)

    caller = threading.Thread(target=call)
    caller.start()
    hang_up(pair[1])
    caller.join(DEADLINE_S)
    assert "went away during late" in str(problems[0]) or "is gone" in str(problems[0])
    assert mine.recv(1) == b""
    mine.close()
    release.set()
    pair[0].join()
    with pytest.raises(PeerGone):
        pair[0].call("late")


def test_stream_whose_channel_ends_between_its_two_directions_is_closed_once() -> None:
    pair = connect({})
    mine, its = socket.socketpair()
    mine.settimeout(DEADLINE_S)
    pair[0].add_stream(1, its)
    pair[0]._half_end(1)
    hang_up(pair[1])
    pair[0].join()
    pair[0]._half_end(1)
    assert mine.recv(1) == b""
    mine.close()
