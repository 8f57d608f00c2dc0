# SPDX-License-Identifier: Apache-2.0
"""When a device asks for the translations of a guest with an IOMMU, and when not any more."""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from integration.iommu_guest import IommuGuest
from integration.vhost_steps import await_true
from vdpa_net.testing.frames import FrameMint
from vdpa_net.testing.front_end_iommu import IommuFrontEnd
from vdpa_net.testing.guest_cpu import RX, TX
from vdpa_net.testing.guest_memory import PAGE_BYTES
from vdpa_net.testing.net_queues import HEADER_BYTES, LARGE_BUFFER_BYTES
from vdpa_net.testing.ring import Segment
from vdpa_net.testing.vhost_side import VhostSide

MAC = "52:54:00:00:00:2a"
U64 = struct.Struct("<Q")
LITTLE_S = 0.2
FRAME_BYTES = 100
FRAMES = 6


class SlowFrontEnd(IommuFrontEnd):
    """Answers nothing about some pages before the device has had the time to do without them.

    `turns` has the turn of the receive buffer of each such page; `late` are the pages that were asked for and
    whose buffer has come back before the answer.
    """

    turns: dict[int, int]
    late: list[int]

    def negotiate(self) -> None:
        """As any front end."""
        self.late = []
        super().negotiate()

    def _answer_iotlb(self, payload: bytes) -> bool:
        page = U64.unpack_from(payload)[0]
        if page in self.turns:
            deadline = time.monotonic() + LITTLE_S
            while self.rings[RX].used_idx <= self.turns[page] and time.monotonic() < deadline:
                time.sleep(LITTLE_S / 100)
            if self.rings[RX].used_idx > self.turns[page]:
                self.late.append(page)
        return super()._answer_iotlb(payload)


@pytest.fixture(params=[False, True], ids=["in process", "page requests over vfio-user"])
def side(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[VhostSide]:
    with VhostSide(tmp_path / "vhost", MAC, over_vfio_user=request.param) as made:
        yield made


@pytest.fixture
def guest(side: VhostSide) -> Iterator[IommuGuest]:
    made = IommuGuest(side.path, front_end=SlowFrontEnd)
    yield made
    made.close()


def test_a_buffer_does_not_come_back_before_what_was_asked_for_it(guest: IommuGuest, side: VhostSide) -> None:
    """A driver unmaps what it has back: a request that an IOMMU gets after that is a fault of the device."""
    front_end = guest.front_end
    assert isinstance(front_end, SlowFrontEnd)
    # Packets leave the second page of each buffer alone. Misses are told in the order of their addresses: the
    # later a buffer's turn, the lower it lies, so that several are asked for before the first packet comes.
    slots = [guest.memory.allocate(2 * PAGE_BYTES) for _ in range(FRAMES)]
    front_end.turns = {slot + PAGE_BYTES: turn for turn, slot in enumerate(reversed(slots))}
    for slot in reversed(slots):
        guest.rings[RX].add([Segment(slot + PAGE_BYTES - 1000, LARGE_BUFFER_BYTES, True)])
    for seq in range(FRAMES):
        at = guest.memory.allocate(PAGE_BYTES)
        guest.memory.write(at, bytes(HEADER_BYTES) + FrameMint(seq).frame(seq, FRAME_BYTES))
        guest.rings[TX].add([Segment(at, HEADER_BYTES + FRAME_BYTES)])
    for ring in guest.rings:
        ring.publish()
    front_end.connect()
    front_end.kick(TX)
    assert await_true(lambda: guest.rings[RX].used_idx == FRAMES)
    assert front_end.late == []
    assert set(front_end.turns) <= set(front_end.misses)
    assert [used.written for used in guest.rings[RX].reap()] == [HEADER_BYTES + FRAME_BYTES] * FRAMES
    assert side.violations() == []
