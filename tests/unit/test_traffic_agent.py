# SPDX-License-Identifier: Apache-2.0
"""How often the guest's agent is asked before it answers."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from vdpa_net.errors import LabError
from vdpa_net.lab.traffic import agent
from vdpa_net.lab.traffic.agent import AgentClient
from vdpa_net.lab.traffic.format import Operation


class Clock:
    """Time passes only while somebody waits for an answer."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.asked_s: list[float] = []

    def wait(
        self, _readable: object, _writable: object, _failed: object, timeout_s: float
    ) -> list[list[int]]:
        self.asked_s.append(self.now_s - 1000.0)
        self.now_s += timeout_s
        return [[], [], []]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    made = Clock()
    times = SimpleNamespace(monotonic=lambda: made.now_s, monotonic_ns=lambda: int(made.now_s * 1e9))
    monkeypatch.setattr(agent, "time", times)
    monkeypatch.setattr(agent, "select", SimpleNamespace(select=made.wait))
    yield made


def test_a_guest_that_does_not_answer_is_asked_ever_more_rarely(clock: Clock) -> None:
    nobody = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    nobody.bind(("127.0.0.1", 0))
    client = AgentClient(nobody, nobody.getsockname(), lambda: None)
    with pytest.raises(LabError, match=r"did not answer START in 300 s"):
        client.ask(Operation.START, 1, b"", 300)
    client.close()
    pauses = [later - earlier for earlier, later in zip(clock.asked_s, clock.asked_s[1:], strict=False)]
    assert clock.asked_s[:5] == [0, 0.25, 0.5, 0.75, 1]
    # One in vain costs an eighth of the time at most; and all of them are few for a guest of one packet/s.
    assert all(pause <= max(0.25, at / 8) + 1e-9 for at, pause in zip(clock.asked_s, pauses, strict=False))
    assert len(clock.asked_s) < 60
    assert clock.now_s == pytest.approx(1300)
