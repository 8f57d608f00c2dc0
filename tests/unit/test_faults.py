# SPDX-License-Identifier: Apache-2.0
"""Faults as objects: their command-line forms, where a device puts them, and those of its registers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fake_dataplane import FakeRig

from vdpa_net.errors import OptionError
from vdpa_net.migration.faults import (
    FAULTS,
    DropDirtyMark,
    DuplicateUsed,
    Fault,
    LateRingState,
    LogBitOrder,
    LogEnd,
    LostIrq,
    LostKick,
    NoAnnounce,
    PlaneFault,
    RingState,
    Side,
    SkipUsedRingMark,
    parse_fault,
)
from vdpa_net.migration.register_faults import LateRegister, RingShape

RING_STATE = 0x4020
SPLIT = RingShape(256, is_packed=False)


@pytest.fixture
def rig() -> Iterator[FakeRig]:
    made = FakeRig()
    yield made
    made.close()


def stop(rig: FakeRig, *queues: int) -> None:
    for queue in queues:
        rig.set_common("queue_select", queue)
        rig.set_common("queue_enable", 0)


FORMS = [
    ("drop-dirty-mark=1", DropDirtyMark(1.0)),
    ("drop-dirty-mark=0.25", DropDirtyMark(0.25)),
    ("skip-used-ring-mark", SkipUsedRingMark()),
    ("log-bit-order", LogBitOrder()),
    ("log-end=-1page", LogEnd(1)),
    ("log-end=-3pages", LogEnd(3)),
    ("ring-state=vq0:-1", RingState(0, -1)),
    ("ring-state=vq12:+3", RingState(12, 3)),
    ("late-ring-state=20", LateRingState(20)),
    ("duplicate-used", DuplicateUsed()),
    ("duplicate-used=vq3", DuplicateUsed(3)),
    ("lost-kick", LostKick()),
    ("lost-kick=vq3", LostKick(3)),
    ("lost-kick=vq1:5", LostKick(1, 5)),
    ("lost-irq", LostIrq()),
    ("lost-irq=vq2:7", LostIrq(2, 7)),
    ("no-announce", NoAnnounce()),
]


@pytest.mark.parametrize(("text", "fault"), FORMS)
def test_fault_is_read_from_its_command_line_form(text: str, fault: Fault) -> None:
    assert parse_fault(text) == fault
    assert str(fault) == text
    assert parse_fault(text, seed=7).seed == 7


def test_every_fault_has_a_command_line_form() -> None:
    assert {type(fault) for _, fault in FORMS} == set(FAULTS)
    assert len({fault.name for fault in FAULTS}) == len(FAULTS) == 10


def test_faults_of_a_start_belong_to_the_destination() -> None:
    assert {fault.name for fault in FAULTS if fault.side is Side.DESTINATION} == {
        "lost-kick",
        "lost-irq",
        "no-announce",
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no fault '': there is drop-dirty-mark=RATE, "),
        ("drop", "no fault 'drop'"),
        ("drop-dirty-mark", "takes a share like 0.2, got ''"),
        ("drop-dirty-mark=", "a value is missing; expected drop-dirty-mark=RATE"),
        ("drop-dirty-mark=x", "takes a share like 0.2, got 'x'"),
        ("drop-dirty-mark=0", "above 0 and up to 1, got 0.0"),
        ("drop-dirty-mark=1.1", "above 0 and up to 1, got 1.1"),
        ("drop-dirty-mark=nan", "above 0 and up to 1, got nan"),
        ("skip-used-ring-mark=1", "takes no value, got '1'"),
        ("log-bit-order=lsb", "takes no value, got 'lsb'"),
        ("no-announce=1", "takes no value, got '1'"),
        ("log-end", "like -1page, got ''"),
        ("log-end=-1", "like -1page, got '-1'"),
        ("log-end=+1page", "like -1page, got '\\+1page'"),
        ("log-end=-0page", "at least 1 page off, got 0"),
        ("ring-state=vq1", r"takes vqN:\+K or vqN:-K, got 'vq1'"),
        ("ring-state=1:+3", r"takes vqN:\+K or vqN:-K, got '1:\+3'"),
        ("ring-state=vq1:3", r"takes vqN:\+K or vqN:-K, got 'vq1:3'"),
        ("ring-state=vq1:+0", r"changes a 16-bit index, got \+0"),
        ("ring-state=vq1:+65536", r"changes a 16-bit index, got \+65536"),
        ("late-ring-state", "whole number of milliseconds, got ''"),
        ("late-ring-state=0", "takes 1 to 60000 milliseconds, got 0"),
        ("late-ring-state=60001", "takes 1 to 60000 milliseconds, got 60001"),
        ("late-ring-state=1.5", "whole number of milliseconds, got '1.5'"),
        ("duplicate-used=1", "takes nothing or vqN, got '1'"),
        ("lost-kick=vq1:0", "takes a count above 0, got 0"),
        ("lost-irq=vq1:", "takes nothing, vqN or vqN:COUNT, got 'vq1:'"),
        ("lost-irq=all", "takes nothing, vqN or vqN:COUNT, got 'all'"),
    ],
)
def test_text_that_is_no_fault_is_refused_with_the_reason(text: str, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        parse_fault(text)


def test_what_a_seed_chooses_is_the_same_each_time() -> None:
    assert {DuplicateUsed(seed=3).parameter for _ in range(5)} == {DuplicateUsed(seed=3).parameter}
    assert len({DuplicateUsed(seed=seed).parameter for seed in range(50)}) > 10
    assert all(1 <= DuplicateUsed(seed=seed).parameter <= 64 for seed in range(200))
    assert {LateRingState(1, seed=seed).entries for seed in range(200)} == set(range(1, 9))


@pytest.mark.parametrize("fault", [fault for _, fault in FORMS if isinstance(fault, PlaneFault)], ids=str)
def test_fault_of_the_data_plane_is_handed_to_it_and_counted_by_it(fault: PlaneFault) -> None:
    rig = FakeRig()
    if fault.at_queue is not None and fault.at_queue >= 3:
        with pytest.raises(OptionError, match="needs a queue below 3"):
            rig.device.install_fault(fault)
    else:
        rig.device.install_fault(fault)
        queue = -1 if fault.at_queue is None else fault.at_queue
        assert rig.plane.faults == [(fault.name, queue, fault.parameter, 0)]
        assert rig.device.fault_counts() == rig.device.snapshot()["faults"] == {str(fault): 7}
    rig.close()


def test_same_fault_twice_is_refused_at_the_same_queue(rig: FakeRig) -> None:
    rig.device.install_fault(parse_fault("lost-irq=vq0"))
    rig.device.install_fault(parse_fault("lost-irq=vq1"))
    with pytest.raises(OptionError, match="lost-irq=vq1:3: the device has that fault already"):
        rig.device.install_fault(parse_fault("lost-irq=vq1:3"))


@pytest.mark.parametrize("text", ["ring-state=vq0:+1", "late-ring-state=5"])
def test_fault_of_the_registers_needs_them(text: str) -> None:
    rig = FakeRig(vdpa=False)
    with pytest.raises(OptionError, match="needs vdpa=on"):
        rig.device.install_fault(parse_fault(text))
    rig.close()


def test_fault_for_a_queue_that_is_not_there_is_refused(rig: FakeRig) -> None:
    with pytest.raises(OptionError, match="queue below 3"):
        rig.device.install_fault(RingState(3, 1))


def test_ring_state_fault_shifts_what_is_read_after_a_stop(rig: FakeRig) -> None:
    rig.device.install_fault(parse_fault("ring-state=vq1:+3"))
    rig.start()
    rig.plane.snapshot[1] = (7, 7)
    rig.plane.final = {0: (9, 9), 1: (0xFFFE, 0xFFFE)}
    assert rig.read(RING_STATE + 4, 4) == 0x0007_0007, "a running queue reads true"
    stop(rig, 0, 1)
    assert rig.device.snapshot()["faults"] == {"ring-state=vq1:+3": 0}
    assert rig.read(RING_STATE, 4) == 0x0009_0009
    assert rig.read(RING_STATE + 4, 4) == 0xFFFE_0001
    assert rig.device.snapshot()["faults"] == {"ring-state=vq1:+3": 1}
    rig.write(RING_STATE + 4, 4, 0x0002_0002)
    assert rig.read(RING_STATE + 4, 4) == 0x0002_0002, "a state that the driver wrote reads true"


def test_late_ring_state_reads_old_after_a_stop_until_its_time_is_over(rig: FakeRig) -> None:
    fault = LateRingState(60_000, seed=1)
    rig.device.install_fault(fault)
    rig.start()
    rig.plane.final = {0: (100, 100), 1: (1, 1)}
    stop(rig, 0, 1)
    assert rig.common("queue_enable") == 0
    old = 100 - fault.entries
    assert rig.read(RING_STATE, 4) == old << 16 | old
    assert rig.read(RING_STATE + 4, 4) == 0, "no further back than where the queue started"
    assert rig.device.fault_counts() == {"late-ring-state=60000": 2}
    rig.write(RING_STATE, 4, 0x0002_0002)
    assert rig.read(RING_STATE, 4) == 0x0002_0002


def test_late_register_becomes_true_in_time() -> None:
    now = 0
    late = LateRegister(LateRingState(20, seed=0), lambda _: SPLIT, clock_ns=lambda: now)
    late.on_event("queue_started", {"queue": 0, "last_avail_idx": 0xFFFF, "used_idx": 0xFFFF})
    late.on_event("queue_stopped", {"queue": 0, "last_avail_idx": 1, "used_idx": 1})
    now = 19_999_999
    assert late.show(0, 0x0001_0001) == 0xFFFF_FFFF, "two entries have been used since the start"
    now = 20_000_000
    assert late.show(0, 0x0001_0001) == 0x0001_0001


def test_mute_device_announces_nothing_and_counts_it(rig: FakeRig) -> None:
    rig.device.install_fault(parse_fault("no-announce"))
    assert rig.negotiate()
    rig.write(RING_STATE, 4, 0x0005_0005)
    rig.set_up_queue(0)
    rig.set_common("device_status", 15)
    rig.device.announce("52:54:00:00:00:09")
    assert rig.device.fault_counts() == {"no-announce": 2}
    assert rig.plane.frames == []


@pytest.mark.parametrize(
    ("index", "entries", "moved"),
    [
        (0x8000 | 3, 2, 0x8000 | 5),
        (0x8000 | 3, -5, 8),
        (8, 5, 0x8000 | 3),
        (0x8000 | 9, 1, 0),
        (0, -1, 0x8000 | 9),
        (4, 20, 4),
        (4, -25, 0x8000 | 9),
    ],
)
def test_packed_index_moves_with_its_wrap_counter(index: int, entries: int, moved: int) -> None:
    shape = RingShape(10, is_packed=True)
    assert shape.move(index, entries) == moved
    assert shape.distance(index, moved) == entries % 20
