# SPDX-License-Identifier: Apache-2.0
"""Packed rings through vhost-user socket, vDPA driver and device: sizes, bases, stops, single rings."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from vdpa_net.errors import PeerError
from vdpa_net.testing.guest_cpu import RX, TX
from vdpa_net.testing.vhost_connection import Request
from vdpa_net.testing.vhost_guest import MAC, VhostGuest
from vdpa_net.testing.vhost_side import VhostSide
from vdpa_net.wire.virtio_pci import F_RING_PACKED, F_RING_RESET

FRESH = 0x8000_8000
ODD_SIZE = 201
STATE = struct.Struct("<II")


@pytest.fixture(params=["in-process", "vfio-user"])
def side(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[VhostSide]:
    over_vfio_user = request.param == "vfio-user"
    with VhostSide(tmp_path / "vhost", MAC, over_vfio_user=over_vfio_user, packed=True) as made:
        yield made


@pytest.fixture
def guest(side: VhostSide) -> Iterator[VhostGuest]:
    made = VhostGuest(side.path, packed=True, ring_size=ODD_SIZE)
    yield made
    made.close()


def states(guest: VhostGuest) -> list[int]:
    return [ring.state for ring in guest.rings]


def test_packets_go_round_in_rings_whose_size_is_no_power_of_two(side: VhostSide, guest: VhostGuest) -> None:
    guest.front_end.connect()
    guest.run(300)
    bases = guest.front_end.stop()
    assert bases == states(guest)
    assert side.registers_after_stop() == {
        queue: (base & 0xFFFF, base >> 16) for queue, base in enumerate(bases)
    }
    assert side.violations() == []


def test_rings_go_on_at_the_bases_that_the_stop_gave(side: VhostSide, guest: VhostGuest) -> None:
    guest.front_end.connect()
    for frames in (50, 120, 33):
        guest.run(frames)
        bases = guest.front_end.stop()
        assert bases == states(guest)
        guest.front_end.start(bases)
    guest.run(50)
    assert guest.cpu.ledger.corrupted == []
    assert side.violations() == []


def test_used_half_of_zero_means_that_of_the_avail_half(side: VhostSide, guest: VhostGuest) -> None:
    """As DPDK's virtio_user sends it."""
    guest.front_end.connect([0x8000, 0x8000])
    assert side.registers_before_enable() == dict.fromkeys((RX, TX), (32768, 32768))
    guest.run(40)
    guest.front_end.stop()
    assert side.violations() == []


@pytest.mark.parametrize("base", [0x8000_8000 | ODD_SIZE, 0x7FFF_7FFF])
def test_base_beyond_the_ring_is_a_violation_without_effect(
    side: VhostSide, guest: VhostGuest, base: int
) -> None:
    guest.front_end.connect([FRESH, base])
    guest.run(40)
    assert guest.front_end.stop() == states(guest)
    kinds = [entry.what for entry in side.device.violations.entries]
    assert kinds == ["ring_state_beyond"]


@pytest.mark.parametrize("queue", [RX, TX])
def test_one_ring_is_stopped_and_started_anew_while_the_other_one_runs(
    side: VhostSide, guest: VhostGuest, queue: int
) -> None:
    """What a virtqueue reset comes to behind QEMU."""
    front = guest.front_end
    front.connect()
    guest.run(60)
    answer = front.ask(Request.GET_VRING_BASE, STATE.pack(queue, 0))
    assert STATE.unpack(answer) == (queue, guest.rings[queue].state)
    guest.rings[queue].reset()
    guest.cpu.queues.forget(guest.rings[queue])
    front.request(Request.SET_VRING_BASE, STATE.pack(queue, guest.rings[queue].base))
    front.request(Request.SET_VRING_KICK, struct.pack("<Q", queue), [front.kick_fds[queue]])
    guest.run(60)
    assert front.stop() == states(guest)
    assert side.violations() == []


def test_front_end_that_wants_packed_rings_learns_that_there_are_none(tmp_path: Path) -> None:
    with VhostSide(tmp_path / "vhost", MAC) as split:
        guest = VhostGuest(split.path, packed=True)
        try:
            with pytest.raises(PeerError, match="without packed rings"):
                guest.front_end.connect()
        finally:
            guest.close()


def test_split_ring_of_an_odd_size_is_refused(side: VhostSide) -> None:
    guest = VhostGuest(side.path)
    try:
        guest.front_end.connect()
        guest.front_end.stop()
        with pytest.raises(PeerError, match="SET_VRING_NUM"):
            guest.front_end.request(Request.SET_VRING_NUM, STATE.pack(RX, ODD_SIZE))
    finally:
        guest.close()


def test_queue_reset_is_not_offered_to_front_ends_that_would_keep_it_to_themselves(
    side: VhostSide, guest: VhostGuest
) -> None:
    offered = guest.front_end.get_u64(Request.GET_FEATURES)
    assert side.driver.device_features >> F_RING_RESET & 1
    assert not offered >> F_RING_RESET & 1
    assert offered >> F_RING_PACKED & 1
