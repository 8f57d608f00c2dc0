# SPDX-License-Identifier: Apache-2.0
"""Virtqueue reset (virtio 1.3, 2.6.1 and 4.1.4.3): one queue is as new again, the others go on."""

from __future__ import annotations

from typing import Any

import pytest

from spec.direct import CTRL_QUEUE, LOG_IOVA, RING_STATE, RX, TX, Rig, eventfd_count, rig
from vdpa_net.testing.guest_driver import PACKED, WANTED
from vdpa_net.wire import virtio_pci
from vdpa_net.wire.virtio_pci import MSI_NO_VECTOR

RESET = 1 << virtio_pci.F_RING_RESET
FORMATS: list[dict[str, Any]] = [
    {"features": WANTED | RESET},
    {"features": WANTED | RESET | PACKED, "enabled_features": frozenset({"packed"})},
]


def started(made: Rig) -> Rig:
    made.driver.start()
    made.exchange(count=3)
    return made


def reset(device: Rig, queue: int, value: int = 1) -> None:
    device.set_common("queue_select", queue)
    device.set_common("queue_reset", value)


@pytest.mark.parametrize("options", FORMATS, ids=["split", "packed"])
class TestQueueReset:
    def test_queue_has_its_initial_state_when_the_write_is_answered(self, options: dict[str, Any]) -> None:
        with rig(**options) as device:
            initial = 0x8000_8000 if "enabled_features" in options else 0
            started(device)
            reset(device, TX)
            names = ("queue_reset", "queue_enable", "queue_desc", "queue_driver", "queue_device")
            assert [device.common(name) for name in names] == [0] * 5
            assert device.common("queue_msix_vector") == MSI_NO_VECTOR
            assert device.common("queue_size") == 256
            assert device.read(RING_STATE + 4 * TX) == initial
            assert device.kinds() == []

    @pytest.mark.parametrize("queue", [RX, TX])
    def test_queue_starts_again_with_other_resources_while_the_other_ran_on(
        self, options: dict[str, Any], queue: int
    ) -> None:
        with rig(**options) as device:
            started(device)
            device.driver.reset_queue(queue)
            device.exchange(count=5)
            device.driver.reset_queue(queue)
            device.exchange(count=5)
            assert device.kinds() == []

    def test_control_queue_can_be_reset(self, options: dict[str, Any]) -> None:
        with rig(**options) as device:
            started(device)
            assert device.driver.control(0, 0, b"\1") == 0
            device.driver.reset_queue(CTRL_QUEUE)
            assert device.driver.control(0, 0, b"\0") == 0
            assert device.kinds() == []

    def test_device_neither_uses_nor_announces_anything_afterwards(self, options: dict[str, Any]) -> None:
        with rig(**options) as device:
            started(device)
            reset(device, TX)
            eventfd_count(device.driver.call_fds[TX + 1])
            assert device.driver.queues.transmit(b"late" * 20)
            device.driver.rings[TX].publish()
            device.driver.kick(TX)
            before = device.memory.snapshot()
            device.device.space.barrier()
            assert device.memory.snapshot() == before
            assert eventfd_count(device.driver.call_fds[TX + 1]) == 0

    def test_reset_is_a_log_barrier(self, options: dict[str, Any]) -> None:
        with rig(**options) as device:
            started(device)
            assert device.start_log(LOG_IOVA, device.map_log()) == 1
            ring = device.driver.rings[TX]
            assert device.driver.queues.transmit(b"z" * 60)
            ring.publish()
            reset(device, TX)
            assert ring.completed == 1, "what was there was drained"
            assert set(ring.device_pages()) & device.log.harvest()


def test_reset_of_a_queue_that_does_not_run_changes_nothing() -> None:
    with rig(**FORMATS[0]) as device:
        device.driver.start()
        device.stop(TX)
        reset(device, TX)
        reset(device, TX)
        assert device.read(RING_STATE + 4 * TX) == 0
        assert device.kinds() == []


@pytest.mark.parametrize("value", [0, 2, 0xFFFF])
def test_any_value_but_one_is_recorded_without_effect(value: int) -> None:
    with rig(**FORMATS[0]) as device:
        started(device)
        reset(device, TX, value)
        assert device.kinds() == ["bad_queue_reset"]
        device.exchange()


def test_reset_without_the_feature_is_recorded_without_effect() -> None:
    with rig(features=WANTED) as device:
        started(device)
        reset(device, TX)
        assert device.kinds() == ["queue_reset_not_negotiated"]
        device.exchange()


def test_reset_of_a_queue_that_does_not_exist_is_recorded() -> None:
    with rig(**FORMATS[0]) as device:
        started(device)
        reset(device, 77)
        assert device.kinds() == ["queue_reset_no_such_queue"]
