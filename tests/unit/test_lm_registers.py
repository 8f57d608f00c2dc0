# SPDX-License-Identifier: Apache-2.0
"""The LM registers on a fake data plane."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fake_dataplane import FakeRig
from hypothesis import given
from hypothesis import strategies as st

from vdpa_net import _native
from vdpa_net.errors import OptionError
from vdpa_net.wire.lm import VDPA, Profile, pack_ring_state, ring_state_name, unpack_ring_state

CTRL, BASE, END, RING_STATE = 0x4000, 0x4010, 0x4018, 0x4020


@pytest.fixture
def rig() -> Iterator[FakeRig]:
    made = FakeRig()
    made.device.dma_map(1 << 44, 0x2000, 0, 0, readable=True, writable=True)
    yield made
    made.close()


def set_range(rig: FakeRig, base: int = 1 << 44, end: int = (1 << 44) + 0x1000) -> None:
    rig.write(BASE, 8, base)
    rig.write(END, 8, end)


def test_profile_puts_the_registers_where_the_document_does() -> None:
    names = [
        "LM_LOGGING_CTRL",
        "LM_BASE_ADDR_LOW",
        "LM_BASE_ADDR_HIGH",
        "LM_END_ADDR_LOW",
        "LM_END_ADDR_HIGH",
    ]
    assert [VDPA.registers[name].offset for name in names] == [0x0, 0x10, 0x14, 0x18, 0x1C]
    assert [VDPA.ring_state(queue) for queue in (0, 1, 2, 3, 1023)] == [
        0x20,
        0x24,
        0x28,
        0x2C,
        0x20 + 1023 * 4,
    ]
    assert VDPA.registers.size == 0x20 + 4 * 1024
    assert VDPA.registers[ring_state_name(1023)].offset == 0x20 + 1023 * 4
    with pytest.raises(OptionError, match="0 to 1023"):
        VDPA.ring_state(1024)


def test_profile_can_have_strides_of_its_own() -> None:
    profile = Profile("wide", 0x8086, 0x1A, 0, 2, 4, max_queues=8, pair_stride=0x40)
    assert [profile.ring_state(queue) for queue in (0, 1, 2, 5)] == [0x20, 0x24, 0x60, 0xA4]


@given(st.integers(0, 0xFFFF), st.integers(0, 0xFFFF))
def test_ring_state_codes_both_indices(avail: int, used: int) -> None:
    value = pack_ring_state(avail, used)
    assert value == avail | used << 16
    assert unpack_ring_state(value) == (avail, used)


def test_range_registers_are_independent_halves(rig: FakeRig) -> None:
    for at, value in enumerate((0x11111111, 0x22222222, 0x33333333, 0x44444444)):
        rig.write(BASE + 4 * at, 4, value)
    assert rig.read(BASE, 8) == 0x22222222_11111111
    assert rig.read(END, 8) == 0x44444444_33333333
    rig.write(BASE + 1, 1, 0xFF)
    assert rig.read(BASE, 4) == 0x1111FF11


def test_logging_starts_with_the_range_of_that_moment(rig: FakeRig) -> None:
    events: list[tuple[str, object]] = []
    rig.device.on_event(lambda name, info: events.append((name, info.get("base"))))
    set_range(rig)
    assert rig.space.log is None
    rig.write(CTRL, 4, 1)
    assert rig.space.log == (1 << 44, (1 << 44) + 0x1000)
    set_range(rig, end=(1 << 44) + 0x2000)
    assert rig.space.log == (1 << 44, (1 << 44) + 0x1000), "a new range counts with the next write of CTRL"
    rig.write(CTRL, 1, 1)
    assert rig.space.log == (1 << 44, (1 << 44) + 0x2000)
    rig.write(CTRL, 2, 0)
    assert rig.space.log is None
    assert events == [
        ("log_started", 1 << 44),
        ("log_started", 1 << 44),
        ("log_stopping", None),
        ("log_stopped", None),
    ]
    assert rig.kinds() == []


@pytest.mark.parametrize("value", [2, 3, 0xF, 0x10, 0x11, 0x80000001, 0xFFFFFFFF])
@pytest.mark.parametrize("running", [0, 1])
def test_other_values_of_ctrl_are_refused_and_stop_nothing(rig: FakeRig, value: int, running: int) -> None:
    set_range(rig)
    rig.write(CTRL, 4, running)
    before = rig.space.log
    rig.write(CTRL, 4, value)
    assert rig.read(CTRL, 4) == running
    assert rig.space.log == before
    assert rig.kinds() == ["bad_logging_ctrl"]


def test_switch_of_the_log_is_complete_before_it_is_answered(rig: FakeRig) -> None:
    """Marks under way may go to the log before until the barrier, and not after the answer."""
    set_range(rig)
    rig.write(CTRL, 4, 1)
    rig.space.calls.clear()
    rig.write(CTRL, 4, 1)
    assert rig.space.calls == ["start_log", "barrier"]


def test_stop_of_the_log_is_complete_before_it_is_answered(rig: FakeRig) -> None:
    set_range(rig)
    rig.write(CTRL, 4, 1)
    rig.space.calls.clear()
    rig.write(CTRL, 4, 0)
    assert rig.space.calls == ["stop_log", "barrier"]


def test_reset_keeps_the_order_queues_then_barrier_then_log(rig: FakeRig) -> None:
    set_range(rig)
    rig.start()
    rig.write(CTRL, 4, 1)
    rig.space.calls = rig.backend.calls  # type: ignore[assignment]
    rig.backend.calls.clear()
    rig.set_common("device_status", 0)
    order = [call for call in rig.backend.calls if call in ("barrier", "stop_log") or call[0] == "stop"]
    assert order == [("stop", 0), ("stop", 1), ("stop", 2), "barrier", "stop_log"]


def test_native_violations_are_taken_over_with_their_evidence(rig: FakeRig) -> None:
    rig.device.dma_map(0x9000, 0x1000, None, 0, readable=True, writable=True)
    rig.plane.violations = [_native.Violation(1, "dma", 0x9008, "2.7.5", "descriptor 3")]
    rig.space.violations = [_native.Violation(-1, "log_overflow", 77, "log", "")]
    first, second = rig.violations.entries
    assert (first.where, first.what, first.value, first.clause) == ("queue 1", "dma", 0x9008, "2.7.5")
    assert first.detail.startswith("descriptor 3; ")
    assert "share=on" in first.detail
    assert (second.where, second.what, second.value) == ("dma", "log_overflow", 77)
