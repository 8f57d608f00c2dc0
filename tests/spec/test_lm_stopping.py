# SPDX-License-Identifier: Apache-2.0
"""LM registers: stopping.

A test per sentence of that section of the registers' contract; each docstring says which. Everything goes
through region reads and writes of a device with its real data plane.
"""

from __future__ import annotations

import threading

import pytest

from spec.direct import (
    BLOCK,
    LOG_IOVA,
    RING_STATE,
    RX,
    TX,
    Rig,
    rig,
)
from vdpa_net.wire import virtio_pci
from vdpa_net.wire.lm import VDPA


def state(avail: int, used: int | None = None) -> int:
    return (avail if used is None else used) << 16 | avail


def test_queue_enable_zero_keeps_the_state_and_one_resumes_there(running: Rig) -> None:
    """queue_enable = 0 stops a queue and keeps its state; queue_enable = 1 resumes there."""
    running.exchange(count=3)
    kept = running.stop(TX)
    running.set_common("queue_enable", 1)
    assert running.common("queue_enable") == 1
    assert running.read(RING_STATE + 4 * TX) == kept
    running.exchange(count=3)
    assert running.stop(TX) == state(6)
    assert running.kinds() == []


def test_queue_enable_zero_is_for_vdpa_on_only() -> None:
    """virtio forbids drivers the write, hence: with vdpa=on only."""
    with rig(vdpa=False) as plain:
        plain.driver.start()
        plain.set_common("queue_select", TX)
        plain.set_common("queue_enable", 0)
        assert plain.common("queue_enable") == 1
        plain.exchange()
        assert plain.kinds() == ["bad_queue_enable"]


def test_device_reset_returns_every_queue_to_its_initial_state(running: Rig) -> None:
    """A device reset stops a queue and returns it to the initial state."""
    running.exchange(count=3)
    running.set_common("device_status", 0)
    assert [running.read(RING_STATE + 4 * queue) for queue in range(3)] == [0, 0, 0]
    running.set_common("queue_select", TX)
    assert running.common("queue_enable") == 0


def test_no_dma_of_a_queue_follows_its_stop(running: Rig) -> None:
    """No DMA of the queue is in flight when a later read is answered, and none follows."""
    running.exchange(count=2)
    for queue in (RX, TX):
        running.stop(queue)
    assert running.driver.queues.transmit(b"late" * 20)
    running.driver.publish()
    running.driver.kick(TX)
    running.driver.kick(RX)
    before = running.memory.snapshot()
    running.device.space.barrier()
    assert running.read(RING_STATE + 4 * TX) == state(2)
    assert running.memory.snapshot() == before
    assert running.kinds() == [], "a kick that comes late is nobody's fault"


def test_stop_drains_transmit_and_publishes_it(running: Rig) -> None:
    """A stop drains transmit to completion and publishes it."""
    for index in range(20):
        assert running.driver.queues.transmit(bytes([index]) * 60)
    running.driver.rings[TX].publish()
    assert running.stop(TX) == state(20), "without any kick"
    assert running.driver.rings[TX].used_idx == 20


@pytest.mark.parametrize("order", [(RX, TX), (TX, RX)])
def test_last_avail_idx_equals_used_idx_after_a_stop(running: Rig, order: tuple[int, int]) -> None:
    """Only untouched receive buffers are handed back: last_avail_idx == used_idx afterwards."""
    running.driver.queues.post_receive()
    running.driver.publish()
    for index in range(30):
        assert running.driver.queues.transmit(bytes([index]) * 60)
    running.driver.publish()
    for queue in order:
        value = running.stop(queue)
        assert value & 0xFFFF == value >> 16 == running.driver.rings[queue].used_idx


def test_no_packet_is_repeated_or_skipped_over_a_stop(running: Rig) -> None:
    """No packet is sent twice, none is skipped."""
    frames = [index.to_bytes(2, "big") * 100 for index in range(20)]
    assert running.driver.send(frames[:10]) == 10
    running.stop(TX)
    assert running.driver.send(frames[10:]) == 10
    running.set_common("queue_enable", 1)
    assert running.driver.receive(20) == frames
    running.driver.finish_transmit()
    assert running.stop(TX) == state(20)


def test_device_reset_clears_the_block_ctrl_included(running: Rig) -> None:
    """A device reset clears the whole block, CTRL included, after the barrier."""
    assert running.start_log(LOG_IOVA, running.map_log()) == 1
    running.write(RING_STATE + 4 * TX, 5)
    running.set_common("device_status", 0)
    block = running.device.region_read(4, BLOCK, VDPA.registers.size)
    assert block == bytes(VDPA.registers.size)
    running.log.harvest()
    running.device.space.write(0, b"x")
    assert running.log.peek() == set()


def test_stop_is_complete_before_a_later_read_of_another_thread_is_answered(running: Rig) -> None:
    """queue_enable reads 1 until the stop is complete; ring state is final when it reads 0."""
    for index in range(30):
        assert running.driver.queues.transmit(bytes([index]) * 1000)
    running.driver.rings[TX].publish()
    running.set_common("queue_select", TX)
    seen: list[tuple[int, int]] = []

    def watch() -> None:
        while not seen or seen[-1][0]:
            seen.append((running.common("queue_enable"), running.read(RING_STATE + 4 * TX)))

    watcher = threading.Thread(target=watch)
    watcher.start()
    running.set_common("queue_enable", 0)
    watcher.join(10)
    assert seen[-1] == (0, state(30))


def test_stop_that_is_posted_is_complete_for_the_next_read(running: Rig) -> None:
    """A VMM may post the write itself: the device answers no later read before the stop is complete."""
    for index in range(10):
        assert running.driver.queues.transmit(bytes([index]) * 100)
    running.driver.rings[TX].publish()
    running.driver.write_common("queue_select", TX)
    place = running.driver.capabilities[virtio_pci.CAP_COMMON_CFG]
    offset = place.offset + virtio_pci.COMMON_CFG["queue_enable"].offset
    running.driver.handle.write(place.region, offset, bytes(2), posted=True)
    assert running.read(RING_STATE + 4 * TX) == state(10)
    assert running.driver.rings[TX].used_idx == 10
