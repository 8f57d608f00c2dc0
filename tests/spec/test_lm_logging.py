# SPDX-License-Identifier: Apache-2.0
"""LM registers: LM_LOGGING_CTRL, LM_BASE_ADDR, LM_END_ADDR.

A test per sentence of that section of the registers' contract; each docstring says which. Everything goes
through region reads and writes of a device with its real data plane. That each store is followed by
its own mark, and bits are set atomically, is shown where an instruction can come between:
rust/dataplane/tests/memory, and tests/property compares the log bit by bit with what was written.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing

import pytest

from spec.direct import (
    BASE,
    CTRL,
    CTRL_QUEUE,
    END,
    LOG_IOVA,
    MEMORY_BYTES,
    RX,
    TX,
    Rig,
    rig,
)
from vdpa_net.testing.datagram_backend import DatagramLoopback
from vdpa_net.testing.dirty_log import DirtyLog
from vdpa_net.testing.ring import Segment
from vdpa_net.wire import virtio_net, virtio_pci

PAGE = 4096


@pytest.fixture
def long_frames() -> Iterator[Rig]:
    """On a back end that reads into the driver's buffers before it knows what for."""
    with closing(DatagramLoopback()) as backend, rig(mtu=9000, backend=backend) as made:
        made.driver.start()
        yield made


@pytest.fixture
def other_log() -> Iterator[DirtyLog]:
    log = DirtyLog.for_memory_end(MEMORY_BYTES)
    yield log
    log.close()


def test_bit_of_page_p_is_bit_p_mod_8_of_byte_p_div_8(device: Rig) -> None:
    """One bit is one page of 4096 bytes: page p = address >> 12, byte p / 8, bit p % 8."""
    assert device.start_log(LOG_IOVA, device.map_log()) == 1
    for page in (0, 9, 1023):
        device.device.space.write(page * PAGE, b"x")
    bitmap = os.pread(device.log.fd, device.log.size_bytes, device.log.offset_bytes)
    assert {at: byte for at, byte in enumerate(bitmap) if byte} == {0: 1, 1: 2, 127: 0x80}


def test_log_may_straddle_mappings() -> None:
    """[BASE, END) is an IOVA range in the device's own DMA space; it may straddle mappings."""
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


def test_start_uses_base_and_end_of_that_moment(device: Rig) -> None:
    """0 -> 1 starts logging with the BASE and END of that moment."""
    end = device.map_log()
    assert device.start_log(LOG_IOVA, end) == 1
    device.write(BASE, 0, 8)
    device.write(END, 0, 8)
    assert device.device.space.log_range() == (LOG_IOVA, end)


def test_one_written_while_one_switches_to_the_present_range(running: Rig, other_log: DirtyLog) -> None:
    """1 written while 1 switches at once; no mark reaches the old log after the next read was answered."""
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


def test_zero_stops_logging(running: Rig) -> None:
    """1 -> 0 stops it."""
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
    running: Rig, other_log: DirtyLog, logging: bool, base: int, end: int
) -> None:
    """A start with END <= BASE, or not mapped writable, does not happen: CTRL keeps its value, a violation
    records both addresses, the queues go on."""
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
def test_other_values_of_ctrl_are_refused_and_do_not_stop_logging(running: Rig, value: int) -> None:
    """Bits 31:4 must be 0; any other value than on and off is refused, and does not stop logging."""
    assert running.start_log(LOG_IOVA, running.map_log()) == 1
    running.write(CTRL, value)
    assert running.read(CTRL) == 1
    running.exchange()
    assert running.log.peek()
    assert running.kinds() == ["bad_logging_ctrl"]


def test_log_that_is_unmapped_while_logging_is_a_violation(running: Rig) -> None:
    """A log range that is unmapped while logging is `log_unmapped`: counted and reported."""
    assert running.start_log(LOG_IOVA, running.map_log()) == 1
    running.device.dma_unmap(LOG_IOVA, PAGE)
    running.exchange()
    assert set(running.kinds()) == {"log_unmapped"}
    assert running.device.space.log_counters()["log_unmapped"] > 0
    assert not running.common("device_status") & virtio_pci.Status.DEVICE_NEEDS_RESET


