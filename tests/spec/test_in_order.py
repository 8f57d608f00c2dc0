# SPDX-License-Identifier: Apache-2.0
"""VIRTIO_F_IN_ORDER (virtio 1.3, 2.7.9 and 2.8.8): buffers are used in the order they came available."""

from __future__ import annotations

from typing import Any

import pytest

from spec.direct import CTRL_QUEUE, RX, TX, Rig, rig
from vdpa_net.testing.guest_driver import PACKED, WANTED
from vdpa_net.testing.ring import DriverRing, Used
from vdpa_net.wire import virtio_pci

IN_ORDER = 1 << virtio_pci.F_IN_ORDER
FORMATS: list[dict[str, Any]] = [
    {"features": WANTED | IN_ORDER, "enabled_features": frozenset({"in_order"})},
    {"features": WANTED | IN_ORDER | PACKED, "enabled_features": frozenset({"in_order", "packed"})},
]


def watched(ring: DriverRing) -> list[Used]:
    """Every used element that is taken from the ring from now on."""
    seen: list[Used] = []
    reap = ring.reap

    def watching() -> list[Used]:
        taken = reap()
        seen.extend(taken)
        return taken

    ring.reap = watching  # type: ignore[method-assign]
    return seen


def in_order(seen: list[Used]) -> bool:
    return all(used.used_index == used.avail_index for used in seen)


@pytest.mark.parametrize("options", FORMATS, ids=["split", "packed"])
class TestInOrder:
    def test_it_is_offered_on_request_and_negotiated(self, options: dict[str, Any]) -> None:
        with rig(**options) as device:
            device.driver.start()
            assert device.driver.features & IN_ORDER
        with rig() as plain:
            assert not plain.device.options.features & IN_ORDER

    def test_buffers_are_used_in_order_over_stops_and_restarts(self, options: dict[str, Any]) -> None:
        with rig(first_index=0xFFF0, **options) as device:
            rings = device.driver.rings
            seen = [watched(ring) for ring in rings]
            states = {queue: rings[queue].state for queue in (RX, TX)}
            for stop_order in ((RX, TX), (TX, RX), (RX, TX)):
                device.driver.start({**states, CTRL_QUEUE: rings[CTRL_QUEUE].state})
                device.exchange(count=9)
                assert device.driver.control(0, 0, b"\1") == 0
                # Under way at the stop: transmitted frames that nobody kicked for.
                for index in range(5):
                    assert device.driver.queues.transmit(bytes([index]) * 200)
                rings[TX].publish()
                device.driver.stop_queues((*stop_order, CTRL_QUEUE))
                states = {queue: rings[queue].state for queue in (RX, TX)}
                device.driver.finish_transmit()
                device.driver.queues.receive()
            assert [in_order(elements) for elements in seen] == [True] * 3
            assert len(seen[TX]) == 3 * 14
            assert device.kinds() == []

    def test_restored_state_with_a_gap_is_recorded(self, options: dict[str, Any]) -> None:
        with rig(**options) as device:
            fresh = device.driver.rings[TX].state
            # Two buffers that another device is said to have taken and never used.
            assert all(device.driver.queues.transmit(b"gap" * 30) for _ in range(2))
            device.driver.rings[TX].publish()
            device.driver.start({RX: device.driver.rings[RX].state, TX: fresh + 2})
            assert device.kinds() == ["restored_gap"]
            entry = device.violations.entries[0]
            assert (entry.where, entry.value) == ("queue 1", fresh + 2)


@pytest.mark.parametrize("options", [{}, FORMATS[1]], ids=["split", "packed"])
def test_rings_begin_anew_after_a_device_reset_wherever_they_stood(options: dict[str, Any]) -> None:
    """A device that kept its used index would return buffers where nobody looks."""
    with rig(**options) as device:
        device.driver.start()
        for count in (5, 3, 8):
            device.exchange(count=count)
            assert device.driver.control(0, 0, b"\1") == 0
            begin_anew(device)
        assert device.kinds() == []


def begin_anew(device: Rig) -> None:
    device.driver.reset()
    for ring in device.driver.rings:
        ring.reset()
    for ring in device.driver.rings[:CTRL_QUEUE]:
        device.driver.queues.forget(ring)
    device.driver.start()
