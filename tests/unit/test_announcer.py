# SPDX-License-Identifier: Apache-2.0
"""When an announcer sends its frames, and what becomes of one that the back end does not take."""

from __future__ import annotations

import threading
import time

import pytest

from vdpa_net.device import announce
from vdpa_net.device.announce import Announcer
from vdpa_net.errors import BackendError

MAC = bytes(range(2, 8))
OTHER_MAC = bytes(range(3, 9))
DEADLINE_SECONDS = 20
NEVER_MS = 3_600_000


class Port:
    """A back end with or without room; `reports` is what the announcer told of each frame."""

    def __init__(self) -> None:
        self.has_room = True
        self.error: Exception | None = None
        self.sent: list[bytes] = []
        self.reports: list[tuple[int, str]] = []
        self._changed = threading.Condition()
        self.asked = threading.Event()

    def transmit(self, frame: bytes) -> bool:
        self.asked.set()
        if self.error is not None:
            raise self.error
        if self.has_room:
            self.sent.append(frame)
        return self.has_room

    def report(self, count: int, error: Exception | None) -> None:
        with self._changed:
            self.reports.append((count, str(error or "")))
            self._changed.notify_all()

    def await_reports(self, count: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.reports) >= count, DEADLINE_SECONDS)

    def announcer(self, *schedule_ms: int) -> Announcer:
        return Announcer(self.transmit, self.report, schedule_ms)


@pytest.fixture
def port() -> Port:
    return Port()


def await_end(announcer: Announcer) -> None:
    """Wait until its thread, if there is one, has nothing to do any more."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while announcer._has_thread:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_first_frame_is_sent_at_once_and_none_after_a_cancel(port: Port) -> None:
    announcer = port.announcer(NEVER_MS)
    announcer.start(MAC)
    assert port.reports == [(1, "")]
    announcer.cancel()
    await_end(announcer)
    assert [frame[:14] for frame in port.sent] == [b"\xff" * 6 + MAC + b"\x80\x35"]
    assert len(port.sent[0]) == 60


def test_frames_follow_on_the_schedule_and_errors_are_reported(port: Port) -> None:
    port.error = BackendError("port is gone")
    port.announcer(1, 2).start(MAC)
    port.await_reports(3)
    assert port.reports == [(1, "port is gone"), (2, "port is gone"), (3, "port is gone")]


@pytest.mark.parametrize("schedule_ms", [(NEVER_MS,), ()], ids=["under way", "over"])
def test_a_station_that_is_announced_again_soon_is_announced_once_more(
    port: Port, schedule_ms: tuple[int, ...]
) -> None:
    announcer = port.announcer(*schedule_ms)
    for count in (1, 2, 3):
        announcer.start(MAC)
        port.await_reports(count)
    assert [count for count, _ in port.reports] == [1, 2, 3]
    announcer.cancel()
    await_end(announcer)
    assert len(port.sent) == 3


def test_another_station_takes_the_place_of_the_one_before(port: Port) -> None:
    announcer = port.announcer(NEVER_MS)
    announcer.start(MAC)
    announcer.start(OTHER_MAC)
    assert [frame[6:12] for frame in port.sent] == [MAC, OTHER_MAC]
    assert [count for count, _ in port.reports] == [1, 1]
    announcer.cancel()
    await_end(announcer)


@pytest.mark.parametrize("end", ["cancelled", "long ago"])
def test_an_announcement_begins_anew_after_a_cancel_and_after_a_while(
    port: Port, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    announcer = port.announcer()
    announcer.start(MAC)
    if end == "cancelled":
        announcer.cancel()
    else:
        monkeypatch.setattr(announce, "SOON_S", 0.0)
    announcer.start(MAC)
    assert [count for count, _ in port.reports] == [1, 1]


def test_a_back_end_without_room_is_asked_again_while_nobody_waits(port: Port) -> None:
    port.has_room = False
    announcer = port.announcer()
    announcer.start(MAC)
    assert port.reports == []
    port.has_room = True
    port.await_reports(1)
    assert (port.reports, len(port.sent)) == ([(1, "")], 1)


def test_a_back_end_that_has_no_room_for_long_is_an_error(
    port: Port, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(announce, "FULL_MS", 10)
    port.has_room = False
    port.announcer().start(MAC)
    port.await_reports(1)
    assert port.reports == [(1, "the back end has had no room for 10 ms")]


def test_a_cancel_ends_the_wait_for_room(port: Port, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(announce, "FULL_MS", NEVER_MS)
    port.has_room = False
    announcer = port.announcer()
    announcer.start(MAC)
    announcer.cancel()
    await_end(announcer)
    port.has_room = True
    assert port.reports == []
    assert port.sent == []
