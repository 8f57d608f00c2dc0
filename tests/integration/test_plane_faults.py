# SPDX-License-Identifier: Apache-2.0
"""Faults in the data plane itself: what is refused, and what is counted where."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from vdpa_net._native import DataPlane, DmaSpace
from vdpa_net._native import Loopback as NativeLoopback
from vdpa_net.errors import OptionError, StateError
from vdpa_net.migration.faults import LostKick, parse_fault
from vdpa_net.testing.frames import FrameMint
from vdpa_net.testing.guest_cpu import TX
from vdpa_net.testing.loopback_guest import LoopbackGuest


@pytest.fixture
def plane() -> Iterator[DataPlane]:
    made = DataPlane(DmaSpace(), NativeLoopback(), 1)
    yield made
    made.close()


@pytest.mark.parametrize(
    ("name", "queue", "message"),
    [
        ("melt", -1, 'the data plane has no fault "melt"'),
        ("lost-irq", -1, "queue -1 does not exist"),
        ("lost-irq", 3, "queue 3 does not exist"),
        ("duplicate-used", 70_000, "queue 70000 does not exist"),
        ("lost-kick", 2, "queue 2 is the control queue, whose kicks are not heard here"),
    ],
)
def test_fault_without_a_place_is_refused(plane: DataPlane, name: str, queue: int, message: str) -> None:
    with pytest.raises(StateError, match=message):
        plane.install_fault(name, queue, 1, 0)
    assert plane.fault_counts() == {}


def test_counts_are_by_name_and_queue(plane: DataPlane) -> None:
    for name, queue in (("lost-irq", 0), ("lost-irq", 1), ("lost-irq", 2), ("log-bit-order", -1)):
        plane.install_fault(name, queue, 1, 0)
    assert plane.fault_counts() == {
        ("lost-irq", 0): 0,
        ("lost-irq", 1): 0,
        ("lost-irq", 2): 0,
        ("log-bit-order", -1): 0,
    }


def test_device_refuses_a_fault_that_its_data_plane_can_not_have() -> None:
    with LoopbackGuest() as guest, pytest.raises(OptionError, match="is the control queue"):
        guest.device.install_fault(LostKick(2))


def test_fault_acts_on_a_queue_that_runs_already() -> None:
    with LoopbackGuest(seed=2) as guest:
        guest.start()
        assert guest.start_logging()
        guest.device.install_fault(parse_fault("duplicate-used"))
        mint = FrameMint(1)
        for start in range(0, 100, 4):
            frames = [mint.frame(seq, 200) for seq in range(start, start + 4)]
            guest.driver.send(frames)
            assert guest.driver.receive(len(frames)) == frames
            guest.driver.finish_transmit()
        state = guest.stop()[TX]
        assert (state >> 16) - (state & 0xFFFF) == 1, "used_idx is one ahead"
        assert guest.device.fault_counts() == {"duplicate-used": 1}


def test_a_fresh_start_loses_neither_kicks_nor_interrupts() -> None:
    with LoopbackGuest(seed=2) as guest:
        guest.device.install_fault(parse_fault("lost-kick"))
        guest.device.install_fault(parse_fault("lost-irq"))
        guest.start()
        frame = FrameMint(1).frame(0, 200)
        guest.driver.send([frame])
        assert guest.driver.receive(1) == [frame]
        assert guest.device.fault_counts() == {"lost-kick": 0, "lost-irq": 0}
