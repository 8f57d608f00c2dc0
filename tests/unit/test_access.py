# SPDX-License-Identifier: Apache-2.0
"""Hooks on register accesses, and the trace that is one of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fake_dataplane import FakeRig

from vdpa_net.device.access import DROP, Access
from vdpa_net.device.trace import RegisterTrace
from vdpa_net.errors import AccessError, StateError

CONFIG = 7
NOTIFY, LM = 0x3000, 0x4000


@pytest.fixture
def rig() -> Iterator[FakeRig]:
    made = FakeRig(ats=True)
    yield made
    made.close()


def names(rig: FakeRig, region: int, offset: int, count: int) -> list[str]:
    """Names of the registers that a read covers, as a hook sees them."""
    seen: list[Access] = []
    remove = rig.device.on_access(seen.append)
    rig.device.region_read(region, offset, count)
    remove()
    (access,) = seen
    assert not access.write
    return [item.name for item in access.registers]


@pytest.mark.parametrize(
    ("region", "offset", "count", "expected"),
    [
        (4, 0x14, 1, ["common_cfg.device_status"]),
        (4, 0x14, 4, ["common_cfg.device_status", "common_cfg.config_generation", "common_cfg.queue_select"]),
        (4, 0x24, 4, ["common_cfg.queue_desc"]),
        (4, 0x1000, 1, ["isr.isr_status"]),
        (4, 0x2000, 6, ["device_cfg.mac"]),
        (4, NOTIFY + 4, 2, ["notify.doorbell[1]"]),
        (4, NOTIFY + 6, 2, []),
        (4, LM + 0x24, 4, ["lm.LM_RING_STATE[1]"]),
        (4, NOTIFY + 0xFFC, 8, ["notify.doorbell[1023]", "lm.LM_LOGGING_CTRL"]),
        (4, 0x500, 4, []),
        (1, 0x1C, 4, ["msix_table.vector_control[1]"]),
        (1, 0x800, 4, []),
        (CONFIG, 4, 2, ["config.pci.command"]),
        (CONFIG, 0x106, 2, ["config.ats.control"]),
    ],
)
def test_hooks_see_the_registers_of_an_access(
    rig: FakeRig, region: int, offset: int, count: int, expected: list[str]
) -> None:
    assert names(rig, region, offset, count) == expected


def test_hooks_see_the_value_of_each_register_and_whether_it_is_whole(rig: FakeRig) -> None:
    seen: list[Access] = []
    rig.device.on_access(seen.append)
    rig.device.region_write(4, 0x16, b"\x01\0\x80\0")
    rig.device.region_write(4, 0x24, b"\x78\x56\x34\x12")
    both, high_half = seen
    assert [(item.register.name, item.value, item.whole) for item in both.registers] == [
        ("queue_select", 1, True),
        ("queue_size", 0x80, True),
    ]
    assert (both.name, high_half.name) == ("", "common_cfg.queue_desc")
    assert [(item.value, item.whole) for item in high_half.registers] == [(0x12345678 << 32, False)]


def test_a_hook_changes_what_a_driver_reads_and_what_a_register_gets(rig: FakeRig) -> None:
    def hook(access: Access) -> int | bytes | None:
        if access.name == "common_cfg.queue_size":
            return 64 if access.write else b"\x07\0"
        return None

    remove = rig.device.on_access(hook)
    rig.set_common("queue_size", 128)
    assert rig.common("queue_size") == 7
    remove()
    assert rig.common("queue_size") == 64


def test_a_hook_drops_writes(rig: FakeRig) -> None:
    rig.device.on_access(lambda access: DROP if access.write else None)
    rig.set_common("queue_size", 128)
    assert rig.common("queue_size") == 256


def test_each_hook_sees_what_the_one_before_made(rig: FakeRig) -> None:
    rig.device.on_access(lambda access: access.value + 1)
    rig.device.on_access(lambda access: access.value * 2)
    assert rig.common("queue_size") == (256 + 1) * 2


@pytest.mark.parametrize("answer", [b"", b"\0\0\0", 0x10000, -1, "text"])
def test_an_answer_that_does_not_fit_is_refused(rig: FakeRig, answer: object) -> None:
    rig.device.on_access(lambda _access: answer)  # type: ignore[arg-type,return-value]
    with pytest.raises(AccessError, match="register hook returned"):
        rig.common("queue_size")


def test_what_a_hook_raises_is_the_answer(rig: FakeRig) -> None:
    def refuse(_access: Access) -> None:
        raise StateError("not now")

    remove = rig.device.on_access(refuse)
    with pytest.raises(StateError, match="not now"):
        rig.common("queue_size")
    remove()
    assert rig.common("queue_size") == 256


def test_accesses_outside_of_a_region_never_reach_a_hook(rig: FakeRig) -> None:
    seen: list[Access] = []
    rig.device.on_access(seen.append)
    with pytest.raises(AccessError):
        rig.device.region_read(4, 1 << 20, 4)
    with pytest.raises(AccessError):
        rig.device.region_write(6, 0, b"\0")
    assert not seen


@pytest.fixture
def lines(rig: FakeRig) -> list[str]:
    """Lines of a trace, without their time and with single spaces."""
    written: list[str] = []
    rig.device.on_access(RegisterTrace(lambda line: written.append(" ".join(line.split()[1:]))))
    return written


def test_the_trace_says_what_a_driver_does(rig: FakeRig, lines: list[str]) -> None:
    rig.set_common("device_status", 0)
    rig.set_common("device_status", 11)
    rig.set_common("device_feature_select", 1)
    rig.common("device_feature")
    rig.set_common("queue_select", 1)
    rig.common("queue_size")
    rig.write(NOTIFY + 4, 2, 1)
    rig.write(LM + 0x20, 4, 0x00050007)
    rig.device.region_write(4, 0x20, b"\0\x10\0\0")
    assert lines == [
        "W common_cfg.device_status 0x00 reset",
        "W common_cfg.device_status 0x0b ACKNOWLEDGE|DRIVER|FEATURES_OK",
        "W common_cfg.device_feature_select 0x00000001",
        "R common_cfg.device_feature[1] 0x00000103 VERSION_1|ACCESS_PLATFORM|RING_RESET",
        "W common_cfg.queue_select 0x0001",
        "R common_cfg.queue_size[q1] 0x0100 256",
        "W notify.doorbell[1] 0x0001",
        "W lm.LM_RING_STATE[0] 0x00050007 last_avail_idx=7 used_idx=5",
        "W common_cfg.queue_desc[q1] 0x0000000000001000 4096 (a part of it)",
    ]


def test_the_trace_forgets_selections_with_a_reset(rig: FakeRig, lines: list[str]) -> None:
    rig.set_common("queue_select", 2)
    rig.set_common("device_status", 0)
    rig.common("queue_enable")
    assert lines[-1] == "R common_cfg.queue_enable[q0] 0x0000"


def test_the_trace_takes_the_ring_state_apart_as_negotiated(rig: FakeRig, lines: list[str]) -> None:
    packed = "last_avail_idx=7 last_avail_wrap_counter=1 used_idx=5 used_wrap_counter=0"
    split = "last_avail_idx=32775 used_idx=5"
    for half, value, expected in ((0, 4, split), (1, 4, packed), (1, 1, split)):
        rig.set_common("driver_feature_select", half)
        rig.set_common("driver_feature", value)
        rig.write(LM + 0x20, 4, 0x00058007)
        assert lines[-1] == f"W lm.LM_RING_STATE[0] 0x00058007 {expected}"
    rig.set_common("driver_feature", 4)
    rig.set_common("device_status", 0)
    rig.write(LM + 0x20, 4, 0x00058007)
    assert lines[-1].endswith(split)


def test_the_trace_shows_places_without_a_register(rig: FakeRig, lines: list[str]) -> None:
    rig.device.region_write(4, 0x500, b"\x34\x12")
    rig.set_common("device_feature_select", 7)
    rig.common("device_feature")
    assert lines[0] == "W region 4 + 0x500 0x1234 no register there"
    assert lines[-1] == "R common_cfg.device_feature[7] 0x00000000 beyond bit 63"
