# SPDX-License-Identifier: Apache-2.0
"""The device status machine, found out by walking through it and compared with the specification's steps."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import pytest
from fake_dataplane import FakeRig

from vdpa_net.wire.virtio_pci import Status

SEQUENCE = (Status.ACKNOWLEDGE, Status.DRIVER, Status.FEATURES_OK, Status.DRIVER_OK)
"""virtio 1.3, 3.1.1, steps 2, 3, 5 and 8."""

WORDS = Status.ACKNOWLEDGE | Status.DRIVER | Status.FAILED
"""Bits that are the driver's word: the device has nothing to grant (2.1)."""


@pytest.fixture(scope="module")
def rig() -> Iterator[FakeRig]:
    made = FakeRig()
    yield made
    made.close()


def put(rig: FakeRig, value: int) -> Status:
    rig.set_common("device_status", value)
    return Status(rig.common("device_status"))


def walk(rig: FakeRig, path: tuple[int, ...]) -> Status:
    """Reset, accept everything that is offered, and write these values one after the other."""
    put(rig, 0)
    features = rig.offered()
    for half in range(2):
        rig.set_common("driver_feature_select", half)
        rig.set_common("driver_feature", features >> 32 * half & 0xFFFFFFFF)
    status = Status(0)
    for value in path:
        status = put(rig, value)
    return status


def legal_statuses() -> set[Status]:
    """Every beginning of the sequence, with and without FAILED."""
    found, status = {Status(0)}, Status(0)
    for bit in SEQUENCE:
        status |= bit
        found.add(status)
    return found | {status | Status.FAILED for status in found}


def test_walks_without_a_violation_reach_exactly_the_statuses_of_the_specification(rig: FakeRig) -> None:
    reached: dict[Status, tuple[int, ...]] = {Status(0): ()}
    queue = deque([Status(0)])
    while queue:
        status = queue.popleft()
        for value in range(1, 256):
            before = rig.violations.count
            got = walk(rig, (*reached[status], value))
            if rig.violations.count == before and got not in reached:
                reached[got] = (*reached[status], value)
                queue.append(got)
    assert set(reached) == legal_statuses()


def expected(status: Status, value: int) -> tuple[Status, set[str]]:
    """What a write makes of a status and what is recorded, from the sentences of 2.1 and 3.1.1."""
    kinds = set()
    if value & 0x30:
        kinds.add("status_reserved_bits")
    if status & ~Status(value) & (WORDS | Status.FEATURES_OK | Status.DRIVER_OK):
        kinds.add("status_bits_cleared")
    after = status | Status(value) & WORDS
    for position, bit in enumerate(SEQUENCE):
        before = SEQUENCE[:position]
        if not value & bit or status & bit:
            continue
        in_order = all(after & earlier for earlier in before)
        if bit in (Status.FEATURES_OK, Status.DRIVER_OK):
            in_order = in_order and not status & Status.FAILED
            after |= bit if in_order else 0
        if not in_order:
            kinds.add("status_out_of_order")
    return after, kinds


@pytest.mark.parametrize("status", sorted(legal_statuses()))
def test_every_write_in_every_status_does_what_the_specification_says(rig: FakeRig, status: Status) -> None:
    path, so_far = [], Status(0)
    for bit in (*SEQUENCE, Status.FAILED):
        if status & bit:
            so_far |= bit
            path.append(int(so_far))
    for value in range(1, 256):
        assert walk(rig, tuple(path)) == status
        before = rig.violations.kinds
        got = put(rig, value)
        after = rig.violations.kinds
        recorded = {kind for kind, count in after.items() if count != before.get(kind, 0)}
        assert (got, recorded) == expected(status, value), f"{value:#x} written in {status!r}"


def test_needs_reset_is_not_the_drivers_to_set_or_clear(rig: FakeRig) -> None:
    assert walk(rig, (1, 3, 11, 15 | 64)) == Status(15)
    rig.device._virtio.needs_reset("test", "a test asks for it")
    assert put(rig, 15) == Status(15 | 64)
    assert put(rig, 0) == Status(0)
