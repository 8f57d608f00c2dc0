# SPDX-License-Identifier: Apache-2.0
"""Device configuration and ISR status of a network device."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fake_dataplane import FakeRig

MAC = bytes.fromhex("525400aabbcc")


@pytest.fixture
def rig() -> Iterator[FakeRig]:
    made = FakeRig(mtu=9000)
    yield made
    made.close()


def test_configuration_has_mac_link_and_mtu(rig: FakeRig) -> None:
    assert rig.device.region_read(4, 0x2000, 6) == MAC
    assert rig.read(0x2006, 2) == 1
    assert rig.read(0x2008, 2) == 0, "max_virtqueue_pairs exists with MQ only"
    assert rig.read(0x200A, 2) == 9000


def test_mac_reads_the_same_at_any_width(rig: FakeRig) -> None:
    by_bytes = b"".join(rig.device.region_read(4, 0x2000 + at, 1) for at in range(6))
    by_words = rig.device.region_read(4, 0x2000, 4) + rig.device.region_read(4, 0x2004, 2)
    assert by_bytes == by_words == MAC


def test_status_reads_zero_when_it_is_not_offered() -> None:
    rig = FakeRig(disabled_features=frozenset({"status"}))
    try:
        assert rig.read(0x2006, 2) == 0
    finally:
        rig.close()


def test_write_to_the_configuration_is_recorded_without_effect(rig: FakeRig) -> None:
    rig.write(0x2000, 4, 0)
    assert rig.device.region_read(4, 0x2000, 6) == MAC
    assert rig.kinds() == ["read_only mac"]
    assert "5.1.4.2" in rig.violations.entries[0].clause


def test_generation_changes_when_a_changed_configuration_is_read(rig: FakeRig) -> None:
    rig.start()
    rig.device.region_read(4, 0x2000, 6)
    first = rig.common("config_generation")
    rig.device.region_read(4, 0x2000, 6)
    assert rig.common("config_generation") == first
    rig.plane.commands = [bytes((1, 1)) + b"\x02\x00\x00\x00\x00\x07"]
    rig.write(0x3008, 2, 2)
    assert rig.device.region_read(4, 0x2000, 6) == b"\x02\x00\x00\x00\x00\x07"
    assert rig.common("config_generation") != first


def test_isr_reads_zero_and_refuses_writes(rig: FakeRig) -> None:
    assert rig.read(0x1000, 1) == 0
    rig.write(0x1000, 1, 3)
    assert rig.read(0x1000, 1) == 0
    assert rig.kinds() == ["read_only isr_status"]


def test_isr_is_cleared_by_a_read(rig: FakeRig) -> None:
    rig.start()
    rig.plane.broken = [0]
    rig.write(0x3008, 2, 2)
    assert rig.common("device_status") & 64
    assert rig.read(0x1000, 1) == 2
    assert rig.read(0x1000, 1) == 0


def test_mac_set_by_the_driver_is_gone_after_a_reset(rig: FakeRig) -> None:
    rig.start()
    rig.plane.commands = [bytes((1, 1)) + b"\x02\x00\x00\x00\x00\x07"]
    rig.write(0x3008, 2, 2)
    rig.set_common("device_status", 0)
    assert rig.device.region_read(4, 0x2000, 6) == MAC