def test_page_beyond_the_end_is_a_violation(running: Rig) -> None:
    """A page beyond END is `log_overflow`: counted and reported."""
    running.map_log()
    assert running.start_log(LOG_IOVA, LOG_IOVA + 1) == 1
    running.exchange()
    assert set(running.kinds()) == {"log_overflow"}
    assert running.device.space.log_counters()["log_overflow"] > 0
    assert running.log.stray_bytes() == 0


def test_every_page_that_the_device_wrote_is_marked(running: Rig) -> None:
    """Marked is every page that may have been written: buffers, used elements, used index, avail_event."""
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


def test_receive_buffers_that_were_written_and_then_given_up_are_marked(long_frames: Rig) -> None:
    """Marked is each page of packet buffers, also of receive buffers written and then given up."""
    running = long_frames
    running.exchange(count=1, size=6000)
    assert running.driver.control(virtio_net.CTRL_RX, virtio_net.CTRL_RX_PROMISC, b"\0") == 0
    running.driver.queues.post_receive()
    assert running.start_log(LOG_IOVA, running.map_log()) == 1
    before = running.memory.snapshot()
    running.memory.track_cpu_writes()
    unwanted, wanted = b"\x02" * 12 + b"\xa7" * 6000, b"\xff" * 60
    assert running.driver.send([unwanted, wanted]) == 2
    assert running.driver.receive(1) == [wanted]
    for queue in (RX, TX):
        running.stop(queue)
    by_cpu, after = running.memory.take_cpu_writes()
    changed = {
        page
        for page in range(MEMORY_BYTES // PAGE)
        if before[page * PAGE : (page + 1) * PAGE] != after[page * PAGE : (page + 1) * PAGE]
    }
    given_up = {page for page in changed - by_cpu if b"\xa7" * 200 in after[page * PAGE : (page + 1) * PAGE]}
    assert given_up, "the frame was written before it was found to be unwanted"
    assert changed - by_cpu <= running.log.harvest()


def test_ack_of_the_control_queue_is_marked(running: Rig) -> None:
    """Marked is the control queue's ack."""
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
def test_stop_is_a_log_barrier(running: Rig, how: str) -> None:
    """Stopping a queue, any reset, and the loss of the client complete all marks of all earlier writes."""
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


@pytest.mark.parametrize("width", [1, 2, 4, 8])
def test_ctrl_takes_writes_of_every_width(running: Rig, width: int) -> None:
    """8 bytes act as two of 4, of which the second meets no register."""
    end = running.map_log()
    running.write(BASE, LOG_IOVA, 8)
    running.write(END, end, 8)
    running.write(CTRL, 1, width)
    assert running.read(CTRL, min(width, 4)) == 1
    running.write(CTRL, 0, width)
    assert running.device.space.log_range() is None


def test_log_grows_under_traffic_without_losing_a_page(running: Rig, other_log: DirtyLog) -> None:
    """A front end grows its log by a second 1: each page is in the one or the other log."""
    assert running.start_log(LOG_IOVA, running.map_log()) == 1
    running.driver.queues.post_receive()
    before = running.memory.snapshot()
    running.memory.track_cpu_writes()
    for index in range(6):
        running.driver.send([bytes([index + 1]) * 900])
        if index == 3:
            end = running.map_log(LOG_IOVA * 2, other_log)
            assert running.start_log(LOG_IOVA * 2, end) == 1
    running.driver.receive(6)
    running.driver.finish_transmit()
    for queue in (RX, TX):
        running.stop(queue)
    by_cpu, after = running.memory.take_cpu_writes()
    changed = {
        page
        for page in range(MEMORY_BYTES // PAGE)
        if before[page * PAGE : (page + 1) * PAGE] != after[page * PAGE : (page + 1) * PAGE]
    }
    assert changed - by_cpu <= running.log.harvest() | other_log.harvest()


def test_pages_that_were_marked_are_counted(running: Rig) -> None:
    """Over-marking is legal and counted: marks made, and pages that became dirty by them."""
    assert running.start_log(LOG_IOVA, running.map_log()) == 1
    running.exchange()
    counters = running.device.space.log_counters()
    assert counters["marks"] >= counters["pages_marked"] >= len(running.log.harvest()) > 0
    running.exchange()
    assert running.device.space.log_counters()["marks"] > counters["marks"]
