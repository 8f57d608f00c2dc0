# SPDX-License-Identifier: Apache-2.0
"""A guest with an IOMMU: the device speaks IOVA, the front end's log holds guest physical pages."""

from __future__ import annotations

import os
import select
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from integration.iommu_guest import END, IOVA_BASE, IOVA_BYTES, PATIENCE_S, IommuGuest
from integration.vhost_steps import await_true, run_dry
from vdpa_net.device.packet_hooks import Packet
from vdpa_net.driver import vhost_log
from vdpa_net.errors import PeerError
from vdpa_net.testing.dirty_log import DirtyLog
from vdpa_net.testing.front_end import WANTED_PROTOCOL_FEATURES
from vdpa_net.testing.guest_cpu import RX, TX
from vdpa_net.testing.guest_memory import PAGE_BYTES, GuestMemory
from vdpa_net.testing.vhost_connection import Request
from vdpa_net.testing.vhost_guest import VhostGuest
from vdpa_net.testing.vhost_side import VhostSide

MAC = "52:54:00:00:00:2a"
U64 = struct.Struct("<Q")
STATE = struct.Struct("<II")
REPLY_ACK = 1 << 3


@pytest.fixture(params=[False, True], ids=["in process", "page requests over vfio-user"])
def side(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[VhostSide]:
    with VhostSide(tmp_path / "vhost", MAC, over_vfio_user=request.param) as made:
        yield made


@pytest.fixture
def guest(side: VhostSide) -> Iterator[IommuGuest]:
    made = IommuGuest(side.path)
    yield made
    made.close()


def mapped(side: VhostSide) -> dict[int, int]:
    """IOVAs that the device has below its log: address and size."""
    return {entry.iova: entry.size_bytes for entry in side.device.space.mappings() if entry.iova < 1 << 43}


def changed_pages(memory: GuestMemory, before: bytes) -> set[int]:
    """Guest pages that differ from a snapshot and that the CPU did not write since it was taken."""
    written, now = memory.take_cpu_writes()
    return {
        page
        for place, page in enumerate(memory.page_numbers())
        if before[place * PAGE_BYTES : (place + 1) * PAGE_BYTES]
        != now[place * PAGE_BYTES : (place + 1) * PAGE_BYTES]
    } - written


def test_packets_that_a_hook_sees_wait_for_their_translations_as_well(
    guest: IommuGuest, side: VhostSide
) -> None:
    seen = {False: 0, True: 0}

    def hook(packet: Packet) -> None:
        seen[packet.to_guest] += 1

    remove = side.device.on_packet(hook)
    guest.front_end.connect()
    guest.run(200)
    remove()
    assert guest.front_end.misses
    assert all(count >= 200 for count in seen.values())
    assert guest.cpu.ledger.corrupted == []
    assert guest.front_end.stop() == [ring.used_idx for ring in guest.rings]
    assert side.violations() == []


def test_traffic_runs_on_translations_that_the_device_asked_for(guest: IommuGuest, side: VhostSide) -> None:
    guest.front_end.connect()
    guest.run(200)
    assert guest.cpu.ledger.corrupted == []
    assert guest.front_end.misses
    device_sees = mapped(side)
    assert device_sees
    assert all(IOVA_BASE <= iova < IOVA_BASE + IOVA_BYTES for iova in device_sees)
    assert guest.front_end.stop() == [ring.used_idx for ring in guest.rings]
    assert side.violations() == []


@pytest.mark.parametrize("base", [IOVA_BASE, 1 << 38], ids=["below 4 GiB", "at 256 GiB"])
def test_the_front_ends_log_holds_guest_pages_and_lacks_none(side: VhostSide, base: int) -> None:
    guest = IommuGuest(side.path, base=base)
    guest.front_end.connect()
    guest.run(30)
    log = DirtyLog.for_memory_end(END, PAGE_BYTES)
    guest.front_end.start_logging(log)
    before = guest.physical.snapshot()
    guest.physical.track_cpu_writes()
    guest.run(300)
    bases = guest.front_end.stop()
    marked = log.harvest()
    written = changed_pages(guest.physical, before)
    assert len(written) > 20
    assert written <= marked
    assert guest.memory.pages_behind(guest.rings[RX].device_pages()) <= marked
    assert marked <= set(guest.physical.page_numbers())
    assert bases == [ring.used_idx for ring in guest.rings]
    assert side.violations() == []
    assert log.stray_bytes() == 0
    log.close()
    guest.close()


def test_marks_come_over_while_the_guest_runs(guest: IommuGuest) -> None:
    guest.front_end.connect()
    log = DirtyLog.for_memory_end(END)
    guest.front_end.start_logging(log)
    guest.resume()
    assert guest.cpu.wait_for_frames(50, PATIENCE_S)
    assert await_true(lambda: bool(log.peek()))
    log.harvest()
    assert guest.cpu.wait_for_frames(50, PATIENCE_S)
    assert await_true(lambda: bool(log.peek()))
    guest.cpu.pause()
    log.close()


def test_what_was_written_is_in_the_log_when_an_invalidation_is_acknowledged(
    guest: IommuGuest, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nothing but the invalidation carries marks over.
    monkeypatch.setattr(vhost_log, "PERIOD_S", 2 * PATIENCE_S)
    guest.front_end.connect()
    guest.run(30)
    log = DirtyLog.for_memory_end(END)
    guest.front_end.start_logging(log)
    before = guest.physical.snapshot()
    guest.physical.track_cpu_writes()
    run_dry(guest, 100)
    guest.front_end.invalidate(IOVA_BASE, IOVA_BYTES)
    written = changed_pages(guest.physical, before)
    assert written
    assert written <= log.harvest()
    log.close()


def test_an_invalidation_under_traffic_is_answered_and_asked_for_anew(
    guest: IommuGuest, side: VhostSide
) -> None:
    guest.front_end.connect()
    guest.resume()
    for _ in range(10):
        assert guest.cpu.wait_for_frames(20, PATIENCE_S, PATIENCE_S)
        guest.front_end.invalidate(0, (1 << 64) - 1)
    assert guest.cpu.wait_for_frames(50, PATIENCE_S, PATIENCE_S)
    guest.cpu.pause()
    assert guest.cpu.ledger.corrupted == []
    guest.front_end.stop()
    assert side.violations() == []


def test_an_invalidation_of_size_zero_is_one_of_everything(guest: IommuGuest) -> None:
    """2^64 bytes, an IOMMU's address mask + 1, as they fit into the message."""
    guest.front_end.connect()
    guest.run(30)
    asked = guest.front_end.misses.count(guest.rings[TX].desc)
    guest.front_end.invalidate(0, 0)
    guest.run(30)
    assert guest.front_end.misses.count(guest.rings[TX].desc) > asked


def test_no_page_is_reached_by_a_stale_translation(guest: IommuGuest) -> None:
    guest.front_end.connect()
    # What the device writes between the copy of a page and its invalidation is lost with the old page.
    run_dry(guest, 50)
    left: list[tuple[int, bytes]] = []
    for iova in list(mapped_pages(guest)):
        page = guest.memory.move_page(iova)
        guest.front_end.invalidate(iova)
        left.append((page, b"\xa5" * PAGE_BYTES))
        guest.physical.write(page * PAGE_BYTES, left[-1][1])
    guest.run(100)
    assert guest.cpu.ledger.corrupted == []
    for page, content in left[-100:]:
        assert guest.physical.read(page * PAGE_BYTES, PAGE_BYTES) == content


def mapped_pages(guest: IommuGuest) -> list[int]:
    """Pages of IOVAs that the back end has asked for."""
    return sorted(set(guest.front_end.misses))[:300]


def test_a_page_without_a_translation_breaks_the_ring_and_is_told(side: VhostSide) -> None:
    guest = IommuGuest(side.path)
    guest.front_end.connect()
    error = os.eventfd(0)
    guest.front_end.request(Request.SET_VRING_ERR, U64.pack(TX), [error])
    guest.run(30)
    hole = IOVA_BASE + IOVA_BYTES + (1 << 20)
    head = guest.rings[TX].avail_idx % guest.rings[TX].size
    guest.rings[TX].poke_desc(0, hole, 100, 0, 0)
    guest.rings[TX].poke_avail(head, 0)
    guest.rings[TX].poke_avail_idx(guest.rings[TX].avail_idx + 1)
    guest.front_end.kick(TX)
    assert select.select([error], [], [], PATIENCE_S)[0]
    assert await_true(lambda: hole in guest.front_end.failures)
    assert any(f"{hole:#x}" in text for text in side.violations())
    os.close(error)
    guest.close()
    healthy = IommuGuest(side.path)
    healthy.front_end.connect()
    healthy.run(30)
    healthy.close()


def test_a_front_end_that_answers_late_holds_up_nothing_else(guest: IommuGuest, side: VhostSide) -> None:
    guest.front_end.answering.clear()
    guest.front_end.connect()
    guest.resume()
    assert not side.driver.is_running
    for _ in range(3):
        assert guest.front_end.get_u64(Request.GET_FEATURES)
        guest.front_end.invalidate(0, 1 << 40)
    guest.front_end.answering.set()
    assert guest.cpu.wait_for_frames(50, PATIENCE_S, PATIENCE_S)
    guest.front_end.answering.clear()
    guest.front_end.invalidate(0, 1 << 40)
    assert guest.front_end.get_u64(Request.GET_FEATURES)
    guest.cpu.pause()
    bases = guest.front_end.stop()
    assert bases == [ring.used_idx for ring in guest.rings]
    guest.front_end.answering.set()
    assert side.violations() == []


def test_without_reply_ack_translations_work_as_well(side: VhostSide) -> None:
    guest = IommuGuest(side.path, protocol_features=WANTED_PROTOCOL_FEATURES & ~REPLY_ACK)
    guest.front_end.connect()
    guest.run(50)
    guest.front_end.invalidate(0, 1 << 40)
    guest.run(50)
    guest.close()


def test_a_ring_goes_on_where_it_stood_behind_an_iommu(guest: IommuGuest, side: VhostSide) -> None:
    guest.front_end.connect()
    for _ in range(3):
        guest.run(30)
        guest.front_end.start(guest.front_end.stop())
    guest.run(30)
    assert guest.cpu.ledger.corrupted == []
    assert guest.cpu.ledger.received == sorted(set(guest.cpu.ledger.received))
    assert side.violations() == []


def test_a_log_that_is_replaced_gets_what_is_written_from_then_on(guest: IommuGuest) -> None:
    guest.front_end.connect()
    first, second = DirtyLog.for_memory_end(END), DirtyLog.for_memory_end(2 * END, PAGE_BYTES)
    guest.front_end.start_logging(first)
    guest.run(50)
    guest.front_end.start_logging(second)
    first.harvest()
    before = guest.physical.snapshot()
    guest.physical.track_cpu_writes()
    guest.run(100)
    guest.front_end.stop()
    assert first.harvest() == set()
    assert changed_pages(guest.physical, before) <= second.harvest()
    first.close()
    second.close()


def test_logging_stops_and_starts_behind_an_iommu(guest: IommuGuest, side: VhostSide) -> None:
    guest.front_end.connect()
    for _ in range(3):
        log = DirtyLog.for_memory_end(END)
        guest.front_end.start_logging(log)
        guest.run(20)
        guest.front_end.stop_logging()
        assert log.harvest()
        guest.run(20)
        assert log.harvest() == set()
        log.close()
    assert side.violations() == []


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ((0x1000, 0x800, 0, 3, 2), "whole pages"),
        ((0x1001, 0x1000, 0, 3, 2), "whole pages"),
        ((0x1000, 0, 0, 3, 2), "whole pages"),
        ((0x1000, 0x1000, 0, 3, 2), "in no memory region"),
        ((0x1000, 0x1000, 0x7F4000000000, 0, 2), "permissions 0"),
        ((0x1000, 0x1000, 0x7F4000000000, 9, 2), "permissions 9"),
        ((0x1000, 0x1000, 0x7F4000000001, 3, 2), "user address"),
        ((0x1000, 0x1000, 0, 3, 1), "type 1"),
        ((0x1000, 0x1000, 0, 3, 4), "type 4"),
    ],
)
def test_a_bad_translation_is_refused_by_name(
    guest: IommuGuest, side: VhostSide, fields: tuple[int, ...], what: str
) -> None:
    guest.front_end.connect()
    guest.run(10)
    with pytest.raises(PeerError, match="IOTLB_MSG"):
        guest.front_end._iotlb(*fields)
    assert what in str(side.server.errors[-1])
    guest.run(10)


def test_a_guest_without_an_iommu_follows_one_with_it(side: VhostSide) -> None:
    for _ in range(2):
        with_iommu = IommuGuest(side.path)
        with_iommu.front_end.connect()
        with_iommu.run(20)
        with_iommu.close()
        without = VhostGuest(side.path)
        without.front_end.connect()
        without.run(20)
        without.close()
    assert side.violations() == []


def test_a_device_that_can_not_wait_for_translations_does_not_offer_them(tmp_path: Path) -> None:
    # Over vfio-user, and in a layout without page requests.
    with VhostSide(tmp_path / "vhost", MAC, over_vfio_user=True, profile="ifcvf") as side:
        guest = IommuGuest(side.path)
        assert not guest.front_end.get_u64(Request.GET_FEATURES) >> 33 & 1
        guest.close()
