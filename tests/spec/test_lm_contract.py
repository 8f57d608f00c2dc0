# SPDX-License-Identifier: Apache-2.0
"""The LM registers' contract, a test per sentence, on split rings and profile `vdpa`.

Everything goes through region reads and writes of a device with its real data plane.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

import pytest

from spec.direct import (
    BASE,
    BLOCK,
    CTRL,
    CTRL_QUEUE,
    END,
    LOG_IOVA,
    MEMORY_BYTES,
    RING_STATE,
    RX,
    TX,
    Rig,
    rig,
)
from vdpa_net.errors import DmaError
from vdpa_net.testing.dirty_log import DirtyLog
from vdpa_net.testing.ring import Segment
from vdpa_net.wire import virtio_net, virtio_pci
from vdpa_net.wire.lm import VDPA

PAGE = 4096


@pytest.fixture
def device() -> Iterator[Rig]:
    with rig() as made:
        yield made


@pytest.fixture
def running() -> Iterator[Rig]:
    with rig() as made:
        made.driver.start()
        yield made


@pytest.fixture
def other_log() -> Iterator[DirtyLog]:
    log = DirtyLog.for_memory_end(MEMORY_BYTES)
    yield log
    log.close()


class TestPlace:
    def test_block_begins_right_behind_the_notify_region_of_its_bar(self, device: Rig) -> None:
        notify = device.driver.capabilities[virtio_pci.CAP_NOTIFY_CFG]
        assert (notify.region, notify.offset, notify.length) == (4, 0x3000, 4 * 1024)
        assert notify.offset + notify.length == BLOCK
        device.write(BASE, 0x1234_5000)
        place = notify.offset + notify.length + 0x10
        assert device.device.region_read(4, place, 4) == bytes.fromhex("00503412")

    def test_block_is_long_enough_and_the_bar_is_a_power_of_two(self, device: Rig) -> None:
        info = device.device.region_info(4)
        assert info is not None
        assert VDPA.registers.size == 0x20 + 4 * 1024
        assert info.size >= BLOCK + VDPA.registers.size
        assert info.size & (info.size - 1) == 0

    def test_layout_is_told_by_the_subsystem_id(self, device: Rig) -> None:
        assert device.device.region_read(7, 0x2C, 4) == bytes.fromhex("f41a0011")

    def test_with_vdpa_off_the_block_is_absent(self) -> None:
        with rig(vdpa=False) as plain:
            info = plain.device.region_info(4)
            assert info is not None
            assert info.size == BLOCK

    @pytest.mark.parametrize("width", [1, 2, 4, 8])
    def test_registers_take_accesses_of_one_two_four_and_eight_bytes(self, device: Rig, width: int) -> None:
        data = bytes(range(1, 17))
        for at in range(0, 16, width):
            device.device.region_write(4, BLOCK + BASE + at, data[at : at + width])
        assert device.device.region_read(4, BLOCK + BASE, 8) == data[:8]
        assert device.device.region_read(4, BLOCK + END, 8) == data[8:]
        for at in range(0, 16, width):
            assert device.device.region_read(4, BLOCK + BASE + at, width) == data[at : at + width]
        assert device.kinds() == []

    @pytest.mark.parametrize("queue", [3, 4, 512, 1023])
    def test_ring_state_of_a_queue_that_does_not_exist_reads_zero_and_takes_nothing(
        self, device: Rig, queue: int
    ) -> None:
        assert device.read(RING_STATE + 4 * queue) == 0
        assert device.kinds() == []
        device.write(RING_STATE + 4 * queue, 0x50005)
        assert device.read(RING_STATE + 4 * queue) == 0
        assert device.kinds() == ["no_such_queue"]


class TestLogging:
    def test_bit_of_page_p_is_bit_p_mod_8_of_byte_p_div_8(self, device: Rig) -> None:
        assert device.start_log(LOG_IOVA, device.map_log()) == 1
        for page in (0, 9, 1023):
            device.device.space.write(page * PAGE, b"x")
        bitmap = os.pread(device.log.fd, device.log.size_bytes, device.log.offset_bytes)
        assert {at: byte for at, byte in enumerate(bitmap) if byte} == {0: 1, 1: 2, 127: 0x80}

    def test_log_may_straddle_mappings(self) -> None:
        with rig() as device:
            fds = [os.memfd_create(f"log{part}") for part in range(2)]
            for part, fd in enumerate(fds):
                os.ftruncate(fd, PAGE)
                device.device.dma_map(LOG_IOVA + part * PAGE, PAGE, fd, 0, readable=True, writable=True)
            assert device.start_log(LOG_IOVA + PAGE - 64, LOG_IOVA + PAGE + 64) == 1
            for page in (511, 512, 1023):
                device.device.space.write(page * PAGE, b"x")
            assert [os.pread(fds[0], 1, PAGE - 1), os.pread(fds[1], 1, 0), os.pread(fds[1], 1, 63)] == [
                b"\x80",
                b"\x01",
                b"\x80",
            ]
            for fd in fds:
                os.close(fd)

    def test_start_uses_base_and_end_of_that_moment(self, device: Rig) -> None:
        end = device.map_log()
        assert device.start_log(LOG_IOVA, end) == 1
        device.write(BASE, 0, 8)
        device.write(END, 0, 8)
        assert device.device.space.log_range() == (LOG_IOVA, end)

    def test_one_written_while_one_switches_to_the_present_range(
        self, running: Rig, other_log: DirtyLog
    ) -> None:
        assert running.start_log(LOG_IOVA, running.map_log()) == 1
        running.exchange()
        end = running.map_log(LOG_IOVA * 2, other_log)
        assert running.start_log(LOG_IOVA * 2, end) == 1
        assert running.log.harvest()
        running.exchange()
        assert running.log.harvest() == set(), "no mark reaches the old log"
        assert other_log.harvest() >= set(running.driver.rings[RX].device_pages())
        running.device.dma_unmap(LOG_IOVA, PAGE)
        running.exchange()
        assert running.kinds() == []

    def test_zero_stops_logging(self, running: Rig) -> None:
        assert running.start_log(LOG_IOVA, running.map_log()) == 1
        running.write(CTRL, 0)
        assert running.read(CTRL) == 0
        running.log.harvest()
        running.device.dma_unmap(LOG_IOVA, PAGE)
        running.exchange()
        assert running.log.peek() == set()
        assert running.kinds() == []

    @pytest.mark.parametrize("logging", [False, True])
    @pytest.mark.parametrize(
        ("base", "end"),
        [
            (LOG_IOVA, LOG_IOVA),
            (LOG_IOVA + 64, LOG_IOVA),
            (LOG_IOVA, LOG_IOVA + 2 * PAGE),
            (LOG_IOVA * 4, LOG_IOVA * 4 + PAGE),
            ((1 << 64) - PAGE, (1 << 64) - 1),
            (3 * LOG_IOVA, 3 * LOG_IOVA + 64),
        ],
        ids=["empty", "backwards", "half mapped", "not mapped", "end of the world", "read-only"],
    )
    def test_impossible_range_keeps_ctrl_is_recorded_and_the_queues_go_on(
        self, running: Rig, other_log: DirtyLog, logging: bool, base: int, end: int
    ) -> None:
        running.device.dma_map(3 * LOG_IOVA, PAGE, other_log.fd, 0, readable=True, writable=False)
        log_end = running.map_log()
        if logging:
            assert running.start_log(LOG_IOVA, log_end) == 1
        assert running.start_log(base, end) == int(logging)
        (violation,) = running.violations.entries
        assert violation.what == "log_start_refused"
        assert f"{base:#x}" in violation.detail
        assert f"{end:#x}" in violation.detail
        running.log.harvest()
        running.exchange()
        assert bool(running.log.harvest()) == logging
        assert not running.common("device_status") & virtio_pci.Status.DEVICE_NEEDS_RESET

    @pytest.mark.parametrize("value", [0x10, 2, 3, 0x1_0001, 0xFFFFFFFF])
    def test_other_values_of_ctrl_are_refused_and_do_not_stop_logging(self, running: Rig, value: int) -> None:
        assert running.start_log(LOG_IOVA, running.map_log()) == 1
        running.write(CTRL, value)
        assert running.read(CTRL) == 1
        running.exchange()
        assert running.log.peek()
        assert running.kinds() == ["bad_logging_ctrl"]

    def test_log_that_is_unmapped_while_logging_is_a_violation(self, running: Rig) -> None:
        assert running.start_log(LOG_IOVA, running.map_log()) == 1
        running.device.dma_unmap(LOG_IOVA, PAGE)
        running.exchange()
        assert set(running.kinds()) == {"log_unmapped"}
        assert running.device.space.log_counters()["log_unmapped"] > 0
        assert not running.common("device_status") & virtio_pci.Status.DEVICE_NEEDS_RESET

    def test_page_beyond_the_end_is_a_violation(self, running: Rig) -> None:
        running.map_log()
        assert running.start_log(LOG_IOVA, LOG_IOVA + 1) == 1
        running.exchange()
        assert set(running.kinds()) == {"log_overflow"}
        assert running.device.space.log_counters()["log_overflow"] > 0
        assert running.log.stray_bytes() == 0

    def test_every_page_that_the_device_wrote_is_marked(self, running: Rig) -> None:
        assert running.start_log(LOG_IOVA, running.map_log()) == 1
        running.driver.queues.post_receive()
        running.memory.track_cpu_writes()
        before = running.memory.snapshot()
        running.exchange(count=12, size=1400)
        assert running.driver.control(virtio_net.CTRL_RX, 0, b"\1") == virtio_net.CTRL_OK
        for queue in (RX, TX):
            running.stop(queue)
        by_cpu, after = running.memory.take_cpu_writes()
        changed = {
            page
            for page in range(MEMORY_BYTES // PAGE)
            if before[page * PAGE : (page + 1) * PAGE] != after[page * PAGE : (page + 1) * PAGE]
        }
        marked = running.log.harvest()
        assert len(changed - by_cpu) > 12, "the device wrote buffers and rings"
        assert changed - by_cpu <= marked
        for ring in running.driver.rings:
            assert set(ring.device_pages()) & marked, "used elements, used index, avail_event"
        assert running.kinds() == []

    def test_ack_of_the_control_queue_is_marked(self, running: Rig) -> None:
        command, ack = running.memory.allocate(PAGE), running.memory.allocate(PAGE)
        running.memory.write(command, b"\0\0\1")
        running.memory.write(ack, b"\xff")
        assert running.start_log(LOG_IOVA, running.map_log()) == 1
        ring = running.driver.rings[CTRL_QUEUE]
        ring.add([Segment(command, 3), Segment(ack, 1, True)])
        ring.publish()
        running.driver.kick(CTRL_QUEUE)
        assert running.memory.read(ack, 1)[0] == virtio_net.CTRL_OK
        assert running.log.harvest() == {ack // PAGE, *ring.device_pages()}

    @pytest.mark.parametrize("how", ["queue_enable", "device_status", "reset", "detach_client"])
    def test_stop_is_a_log_barrier(self, running: Rig, how: str) -> None:
        assert running.start_log(LOG_IOVA, running.map_log()) == 1
        before = running.memory.snapshot()
        running.driver.queues.post_receive()
        for index in range(8):
            assert running.driver.queues.transmit(bytes([index + 1]) * 900)
        running.memory.track_cpu_writes()
        running.driver.publish()
        if how == "queue_enable":
            running.stop(TX)
            running.stop(RX)
        elif how == "device_status":
            running.set_common("device_status", 0)
        else:
            getattr(running.device, how)()
        after = running.memory.snapshot()
        marked = running.log.peek()
        ring_pages = {page for ring in running.driver.rings for page in ring.device_pages()}
        changed = {page for page in ring_pages if before[page * PAGE :][:PAGE] != after[page * PAGE :][:PAGE]}
        assert changed, "the queues were busy"
        assert changed <= marked
        assert running.memory.snapshot() == after
        assert running.log.peek() == marked


def test_ats_on_is_a_capability_and_its_enable_bit_and_nothing_more() -> None:
    with rig(ats=True) as device:
        assert device.device.region_read(7, 0x100, 2) == b"\x0f\x00"
        device.device.region_write(7, 0x106, b"\x00\x80")
        assert device.device.region_read(7, 0x106, 2) == b"\x00\x80"
        device.driver.start()
        device.exchange()
        with pytest.raises(DmaError) as caught:
            device.device.dma_unmap(0, PAGE)
        assert caught.value.errno == errno.ENOENT
