# SPDX-License-Identifier: Apache-2.0
"""Frames that take several receive buffers, some unwanted, some that have to wait for more buffers.

A device that writes such frames straight into the buffers finds out afterwards that they were not to be
written. The log has to name those pages too.
"""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st

from property.exact_log import exact_log
from vdpa_net.backend import Backend
from vdpa_net.backend.loopback import Loopback
from vdpa_net.testing.datagram_backend import DatagramLoopback
from vdpa_net.testing.guest_cpu import RX, TX
from vdpa_net.testing.guest_driver import PACKED, WANTED
from vdpa_net.testing.loopback_guest import MAC, LoopbackGuest
from vdpa_net.testing.net_queues import Shapes
from vdpa_net.wire import virtio_net

OWN = bytes.fromhex(MAC.replace(":", ""))
OTHER = bytes.fromhex("020000000099")
LONGEST_BYTES = 7800

FRAMES = st.lists(
    st.tuples(st.booleans(), st.sampled_from((60, 1514, 4200, 6000)) | st.integers(60, LONGEST_BYTES)),
    min_size=1,
    max_size=40,
)


def made(number: int, wanted: bool, size: int) -> bytes:
    """A frame whose bytes tell which one it is."""
    return ((OWN if wanted else OTHER) + OTHER + b"\x88\xb5" + bytes([number + 1]) * size)[:size]


@settings(max_examples=60, deadline=None)
@given(
    frames=FRAMES,
    turn_frames=st.sampled_from((5, 40)),
    shapes=st.sampled_from((None, Shapes(plain=True))),
    packed=st.booleans(),
    queue_size=st.sampled_from((64, 256)),
    seed=st.integers(0, 2**16),
    make_backend=st.sampled_from((Loopback, DatagramLoopback)),
)
def test_receive_buffers_that_were_written_and_given_up_are_marked(
    *,
    frames: list[tuple[bool, int]],
    turn_frames: int,
    shapes: Shapes | None,
    packed: bool,
    queue_size: int,
    seed: int,
    make_backend: Callable[[], Backend],
) -> None:
    features = WANTED | (PACKED if packed else 0)
    with LoopbackGuest(
        seed=seed,
        shapes=shapes,
        features=features,
        queue_size=queue_size,
        mtu=LONGEST_BYTES,
        make_backend=make_backend,
    ) as guest:
        guest.start()
        assert guest.driver.control(virtio_net.CTRL_RX, virtio_net.CTRL_RX_PROMISC, b"\0") == 0
        with exact_log(guest):
            whole = [(wanted, made(n, wanted, size)) for n, (wanted, size) in enumerate(frames)]
            exchange(guest, whole, turn_frames)
            guest.stop((TX, RX))
        assert guest.driver.net[0].rx_damaged == []
        assert guest.device.violations.entries == []


def exchange(guest: LoopbackGuest, frames: list[tuple[bool, bytes]], turn_frames: int) -> None:
    """Send them; those that are wanted arrive, in their order and whole.

    Where many are sent at a time, in one buffer each, the device takes and uses chains four at a time.
    """
    while frames:
        sent = guest.driver.send(frame for _, frame in frames[:turn_frames])
        assert sent > 0
        expected = [frame for wanted, frame in frames[:sent] if wanted]
        arrived: list[bytes] = []
        while len(arrived) < len(expected):
            arrived += guest.driver.receive(1)
            # A frame may wait for more buffers than were free.
            guest.driver.net[0].post_receive()
            guest.driver.publish()
        assert arrived == expected
        guest.driver.finish_transmit()
        frames = frames[sent:]
