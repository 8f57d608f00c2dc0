# SPDX-License-Identifier: Apache-2.0
"""The LM registers' contract for packed rings: ring state in the vhost encoding, over stop and restore."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest

from spec.direct import CTRL_QUEUE, RING_STATE, RX, TX, Rig, eventfd_count, rig
from vdpa_net.testing.guest_driver import PACKED, WANTED
from vdpa_net.wire.virtio_pci import Status

FRESH = 0x8000_8000
SIZE = 64


def packed_rig(**options: Any) -> AbstractContextManager[Rig]:
    return rig(features=WANTED | PACKED, enabled_features=frozenset({"packed"}), **options)


@pytest.fixture
def device() -> Iterator[Rig]:
    with packed_rig() as made:
        yield made


@pytest.fixture
def running() -> Iterator[Rig]:
    with packed_rig() as made:
        made.driver.start()
        yield made


def negotiate(device: Rig, *, packed: bool) -> None:
    features = 1 << 32 | (PACKED if packed else 0)
    for status in (0, 1, 3):
        device.set_common("device_status", status)
    for half in range(2):
        device.set_common("driver_feature_select", half)
        device.set_common("driver_feature", features >> 32 * half & 0xFFFF_FFFF)
    device.set_common("device_status", 11)
    assert device.common("device_status") == 11


def test_packed_rings_are_offered_on_request_only(device: Rig) -> None:
    assert device.device.options.features & PACKED
    with rig() as plain:
        assert not plain.device.options.features & PACKED


@pytest.mark.parametrize(("packed", "initial"), [(True, FRESH), (False, 0)])
def test_state_that_was_not_written_reads_as_the_initial_one(device: Rig, packed: bool, initial: int) -> None:
    negotiate(device, packed=packed)
    assert [device.read(RING_STATE + 4 * queue) for queue in range(3)] == [initial] * 3


def test_queue_without_a_written_state_starts_at_both_wrap_counters_1(running: Rig) -> None:
    running.exchange(count=5, size=700)
    assert [running.stop(queue) for queue in (RX, TX)] == [
        running.driver.rings[queue].state for queue in (RX, TX)
    ]
    assert running.kinds() == []


def test_each_half_has_offset_below_and_wrap_counter_in_its_bit_15(running: Rig) -> None:
    # Each frame here is one descriptor: 64 + 3 of them are one lap and three.
    for _ in range((SIZE + 3) // 3 + 1):
        frames = [bytes([index]) * 60 for index in range(3)]
        assert running.driver.send(frames) == 3
        assert running.driver.receive(3) == frames
        running.driver.finish_transmit()
    passed = running.driver.rings[TX].last_used_idx
    assert running.stop(TX) == passed << 16 | passed


@pytest.mark.parametrize("first_index", [1, SIZE - 1, SIZE, SIZE + 1, 2 * SIZE - 1, 2 * SIZE])
def test_queue_starts_at_the_state_written_before_queue_enable(first_index: int) -> None:
    with packed_rig(first_index=first_index) as device:
        rings = device.driver.rings
        states = {queue: rings[queue].state for queue in (RX, TX)}
        wrap = (first_index // SIZE + 1) % 2
        assert states[TX] & 0xFFFF == first_index % SIZE | wrap << 15
        device.driver.start(states)
        device.exchange(count=4)
        assert {queue: device.stop(queue) for queue in (RX, TX)} == {
            queue: rings[queue].state for queue in (RX, TX)
        }
        assert device.kinds() == []


def test_restored_start_raises_an_interrupt_per_queue_at_the_initial_state_too(device: Rig) -> None:
    device.driver.start({RX: FRESH, TX: FRESH})
    assert [eventfd_count(device.driver.call_fds[queue + 1]) for queue in (RX, TX)] == [1, 1]
    device.exchange()


@pytest.mark.parametrize("value", [0x8000_8000 | SIZE, 0x8000_8000 | SIZE << 16, 0x7FFF_7FFF])
def test_state_beyond_the_ring_is_a_violation_without_effect(device: Rig, value: int) -> None:
    device.driver.start({TX: value})
    assert device.kinds() == ["ring_state_beyond"]
    assert device.violations.entries[0].value == value
    assert not device.driver.status & Status.DEVICE_NEEDS_RESET
    device.exchange(count=3)
    assert device.stop(TX) == device.driver.rings[TX].state
    assert device.kinds() == ["ring_state_beyond"]


def test_state_is_checked_against_the_size_that_the_queue_has_when_it_starts(device: Rig) -> None:
    negotiate(device, packed=True)
    device.write(RING_STATE + 4 * TX, 0x8000_8000 | 200 << 16 | 200)
    assert device.read(RING_STATE + 4 * TX) == 0x80C8_80C8
    assert device.kinds() == []


def test_restored_used_idx_that_memory_contradicts_is_recorded() -> None:
    with packed_rig(first_index=10) as device:
        behind = 0x8000_8000 | 9 << 16 | 9
        device.driver.start({RX: device.driver.rings[RX].state, TX: behind})
        assert device.kinds() == ["used_idx"]
        assert device.violations.entries[0].where == "queue 1"
        assert device.violations.entries[0].value == behind >> 16


def test_state_written_while_the_queue_runs_is_recorded_without_effect(running: Rig) -> None:
    running.write(RING_STATE + 4 * TX, 0x8005_8005)
    assert running.kinds() == ["ring_state_while_running"]
    running.exchange(count=2)
    assert running.stop(TX) == running.driver.rings[TX].state


def test_queue_enable_one_resumes_where_zero_stopped(running: Rig) -> None:
    running.exchange(count=3)
    kept = running.stop(TX)
    running.set_common("queue_enable", 1)
    assert running.read(RING_STATE + 4 * TX) == kept
    running.exchange(count=3)
    assert running.kinds() == []


def test_no_packet_is_repeated_or_skipped_over_a_stop(running: Rig) -> None:
    frames = [index.to_bytes(2, "big") * 100 for index in range(20)]
    assert running.driver.send(frames[:10]) == 10
    running.stop(TX)
    assert running.driver.send(frames[10:]) == 10
    running.set_common("queue_enable", 1)
    assert running.driver.receive(20) == frames
    running.driver.finish_transmit()
    assert running.stop(TX) == running.driver.rings[TX].state


def test_control_queue_state_agrees_with_memory_after_a_stop(running: Rig) -> None:
    for on in (b"\0", b"\1", b"\0"):
        assert running.driver.control(0, 0, on) == 0
    assert running.stop(CTRL_QUEUE) == running.driver.rings[CTRL_QUEUE].state != FRESH


@pytest.mark.parametrize("size", [1, 3, 100, 255])
def test_queue_size_need_not_be_a_power_of_two(device: Rig, size: int) -> None:
    negotiate(device, packed=True)
    device.set_common("queue_size", size)
    assert device.common("queue_size") == size
    assert device.kinds() == []
    negotiate(device, packed=False)
    device.set_common("queue_size", size)
    assert (device.kinds() == []) == (size == 1)
