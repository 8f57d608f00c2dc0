# SPDX-License-Identifier: Apache-2.0
"""Rings of a vhost-user front end: enabled, disabled, stopped, broken; and the dirty log beside them."""

from __future__ import annotations

import os
import select
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from integration.vhost_steps import PATIENCE_S, await_sleep, await_true, enable, get_base, offer, run_dry
from vdpa_net.driver import vhost_backend, vhost_rings
from vdpa_net.testing.dirty_log import DirtyLog
from vdpa_net.testing.front_end import Manners
from vdpa_net.testing.guest_cpu import RX, TX
from vdpa_net.testing.vhost_connection import Request
from vdpa_net.testing.vhost_guest import HIGH, MAC, VhostGuest
from vdpa_net.testing.vhost_side import VhostSide

U64 = struct.Struct("<Q")
END = HIGH + (8 << 20)
PAGE = 4096


@pytest.fixture(params=["in-process", "vfio-user"])
def side(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[VhostSide]:
    with VhostSide(tmp_path / "vhost", MAC, over_vfio_user=request.param == "vfio-user") as made:
        yield made


def packets_sent(side: VhostSide) -> int:
    return side.device.snapshot()["queues"][TX]["counters"]["packets"]


def signalled(fd: int, seconds: float = PATIENCE_S) -> bool:
    return bool(select.select([fd], [], [], seconds)[0])


# --- disabled rings -------------------------------------------------------------------------------


def test_what_was_offered_before_the_ring_was_disabled_is_sent(guest: VhostGuest, side: VhostSide) -> None:
    guest.run(30)
    guest.cpu.queues.post_receive()
    guest.rings[RX].publish()
    received = guest.rings[RX].used_idx
    offer(guest, 100, 5, kick=False)
    enable(guest, TX, 0)
    assert guest.rings[TX].in_flight == 0
    assert await_true(lambda: guest.rings[RX].used_idx != received)
    assert side.violations() == []


def test_a_disabled_transmit_ring_takes_packets_and_sends_none(guest: VhostGuest, side: VhostSide) -> None:
    run_dry(guest, 30)
    guest.cpu.queues.post_receive()
    guest.rings[RX].publish()
    enable(guest, TX, 0)
    received = guest.rings[RX].used_idx
    sent = packets_sent(side)
    for turn in range(3):
        offer(guest, 10 * turn, 7)
        assert await_true(lambda: guest.rings[TX].in_flight == 0)
        guest.rings[TX].reap()
    assert guest.rings[RX].used_idx == received
    assert packets_sent(side) == sent
    assert get_base(guest, TX) == guest.rings[TX].used_idx
    assert side.violations() == []


def test_a_disabled_ring_that_is_enabled_again_sends_again(guest: VhostGuest, side: VhostSide) -> None:
    for _ in range(2):
        guest.run(30)
        enable(guest, TX, 0)
        offer(guest, 0, 9)
        assert await_true(lambda: guest.rings[TX].in_flight == 0)
        for used in guest.rings[TX].reap():
            guest.cpu.queues.take_transmit(used)
        enable(guest, TX, 1)
    guest.run(30)
    assert guest.cpu.ledger.corrupted == []
    assert side.violations() == []


@pytest.mark.parametrize("disable_first", [True, False])
def test_a_stop_discards_nothing_in_either_order(side: VhostSide, disable_first: bool) -> None:
    guest = VhostGuest(side.path, manners=Manners(disable_first=disable_first))
    guest.front_end.connect()
    guest.resume()
    assert guest.cpu.wait_for_frames(50)
    guest.cpu.pause(leave_unsent=10)
    bases = guest.front_end.stop()
    assert bases == [ring.used_idx for ring in guest.rings]
    assert guest.rings[TX].in_flight == 0
    guest.front_end.start(bases)
    offered = set(guest.cpu.ledger.sent)
    guest.run(60)
    assert offered <= set(guest.cpu.ledger.completed)
    assert guest.cpu.ledger.corrupted == []
    guest.close()


def test_what_came_after_the_disable_survives_a_stop_that_follows_at_once(
    guest: VhostGuest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vhost_rings, "GRACE_S", 2 * PATIENCE_S)
    guest.run(30)
    enable(guest, TX, 0)
    offer(guest, 0, 6)
    base = get_base(guest, TX)
    offered = guest.rings[TX].in_flight
    assert (base, offered) == (guest.rings[TX].used_idx, 6)


def test_a_disabled_receive_ring_gets_nothing_until_it_is_enabled(guest: VhostGuest) -> None:
    guest.run(30)
    guest.cpu.queues.post_receive()
    guest.rings[RX].publish()
    enable(guest, RX, 0)
    received = guest.rings[RX].used_idx
    offer(guest, 0, 8)
    assert await_true(lambda: guest.rings[TX].in_flight == 0)
    assert guest.rings[RX].used_idx == received
    enable(guest, RX, 1)
    assert await_true(lambda: guest.rings[RX].used_idx != received)


def test_what_a_disabled_ring_completes_is_logged(guest: VhostGuest, side: VhostSide) -> None:
    log = DirtyLog.for_memory_end(END, PAGE)
    guest.run(30)
    enable(guest, RX, 0)
    enable(guest, TX, 0)
    guest.front_end.start_logging(log)
    log.harvest()
    offer(guest, 0, 8)
    assert await_true(lambda: guest.rings[TX].in_flight == 0)
    guest.front_end.stop()
    assert set(guest.rings[TX].device_pages()) & log.harvest()
    assert log.stray_bytes() == 0
    log.close()


def test_a_log_that_is_replaced_and_cleared_while_a_ring_is_disabled_is_followed(guest: VhostGuest) -> None:
    run_dry(guest, 30)
    enable(guest, TX, 0)
    offer(guest, 0, 1)
    assert await_true(lambda: guest.rings[TX].in_flight == 0)
    await_sleep()
    first, second = (DirtyLog.for_memory_end(end, 2 * PAGE) for end in (END, 2 * END))
    guest.front_end.start_logging(first)
    guest.front_end.start_logging(second)
    offer(guest, 1, 4)
    assert await_true(lambda: guest.rings[TX].in_flight == 0)
    assert first.harvest() == set()
    assert await_true(lambda: bool(second.peek()))
    guest.front_end.stop_logging()
    second.harvest()
    offer(guest, 5, 4)
    assert await_true(lambda: guest.rings[TX].in_flight == 0)
    assert second.harvest() == set()
    first.close()
    second.close()


@pytest.mark.parametrize("says_status", ["never", "before", "behind"])
def test_the_last_base_is_told_before_the_log_goes_off_and_the_device_is_reset(
    guest: VhostGuest, side: VhostSide, says_status: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine that migrates stands still until then; the stop has completed the log. SET_STATUS 0,
    before or behind it, changes nothing in that."""
    monkeypatch.setattr(vhost_backend, "SWITCH_OVER_S", PATIENCE_S)
    log = DirtyLog.for_memory_end(END, PAGE)
    guest.run(10)
    guest.front_end.start_logging(log)
    guest.run(10)
    log.harvest()
    offer(guest, 0, 8, kick=False)
    answered = threading.Event()
    seen: list[tuple[str, bool]] = []
    side.device.on_event(
        lambda name, _info: (
            seen.append((name, answered.wait(PATIENCE_S))) if name in ("log_stopping", "reset") else None
        )
    )
    if says_status == "before":
        guest.front_end.request(Request.SET_STATUS, U64.pack(0))
    for queue in (RX, TX):
        get_base(guest, queue)
    if says_status == "behind":
        guest.front_end.request(Request.SET_STATUS, U64.pack(0))
    marked = log.harvest()
    answered.set()
    assert set(guest.rings[TX].device_pages()) & marked
    guest.front_end.get_u64(Request.GET_FEATURES)
    assert seen == [("log_stopping", True), ("reset", True)]
    assert log.harvest() == set()
    log.close()


# --- eventfds for errors and for the log ----------------------------------------------------------


def test_a_ring_that_breaks_is_told_by_its_error_eventfd(guest: VhostGuest) -> None:
    errors = [os.eventfd(0), os.eventfd(0)]
    for queue, fd in enumerate(errors):
        guest.front_end.request(Request.SET_VRING_ERR, U64.pack(queue), [fd])
    run_dry(guest, 10)
    assert not any(signalled(fd, 0) for fd in errors)
    guest.rings[TX].poke_avail_idx(guest.rings[TX].used_idx + guest.rings[TX].size + 7)
    guest.front_end.kick(TX)
    assert all(signalled(fd) for fd in errors)
    for fd in errors:
        os.close(fd)


def test_the_log_s_eventfd_is_signalled_while_there_are_marks(guest: VhostGuest) -> None:
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    log = DirtyLog.for_memory_end(END, PAGE)
    guest.front_end.request(Request.SET_LOG_FD, b"", [fd])
    guest.run(10)
    assert not signalled(fd, 0)
    guest.front_end.start_logging(log)
    guest.run(10)
    assert signalled(fd)
    guest.front_end.stop_logging()
    os.eventfd_read(fd)
    guest.run(10)
    assert not signalled(fd, 0.1)
    os.close(fd)
    log.close()


# --- logging on and off, memory that comes later --------------------------------------------------


def test_logging_goes_on_and_off_any_number_of_times(guest: VhostGuest, side: VhostSide) -> None:
    for turn in range(5):
        with_offset = DirtyLog.for_memory_end(END, turn * PAGE)
        guest.front_end.start_logging(with_offset)
        guest.run(10)
        guest.front_end.stop_logging()
        assert set(guest.rings[RX].device_pages()) & with_offset.harvest()
        guest.run(10)
        assert with_offset.harvest() == set()
        assert with_offset.stray_bytes() == 0
        with_offset.close()
    assert side.violations() == []


def test_memory_that_is_added_while_rings_run_can_be_used_and_is_logged(side: VhostSide) -> None:
    guest = VhostGuest(side.path, layout=((0, 1 << 20), (HIGH, 8 << 20), (2 * HIGH, 8 << 20)), shared=2)
    guest.front_end.connect()
    guest.run(20)
    log = DirtyLog.for_memory_end(2 * HIGH + (8 << 20), PAGE)
    guest.front_end.start_logging(log)
    guest.front_end.shared = 3
    guest.front_end.share_memory()
    guest.use_buffers_of(region=2)
    log.harvest()
    guest.run(250)
    guest.front_end.stop()
    assert any(page >= 2 * HIGH // PAGE for page in log.harvest())
    assert side.violations() == []
    log.close()
    guest.close()


# --- a front end that dies ------------------------------------------------------------------------


def _negotiated(guest: VhostGuest, _stack: ExitStack) -> None:
    guest.front_end.negotiate()


def _shared(guest: VhostGuest, stack: ExitStack) -> None:
    _negotiated(guest, stack)
    guest.front_end._set_features()
    guest.front_end.share_memory()


def _running(guest: VhostGuest, _stack: ExitStack) -> None:
    guest.front_end.connect()
    guest.resume()
    assert guest.cpu.wait_for_frames(20)


def _logging(guest: VhostGuest, stack: ExitStack) -> None:
    _running(guest, stack)
    log = DirtyLog.for_memory_end(END, PAGE)
    stack.callback(log.close)
    guest.front_end.start_logging(log)
    assert guest.cpu.wait_for_frames(20)


def _disabled(guest: VhostGuest, stack: ExitStack) -> None:
    _logging(guest, stack)
    enable(guest, RX, 0)
    enable(guest, TX, 0)


def _half_stopped(guest: VhostGuest, stack: ExitStack) -> None:
    _logging(guest, stack)
    get_base(guest, RX)


def _stopped(guest: VhostGuest, stack: ExitStack) -> None:
    _logging(guest, stack)
    guest.cpu.pause()
    guest.front_end.stop()


PHASES = [_negotiated, _shared, _running, _logging, _disabled, _half_stopped, _stopped]


@pytest.mark.parametrize("phase", PHASES, ids=[phase.__name__.strip("_") for phase in PHASES])
def test_a_front_end_that_dies_leaves_a_device_for_the_next_one(
    side: VhostSide, phase: Callable[[VhostGuest, ExitStack], None]
) -> None:
    with ExitStack() as stack:
        dying = VhostGuest(side.path)
        phase(dying, stack)
        # As a kill does it: the connection ends, and nothing else is said.
        dying.front_end._socket.close()
        healthy = VhostGuest(side.path)
        healthy.front_end.connect()
        healthy.run(30)
        assert healthy.front_end.stop() == [ring.used_idx for ring in healthy.rings]
        healthy.close()
        dying.close()
    assert side.device.snapshot()["logging"] is False
    assert side.violations() == []
