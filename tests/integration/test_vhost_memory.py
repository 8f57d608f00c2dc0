# SPDX-License-Identifier: Apache-2.0
"""Memory of a vhost-user front end that is cut anew while its rings run: removed, and added again."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from integration.vhost_steps import PATIENCE_S, await_true, connected_guest, enable, get_base, offer
from vdpa_net.driver import memory_rest
from vdpa_net.testing.guest_cpu import RX, TX
from vdpa_net.testing.guest_memory import Region
from vdpa_net.testing.vhost_connection import Request
from vdpa_net.testing.vhost_guest import LAYOUT, MAC, VhostGuest
from vdpa_net.testing.vhost_side import VhostSide

REGION = struct.Struct("<QQQQ")
NEEDS_RESET = 64


@pytest.fixture(params=["in-process", "vfio-user", "ifcvf"])
def side(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[VhostSide]:
    with VhostSide(
        tmp_path / "vhost",
        MAC,
        over_vfio_user=request.param == "vfio-user",
        profile="ifcvf" if request.param == "ifcvf" else "vdpa",
    ) as made:
        yield made


@pytest.fixture(params=[False, True], ids=["split", "packed"])
def guest(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[VhostGuest]:
    with VhostSide(tmp_path / "vhost", MAC, packed=request.param) as side:
        with connected_guest(side, packed=request.param) as made:
            yield made
        assert side.violations() == []


@pytest.fixture
def any_guest(side: VhostSide) -> Iterator[VhostGuest]:
    with connected_guest(side) as made:
        yield made


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rings rest for as long as it takes, however long this test is kept from sending its next message."""
    monkeypatch.setattr(memory_rest, "REST_S", 2 * PATIENCE_S)


def parts(region: Region, *cuts: int) -> list[Region]:
    """The region, cut at these offsets."""
    edges = [0, *cuts, region.size_bytes]
    return [
        Region(region.gpa + start, end - start, region.file_offset + start)
        for start, end in itertools.pairwise(edges)
    ]


def change(guest: VhostGuest, request: Request, *regions: Region) -> None:
    """REM_MEM_REG or ADD_MEM_REG of each of these, and wait for the answer to each."""
    for region in regions:
        user = guest.front_end.user_address(region.gpa)
        description = REGION.pack(region.gpa, region.size_bytes, user, region.file_offset)
        guest.front_end.request(request, bytes(8) + description, [guest.memory.fd])


def remove(guest: VhostGuest, *regions: Region) -> None:
    change(guest, Request.REM_MEM_REG, *regions)


def add(guest: VhostGuest, *regions: Region) -> None:
    change(guest, Request.ADD_MEM_REG, *regions)


def all_is_sent(guest: VhostGuest) -> bool:
    return await_true(lambda: guest.rings[TX].in_flight == 0)


@pytest.mark.usefixtures("patient")
def test_memory_is_cut_anew_under_traffic_and_nothing_is_lost(guest: VhostGuest) -> None:
    whole = guest.memory.regions[1]
    shapes = [parts(whole, 4 << 20), parts(whole, 1 << 20, 3 << 20), [whole]]
    guest.resume()
    assert guest.cpu.wait_for_frames(20)
    before = [whole]
    for shape in 3 * shapes:
        remove(guest, *before)
        add(guest, *shape)
        assert guest.cpu.wait_for_frames(20)
        before = shape
    guest.cpu.pause()
    assert guest.cpu.ledger.corrupted == []


@pytest.mark.usefixtures("patient")
def test_what_is_offered_while_its_memory_is_gone_is_sent_when_it_is_back(
    any_guest: VhostGuest, side: VhostSide
) -> None:
    guest, halves = any_guest, parts(any_guest.memory.regions[1], 4 << 20)
    guest.run(10)
    remove(guest, guest.memory.regions[1])
    offer(guest, 0, 5)
    add(guest, *halves)
    assert all_is_sent(guest)
    guest.cpu.queues.post_receive()
    guest.run(10)
    assert side.violations() == []
    assert guest.front_end.get_u64(Request.GET_STATUS) & NEEDS_RESET == 0


@pytest.mark.usefixtures("patient")
def test_rings_rest_until_all_that_went_is_back(guest: VhostGuest) -> None:
    low, high = guest.memory.regions
    guest.run(10)
    remove(guest, low, high)
    add(guest, high)
    offer(guest, 0, 5)
    assert guest.rings[TX].in_flight == 5
    add(guest, low)
    assert all_is_sent(guest)


def test_memory_that_a_guest_gives_up_for_good_stops_no_ring_for_long(guest: VhostGuest) -> None:
    guest.run(10)
    remove(guest, guest.memory.regions[0])
    offer(guest, 0, 5)
    assert all_is_sent(guest)
    guest.run(10)


def test_a_ring_whose_memory_never_comes_back_breaks(any_guest: VhostGuest, side: VhostSide) -> None:
    any_guest.run(10)
    remove(any_guest, any_guest.memory.regions[1])
    offer(any_guest, 0, 1)
    any_guest.await_status(0xF | NEEDS_RESET)
    assert side.violations() != []


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("disable_first", [True, False])
def test_a_resting_ring_that_is_stopped_tells_where_it_stands(guest: VhostGuest, disable_first: bool) -> None:
    guest.run(30)
    remove(guest, *guest.memory.regions)
    offer(guest, 0, 3)
    if disable_first:
        for queue in (RX, TX):
            enable(guest, queue, 0)
    bases = [get_base(guest, queue) for queue in (RX, TX)]
    add(guest, *guest.memory.regions)
    assert guest.rings[TX].in_flight == 3
    assert bases == [ring.base for ring in guest.rings]
    guest.front_end.start(bases)
    guest.run(30)
    assert guest.cpu.ledger.corrupted == []


@pytest.mark.usefixtures("patient")
def test_a_whole_table_brings_back_what_was_removed(guest: VhostGuest) -> None:
    regions = guest.memory.regions
    guest.run(10)
    remove(guest, *regions)
    offer(guest, 0, 5)
    users = [guest.front_end.user_address(region.gpa) for region in regions]
    table = struct.pack("<II", len(regions), 0) + b"".join(
        REGION.pack(region.gpa, region.size_bytes, user, region.file_offset)
        for region, user in zip(regions, users, strict=True)
    )
    guest.front_end.request(Request.SET_MEM_TABLE, table, [guest.memory.fd] * len(LAYOUT))
    assert all_is_sent(guest)
    guest.run(10)


@pytest.mark.usefixtures("patient")
def test_a_disabled_ring_takes_packets_again_when_its_memory_is_back(guest: VhostGuest) -> None:
    guest.run(10)
    enable(guest, TX, 0)
    offer(guest, 0, 2)
    assert all_is_sent(guest)
    remove(guest, guest.memory.regions[1])
    offer(guest, 0, 3)
    add(guest, guest.memory.regions[1])
    assert all_is_sent(guest)


@pytest.mark.usefixtures("patient")
def test_a_front_end_that_leaves_while_its_rings_rest_leaves_nothing_behind(side: VhostSide) -> None:
    for _ in range(2):
        guest = VhostGuest(side.path)
        guest.front_end.connect()
        guest.run(10)
        remove(guest, guest.memory.regions[1])
        guest.close()
    assert side.violations() == []
