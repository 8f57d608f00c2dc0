# SPDX-License-Identifier: Apache-2.0
"""The LM registers' contract, a test per sentence: ring state, stopping, starting again. Split rings."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from spec.direct import (
    BLOCK,
    CTRL_QUEUE,
    LOG_IOVA,
    RING_STATE,
    RX,
    TX,
    Rig,
    eventfd_count,
    rig,
)
from vdpa_net.device.announce import rarp_frame
from vdpa_net.testing.guest_driver import WANTED
from vdpa_net.wire import virtio_pci
from vdpa_net.wire.lm import VDPA

RARP = rarp_frame(bytes.fromhex("525400000001"))


@pytest.fixture
def device() -> Iterator[Rig]:
    with rig() as made:
        yield made


@pytest.fixture
def running() -> Iterator[Rig]:
    with rig() as made:
        made.driver.start()
        yield made


def state(avail: int, used: int | None = None) -> int:
    return (avail if used is None else used) << 16 | avail


class TestRingState:
    def test_split_state_is_last_avail_idx_below_and_used_idx_above(self, running: Rig) -> None:
        running.exchange(count=5)
        assert running.stop(TX) == 5 << 16 | 5

    def test_queue_starts_at_the_state_written_before_queue_enable(self) -> None:
        with rig(first_index=0xFFFE) as device:
            device.driver.start({RX: state(0xFFFE), TX: state(0xFFFE)})
            device.driver.queues.post_receive()
            assert device.driver.queues.transmit(b"z" * 60)
            device.driver.publish()
            device.driver.finish_transmit()
            assert device.stop(TX) == state(0xFFFF)
            assert device.driver.rings[TX].used_idx == 0xFFFF
            assert device.kinds() == []

    def test_index_wraps_from_the_state_written(self) -> None:
        with rig(first_index=0xFFFE) as device:
            device.driver.start({RX: state(0xFFFE), TX: state(0xFFFE)})
            for index in range(4):
                assert device.driver.queues.transmit(bytes([index]) * 60)
            device.driver.publish()
            device.driver.finish_transmit()
            assert device.stop(TX) == state(2)

    def test_queue_without_a_written_state_starts_at_zero(self, device: Rig) -> None:
        assert [device.read(RING_STATE + 4 * queue) for queue in range(3)] == [0, 0, 0]
        device.driver.start()
        device.exchange(count=1)
        assert device.stop(TX) == state(1)

    def test_state_written_before_queue_enable_reads_back(self, device: Rig) -> None:
        device.write(RING_STATE + 4, 0x0007_0009)
        assert device.read(RING_STATE + 4) == 0x0007_0009
        assert device.kinds() == []

    def test_state_written_while_the_queue_runs_is_recorded_without_effect(self, running: Rig) -> None:
        running.exchange(count=2)
        running.write(RING_STATE + 4 * TX, 0x0100_0100)
        assert running.kinds() == ["ring_state_while_running"]
        running.exchange(count=2)
        assert running.stop(TX) == state(4)

    @pytest.mark.parametrize("written", [state(0x7, 0x6), 0])
    def test_restored_used_idx_that_disagrees_with_memory_is_recorded(self, written: int) -> None:
        with rig(first_index=7) as device:
            device.driver.start({RX: state(7), TX: written})
            assert device.kinds() == ["used_idx"]
            assert device.violations.entries[0].where == "queue 1"
            assert device.violations.entries[0].value == written >> 16

    def test_read_while_it_runs_is_a_snapshot(self, running: Rig) -> None:
        assert running.read(RING_STATE + 4 * TX) == 0
        running.exchange(count=3)
        assert running.read(RING_STATE + 4 * TX) == state(3)
        running.exchange(count=3)
        assert running.read(RING_STATE + 4 * TX) == state(6)

    def test_read_after_a_stop_is_final_and_agrees_with_memory(self, running: Rig) -> None:
        running.exchange(count=3)
        final = {queue: running.stop(queue) for queue in (RX, TX, CTRL_QUEUE)}
        for queue, value in final.items():
            assert value >> 16 == running.driver.rings[queue].used_idx
            assert running.read(RING_STATE + 4 * queue) == value


class TestStopping:
    def test_queue_enable_zero_keeps_the_state_and_one_resumes_there(self, running: Rig) -> None:
        running.exchange(count=3)
        kept = running.stop(TX)
        running.set_common("queue_enable", 1)
        assert running.common("queue_enable") == 1
        assert running.read(RING_STATE + 4 * TX) == kept
        running.exchange(count=3)
        assert running.stop(TX) == state(6)
        assert running.kinds() == []

    def test_queue_enable_zero_is_for_vdpa_on_only(self) -> None:
        with rig(vdpa=False) as plain:
            plain.driver.start()
            plain.set_common("queue_select", TX)
            plain.set_common("queue_enable", 0)
            assert plain.common("queue_enable") == 1
            plain.exchange()
            assert plain.kinds() == ["bad_queue_enable"]

    def test_device_reset_returns_every_queue_to_its_initial_state(self, running: Rig) -> None:
        running.exchange(count=3)
        running.set_common("device_status", 0)
        assert [running.read(RING_STATE + 4 * queue) for queue in range(3)] == [0, 0, 0]
        running.set_common("queue_select", TX)
        assert running.common("queue_enable") == 0

    def test_no_dma_of_a_queue_follows_its_stop(self, running: Rig) -> None:
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

    def test_stop_drains_transmit_and_publishes_it(self, running: Rig) -> None:
        for index in range(20):
            assert running.driver.queues.transmit(bytes([index]) * 60)
        running.driver.rings[TX].publish()
        assert running.stop(TX) == state(20), "without any kick"
        assert running.driver.rings[TX].used_idx == 20

    @pytest.mark.parametrize("order", [(RX, TX), (TX, RX)])
    def test_last_avail_idx_equals_used_idx_after_a_stop(self, running: Rig, order: tuple[int, int]) -> None:
        running.driver.queues.post_receive()
        running.driver.publish()
        for index in range(30):
            assert running.driver.queues.transmit(bytes([index]) * 60)
        running.driver.publish()
        for queue in order:
            value = running.stop(queue)
            assert value & 0xFFFF == value >> 16 == running.driver.rings[queue].used_idx

    def test_no_packet_is_repeated_or_skipped_over_a_stop(self, running: Rig) -> None:
        frames = [index.to_bytes(2, "big") * 100 for index in range(20)]
        assert running.driver.send(frames[:10]) == 10
        running.stop(TX)
        assert running.driver.send(frames[10:]) == 10
        running.set_common("queue_enable", 1)
        assert running.driver.receive(20) == frames
        running.driver.finish_transmit()
        assert running.stop(TX) == state(20)

    def test_device_reset_clears_the_block_ctrl_included(self, running: Rig) -> None:
        assert running.start_log(LOG_IOVA, running.map_log()) == 1
        running.write(RING_STATE + 4 * TX, 5)
        running.set_common("device_status", 0)
        block = running.device.region_read(4, BLOCK, VDPA.registers.size)
        assert block == bytes(VDPA.registers.size)
        running.log.harvest()
        running.device.space.write(0, b"x")
        assert running.log.peek() == set()


class TestStartingAgain:
    def test_ring_is_scanned_without_a_kick(self, running: Rig) -> None:
        running.driver.queues.post_receive()
        running.driver.publish()
        running.stop(TX)
        assert running.driver.queues.transmit(b"unkicked" * 10)
        running.driver.rings[TX].publish()
        running.set_common("queue_enable", 1)
        assert running.driver.receive(1) == [b"unkicked" * 10]

    def test_restored_start_raises_an_interrupt_per_queue(self) -> None:
        with rig(first_index=7) as device:
            device.driver.start({RX: state(7), TX: state(7)})
            assert [eventfd_count(device.driver.call_fds[queue + 1]) for queue in (RX, TX)] == [1, 1]

    def test_fresh_start_raises_none(self, running: Rig) -> None:
        assert [eventfd_count(fd) for fd in running.driver.call_fds] == [0, 0, 0, 0]

    def test_restored_start_announces_the_configured_mac_with_rarp(self) -> None:
        with rig(first_index=7) as device:
            device.driver.start({RX: state(7), TX: state(7)})
            assert device.first_frame() == RARP

    def test_carrier_is_off_until_driver_ok_and_off_again_after_a_reset(self, device: Rig) -> None:
        assert not device.backend.carrier
        device.driver.start()
        assert device.backend.carrier
        device.set_common("device_status", 0)
        assert not device.backend.carrier

    def test_what_the_back_end_had_queued_before_driver_ok_is_dropped(self, running: Rig) -> None:
        for index in range(3):
            assert running.driver.queues.transmit(bytes([index]) * 60)
        running.driver.publish()
        running.driver.finish_transmit()
        events: list[object] = []
        running.device.on_event(
            lambda name, info: events.append(info["packets_flushed"]) if name == "driver_ok" else None
        )
        states = {TX: running.stop(TX)}
        running.driver.start(states)
        assert events == [3]
        assert running.first_frame() == RARP, "the first frame is one of after the start"

    @pytest.mark.parametrize("with_it", [True, False])
    def test_features_ok_is_granted_with_and_without_access_platform(self, with_it: bool) -> None:
        features = WANTED if with_it else WANTED & ~(1 << virtio_pci.F_ACCESS_PLATFORM)
        with rig(features=features) as device:
            device.driver.start()
            assert bool(device.driver.features >> virtio_pci.F_ACCESS_PLATFORM & 1) == with_it
            device.exchange()
