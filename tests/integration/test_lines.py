# SPDX-License-Identifier: Apache-2.0
"""Chains that a device takes four at a time, of which one is bad."""

from __future__ import annotations

import os
import select

import pytest

from vdpa_net.testing.datagram_backend import DatagramLoopback
from vdpa_net.testing.frames import FrameMint
from vdpa_net.testing.guest_cpu import RX, TX
from vdpa_net.testing.guest_driver import PACKED, WANTED
from vdpa_net.testing.loopback_guest import LoopbackGuest
from vdpa_net.testing.net_queues import Shapes
from vdpa_net.testing.ring import Segment

NOT_MAPPED = 1 << 40
FRAMES = 12
PATIENCE_SECONDS = 20
HEADER = bytes(12)


def offer(guest: LoopbackGuest, frames: list[bytes], bad: int) -> None:
    """Frames in a buffer each, and before number `bad` a buffer that is not mapped."""
    net = guest.driver.net[0]
    net.post_receive()
    for frame in frames[:bad]:
        net.transmit(frame)
    guest.driver.rings[TX].add([Segment(NOT_MAPPED, len(HEADER) + 100)])
    for frame in frames[bad:]:
        net.transmit(frame)
    guest.driver.publish()


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
@pytest.mark.parametrize("bad", range(4, 9))
def test_frames_before_a_buffer_that_is_not_mapped_are_sent_and_those_behind_it_are_not(
    packed: bool, bad: int
) -> None:
    features = WANTED | (PACKED if packed else 0)
    mint = FrameMint(bad)
    frames = [mint.frame(number, 60 + number) for number in range(FRAMES)]
    plain = Shapes(plain=True)
    with LoopbackGuest(features=features, shapes=plain, make_backend=DatagramLoopback) as guest:
        guest.start()
        offer(guest, frames, bad)
        assert guest.driver.receive(bad) == frames[:bad]
        guest.stop((TX, RX))
        assert guest.driver.net[0].receive() == []
        assert guest.driver.rings[TX].completed == bad
        (violation,) = guest.device.violations.entries
        assert (violation.where, violation.what, violation.value) == (f"queue {TX}", "dma", NOT_MAPPED)


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
def test_frames_go_on_in_their_order_when_the_map_that_one_of_them_waits_for_has_come(packed: bool) -> None:
    features = WANTED | (PACKED if packed else 0)
    mint = FrameMint(3)
    frames = [mint.frame(number, 60 + number) for number in range(FRAMES)]
    plain = Shapes(plain=True)
    for bad in range(4, 9):
        with LoopbackGuest(features=features, shapes=plain, make_backend=DatagramLoopback) as guest:
            missed, page = os.eventfd(0), os.memfd_create("page")
            late = mint.frame(FRAMES, 100)
            os.pwrite(page, (HEADER + late).ljust(4096, b"\0"), 0)
            guest.handle.watch_misses(missed)
            guest.start()
            offer(guest, frames, bad)
            assert guest.driver.receive(bad) == frames[:bad]
            assert select.select([missed], [], [], PATIENCE_SECONDS)[0], "nothing was asked for"
            guest.handle.dma_map(NOT_MAPPED, 4096, page, 0)
            assert guest.driver.receive(FRAMES + 1 - bad) == [late, *frames[bad:]]
            assert guest.device.violations.entries == []
        os.close(missed)
        os.close(page)
