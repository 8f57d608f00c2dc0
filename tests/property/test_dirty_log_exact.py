# SPDX-License-Identifier: Apache-2.0
"""The dirty log bit by bit: it names exactly the pages that the memory management unit saw the device write.

Whatever sizes, offsets, splits, indirect tables and mergeable buffers a guest uses, in both ring formats,
with buffers and rings over page boundaries, and over a stop and a restore elsewhere.
"""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from property.exact_log import exact_log
from vdpa_net.testing.frames import MAX_FRAME_BYTES, MIN_FRAME_BYTES, FrameMint
from vdpa_net.testing.guest_cpu import RX, TX
from vdpa_net.testing.guest_driver import CTRL, PACKED, WANTED
from vdpa_net.testing.loopback_guest import LoopbackGuest
from vdpa_net.wire import virtio_net, virtio_pci

IN_ORDER = 1 << virtio_pci.F_IN_ORDER
TURN_FRAMES = 5

FEATURES = st.builds(
    lambda absent, packed, in_order: (
        (WANTED | (PACKED if packed else 0) | (IN_ORDER if in_order else 0)) & ~virtio_net.bits(absent)
    ),
    st.sets(st.sampled_from([virtio_net.F_MRG_RXBUF, virtio_pci.F_EVENT_IDX, virtio_pci.F_INDIRECT_DESC])),
    st.booleans(),
    st.booleans(),
)
SIZES = st.lists(st.integers(MIN_FRAME_BYTES, MAX_FRAME_BYTES), min_size=1, max_size=30)
FIRST_INDICES = st.one_of(st.just(0), st.integers(0xFFC0, 0xFFFF), st.integers(1, 0xFFFF))


def exchange(guest: LoopbackGuest, sizes: list[int], seed: int) -> None:
    mint = FrameMint(seed)
    frames = [mint.frame(seq, size) for seq, size in enumerate(sizes)]
    for start in range(0, len(frames), TURN_FRAMES):
        turn = frames[start : start + TURN_FRAMES]
        assert guest.driver.send(turn) == len(turn)
        assert guest.driver.receive(len(turn)) == turn
        guest.driver.finish_transmit()


def logged(guest: LoopbackGuest, sizes: list[int], seed: int) -> dict[int, int]:
    """Traffic, a control command and a stop while it is logged; the ring states. The log must be exact."""
    guest.log.harvest()
    with exact_log(guest) as marked:
        exchange(guest, sizes, seed)
        assert guest.driver.control(virtio_net.CTRL_RX, virtio_net.CTRL_RX_PROMISC, b"\1") == 0
        states = guest.stop((TX, RX, CTRL))
    pages = {page for queue in (RX, TX) for page in guest.driver.rings[queue].device_pages()}
    assert marked & pages
    return states


@settings(max_examples=30, deadline=None)
@given(
    features=FEATURES,
    sizes=SIZES,
    later_sizes=SIZES,
    seed=st.integers(0, 2**16),
    first_index=FIRST_INDICES,
    queue_size=st.sampled_from([64, 256]),
    odd=st.integers(0, 40),
)
def test_log_names_exactly_the_pages_that_were_written(
    *,
    features: int,
    sizes: list[int],
    later_sizes: list[int],
    seed: int,
    first_index: int,
    queue_size: int,
    odd: int,
) -> None:
    if features & PACKED:
        queue_size -= odd
    with LoopbackGuest(seed=seed, features=features, queue_size=queue_size, first_index=first_index) as guest:
        guest.start()
        states = logged(guest, sizes, seed)
        rings = guest.driver.rings
        assert states == {queue: rings[queue].state for queue in (RX, TX, CTRL)}
        assert guest.device.violations.entries == []
        guest.move(states)
        states = logged(guest, later_sizes, seed + 1)
        assert states == {queue: rings[queue].state for queue in (RX, TX, CTRL)}
        assert all(ring.unexpected == [] for ring in rings)
        assert guest.device.violations.entries == []
