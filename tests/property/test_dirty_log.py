# SPDX-License-Identifier: Apache-2.0
"""Whatever a guest does with its rings, the device marks every page it writes, and a stop loses nothing."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from vdpa_net.migration.checks import differing_pages
from vdpa_net.testing.frames import MAX_FRAME_BYTES, MIN_FRAME_BYTES, FrameMint
from vdpa_net.testing.guest_cpu import RX, TX, GuestCpu
from vdpa_net.testing.guest_driver import PACKED, WANTED
from vdpa_net.testing.loopback_guest import LoopbackGuest
from vdpa_net.testing.net_queues import Shapes
from vdpa_net.wire import virtio_net, virtio_pci

FEATURE_CHOICES = st.sets(
    st.sampled_from([virtio_net.F_MRG_RXBUF, virtio_pci.F_EVENT_IDX, virtio_pci.F_INDIRECT_DESC])
)
SIZES = st.lists(st.integers(MIN_FRAME_BYTES, MAX_FRAME_BYTES), min_size=1, max_size=40)
FIRST_INDICES = st.one_of(st.just(0), st.integers(0xFFC0, 0xFFFF), st.integers(1, 0xFFFF))

few = settings(max_examples=25, deadline=None)


def guest_without(
    absent: set[int], *, packed: bool, seed: int, queue_size: int, first_index: int
) -> LoopbackGuest:
    features = (WANTED | (PACKED if packed else 0)) & ~virtio_net.bits(absent)
    return LoopbackGuest(seed=seed, features=features, queue_size=queue_size, first_index=first_index)


def send_in_turns(guest: LoopbackGuest, sizes: list[int], seed: int) -> None:
    """Send frames of these sizes, a few at a time, and check each that comes back."""
    mint = FrameMint(seed)
    frames = [mint.frame(seq, size) for seq, size in enumerate(sizes)]
    while frames:
        turn, frames = frames[:6], frames[6:]
        assert guest.driver.send(turn) == len(turn)
        assert guest.driver.receive(len(turn)) == turn
        guest.driver.finish_transmit()


@few
@given(
    sizes=SIZES,
    absent=FEATURE_CHOICES,
    seed=st.integers(0, 2**16),
    queue_size=st.sampled_from([64, 128, 256]),
    first_index=FIRST_INDICES,
    packed=st.booleans(),
)
def test_every_page_that_the_device_writes_is_marked(
    *, sizes: list[int], absent: set[int], seed: int, queue_size: int, first_index: int, packed: bool
) -> None:
    with guest_without(
        absent, packed=packed, seed=seed, queue_size=queue_size, first_index=first_index
    ) as guest:
        guest.start()
        numbers = guest.memory.page_numbers()
        guest.memory.track_cpu_writes()
        assert guest.start_logging()
        _, before = guest.memory.take_cpu_writes()
        send_in_turns(guest, sizes, seed)
        guest.stop()
        by_cpu, after = guest.memory.take_cpu_writes()
        marked = guest.log.harvest()
        written = {numbers[place] for place in differing_pages(before, after)} - by_cpu
        assert written, "the device wrote nothing"
        assert written <= marked
        assert marked <= set(numbers)
        assert guest.log.stray_bytes() == 0
        assert guest.device.violations.entries == []


@few
@given(first_index=FIRST_INDICES, sizes=SIZES, seed=st.integers(0, 2**16), packed=st.booleans())
def test_restored_ring_goes_on_at_its_index(
    first_index: int, sizes: list[int], seed: int, packed: bool
) -> None:
    with guest_without(set(), packed=packed, seed=seed, queue_size=256, first_index=first_index) as guest:
        guest.start()
        send_in_turns(guest, sizes, seed)
        states = guest.stop()
        rings = guest.driver.rings
        assert states == {queue: rings[queue].state for queue in (RX, TX)}
        assert packed or rings[TX].used_idx == (first_index + len(sizes)) % 0x10000
        guest.move(states)
        send_in_turns(guest, sizes, seed + 1)
        assert packed or rings[TX].used_idx == (first_index + 2 * len(sizes)) % 0x10000
        assert guest.device.violations.entries == []


@settings(max_examples=8, deadline=None)
@given(
    first_index=FIRST_INDICES,
    seed=st.integers(0, 2**16),
    frames=st.integers(1, 60),
    plain=st.booleans(),
    stops=st.integers(1, 3),
    packed=st.booleans(),
)
def test_stop_under_load_loses_and_repeats_nothing(
    *, first_index: int, seed: int, frames: int, plain: bool, stops: int, packed: bool
) -> None:
    features = WANTED | (PACKED if packed else 0)
    with LoopbackGuest(
        seed=seed, first_index=first_index, shapes=Shapes(plain=plain), features=features
    ) as guest:
        guest.start()
        cpu = GuestCpu(guest.driver.queues, seed=seed)
        try:
            for _ in range(stops):
                cpu.run(guest.driver.wires())
                assert cpu.wait_for_frames(frames)
                cpu.pause(leave_unsent=6)
                # Transmit first: what is drained comes back while receive buffers last.
                states = guest.stop((TX, RX))
                assert states == {queue: guest.driver.rings[queue].state for queue in (RX, TX)}
                guest.move(states)
            cpu.run(guest.driver.wires(), sending=False)
            cpu.stop_sending()
            assert cpu.wait_for(
                lambda ledger: len(ledger.completed) == len(ledger.sent) == len(ledger.received)
            )
            cpu.pause()
        finally:
            cpu.close()
        everything = list(range(len(cpu.ledger.sent)))
        assert cpu.ledger.completed == cpu.ledger.received == everything
        assert cpu.ledger.corrupted == guest.driver.queues.rx_damaged == guest.driver.queues.tx_damaged == []
