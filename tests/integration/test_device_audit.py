# SPDX-License-Identifier: Apache-2.0
"""The dirty audit of a device under traffic: silent about a sound one, loud about each missing mark."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from vdpa_net.device.audit import DeviceAudit
from vdpa_net.errors import StateError
from vdpa_net.migration.faults import parse_fault
from vdpa_net.testing.frames import FrameMint
from vdpa_net.testing.guest_registers import LM_LOGGING_CTRL
from vdpa_net.testing.loopback_guest import LoopbackGuest

FRAMES = 40
FRAME_BYTES = 700


@pytest.fixture
def guest() -> Iterator[LoopbackGuest]:
    with LoopbackGuest(seed=5) as made:
        made.start()
        yield made


def send(guest: LoopbackGuest, seed: int) -> None:
    mint = FrameMint(seed)
    frames = [mint.frame(seq, FRAME_BYTES) for seq in range(FRAMES)]
    for start in range(0, FRAMES, 5):
        turn = frames[start : start + 5]
        guest.driver.send(turn)
        assert guest.driver.receive(len(turn)) == turn
        guest.driver.finish_transmit()


def audited(guest: LoopbackGuest, intervals: int, *, by_file: bool = False) -> dict[str, Any]:
    """A logged time of so many intervals under traffic, each ended while packets go round."""
    audit = DeviceAudit(guest.device)
    audit.arm(by_file=by_file)
    assert guest.start_logging()
    for number in range(intervals):
        send(guest, number)
        assert audit.end_interval(anew=number == 0) >= 0
    guest.stop()
    result = audit.result()
    audit.close()
    return result


@pytest.mark.parametrize("by_file", [False, True])
def test_a_sound_device_has_no_unmarked_page_in_any_interval(guest: LoopbackGuest, by_file: bool) -> None:
    result = audited(guest, intervals=4, by_file=by_file)
    assert result["unmarked"] == []
    assert len(result["written"]) >= 10
    assert result["intervals"] == 5


@pytest.mark.parametrize("by_file", [False, True])
def test_each_page_that_a_fault_never_marks_is_found(guest: LoopbackGuest, by_file: bool) -> None:
    guest.device.install_fault(parse_fault("drop-dirty-mark=0.5", seed=3))
    result = audited(guest, intervals=4, by_file=by_file)
    unmarked = {page for page, _interval in result["unmarked"]}
    assert unmarked
    assert unmarked < set(result["written"])


def test_a_device_that_marks_nothing_is_found_out_on_every_page(guest: LoopbackGuest) -> None:
    guest.device.install_fault(parse_fault("drop-dirty-mark=1"))
    result = audited(guest, intervals=2)
    assert {page for page, _interval in result["unmarked"]} == set(result["written"])


def test_pages_are_counted_from_a_point_on_and_within_ranges(guest: LoopbackGuest) -> None:
    audit = DeviceAudit(guest.device)
    audit.arm()
    assert guest.start_logging()
    send(guest, 1)
    assert audit.end_interval(anew=True) == 0
    send(guest, 2)
    count = audit.end_interval()
    assert count > 0
    assert audit.end_interval(within=[]) == 0
    assert audit.end_interval() >= count
    written = audit.result()["written"]
    assert isinstance(written, list)
    alone = [audit.end_interval(within=[(page, page + 1)]) for page in written]
    assert sum(alone) == audit.end_interval()
    assert audit.end_interval(within=[(written[0], written[3]), (written[4], written[9])]) == sum(
        alone[:3] + alone[4:9]
    )
    audit.close()


def test_an_audit_that_was_not_armed_says_so(guest: LoopbackGuest) -> None:
    audit = DeviceAudit(guest.device)
    assert guest.start_logging()
    with pytest.raises(StateError, match="arm"):
        audit.result()


def test_an_audit_goes_on_when_the_device_logs_again(guest: LoopbackGuest) -> None:
    audit = DeviceAudit(guest.device)
    audit.arm()
    assert guest.start_logging()
    send(guest, 1)
    first = audit.end_interval(anew=True)
    guest.driver.write_lm(LM_LOGGING_CTRL, 0)
    # What is written while nobody logs needs no mark, and is none of the audit's.
    send(guest, 2)
    before = audit.result()
    guest.driver.write_lm(LM_LOGGING_CTRL, 1)
    send(guest, 3)
    result = audit.result()
    audit.close()
    assert first == 0
    assert result["unmarked"] == []
    assert result["intervals"] > before["intervals"]
    assert len(result["series"]) == result["intervals"]
    assert result["marked"] >= len(result["written"])


def test_the_last_write_of_a_page_is_known(guest: LoopbackGuest) -> None:
    audit = DeviceAudit(guest.device)
    audit.arm()
    assert guest.start_logging()
    send(guest, 1)
    written = audit.result()["written"]
    assert isinstance(written, list)
    found = audit.last_writes(written)
    audit.close()
    kinds = set()
    for write in found:
        assert write is not None
        offset, length, is_ring = write
        assert 0 < length <= 4096 - offset
        kinds.add(bool(is_ring))
    assert kinds == {True, False}
    assert audit.last_writes([(1 << 50) >> 12]) == [None]
