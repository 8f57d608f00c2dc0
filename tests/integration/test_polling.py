# SPDX-License-Identifier: Apache-2.0
"""Waiting for packets: how long workers poll before they sleep, and how long they let a stream collect."""

from __future__ import annotations

import time

import pytest

from vdpa_net.device.options import DEFAULT_COALESCE_US, DEFAULT_POLL_US, MAX_COALESCE_US, MAX_POLL_US
from vdpa_net.errors import OptionError, StateError
from vdpa_net.testing.frames import FrameMint
from vdpa_net.testing.guest_cpu import TX
from vdpa_net.testing.guest_driver import PACKED, WANTED
from vdpa_net.testing.loopback_guest import LoopbackGuest

ATTEMPTS = 20
STREAMS = 60
STREAM_FRAMES = 400
STRETCH_FRAMES, STRETCH_VISITS = 60, 3


def arrives_without_kick(guest: LoopbackGuest, first: bytes, second: bytes) -> bool:
    """Send one frame as usual and, when it has come, one that nobody kicks for; whether that comes too."""
    assert guest.driver.send([first]) == 1
    assert guest.driver.receive(1) == [first]
    guest.driver.finish_transmit()
    guest.driver.queues.post_receive()
    guest.driver.rings[0].publish()
    assert guest.driver.queues.transmit(second)
    guest.driver.rings[TX].publish()
    try:
        arrived = guest.driver.receive(1, timeout_s=1)
    except StateError:
        guest.driver.kick(TX)
        arrived, came = guest.driver.receive(1), False
    else:
        came = True
    assert arrived == [second]
    guest.driver.finish_transmit()
    return came


@pytest.mark.parametrize("features", [WANTED, WANTED | PACKED], ids=["split", "packed"])
def test_while_it_polls_a_device_needs_no_kick(features: int) -> None:
    mint = FrameMint(1)
    with LoopbackGuest(features=features) as guest:
        guest.device.poll_us = MAX_POLL_US
        guest.start()
        # A machine that is busy for longer than the device polls lets it sleep now and then.
        frames = iter([mint.frame(seq, 200) for seq in range(2 * ATTEMPTS)])
        assert any(arrives_without_kick(guest, next(frames), next(frames)) for _ in range(ATTEMPTS))


def needs_few_kicks(guest: LoopbackGuest, mint: FrameMint) -> bool:
    """Send frames one by one, at a pace of their own; whether there is a stretch of them of which few were
    kicked for, though the device came back several times to take some."""
    queues, transmit = guest.driver.net[0], guest.driver.rings[TX]
    frames, arrived = [mint.frame(seq, 200) for seq in range(STREAM_FRAMES)], list[bytes]()
    # By frame: kicks before it, and visits of the device.
    kicks, visits = [0], [0]
    for frame in frames:
        queues.post_receive()
        if guest.driver.rings[0].publish():
            guest.driver.kick(0)
        if not queues.transmit(frame):
            # The device got no processor for so long.
            guest.driver.finish_transmit()
            assert queues.transmit(frame)
        is_wanted = transmit.publish()
        if is_wanted:
            guest.driver.kick(TX)
        time.sleep(0.0005)
        came = queues.receive()
        arrived += came
        kicks.append(kicks[-1] + is_wanted)
        visits.append(visits[-1] + bool(came))
        for used in transmit.reap():
            queues.take_transmit(used)
    assert arrived + guest.driver.receive(STREAM_FRAMES - len(arrived)) == frames
    guest.driver.finish_transmit()
    return any(
        kicks[end] - kicks[end - STRETCH_FRAMES] < STRETCH_FRAMES / 3
        and visits[end] - visits[end - STRETCH_FRAMES] >= STRETCH_VISITS
        for end in range(STRETCH_FRAMES, STREAM_FRAMES + 1)
    )


@pytest.mark.parametrize("features", [WANTED, WANTED | PACKED], ids=["split", "packed"])
def test_few_packets_of_a_stream_need_a_kick(features: int) -> None:
    with LoopbackGuest(features=features) as guest:
        guest.device.poll_us = 0
        guest.device.coalesce_us = MAX_COALESCE_US
        guest.start()
        # On a machine that falters the pace looks as if it had suffered, and is left alone for a while.
        assert any(needs_few_kicks(guest, FrameMint(attempt)) for attempt in range(STREAMS))


@pytest.mark.parametrize(("poll_us", "coalesce_us"), [(0, 150), (1, 0), (1000, 150), (0, 10_000)])
def test_nothing_is_lost_however_long_a_device_polls_or_collects(poll_us: int, coalesce_us: int) -> None:
    mint = FrameMint(poll_us)
    with LoopbackGuest(queue_size=16) as guest:
        guest.device.poll_us = poll_us
        guest.device.coalesce_us = coalesce_us
        guest.start()
        for turn in range(50):
            frames = [mint.frame(3 * turn + part, 300) for part in range(3)]
            assert guest.driver.send(frames) == 3
            assert guest.driver.receive(3) == frames
            guest.driver.finish_transmit()
        assert guest.device.violations.entries == []


def test_times_to_poll_and_to_collect_are_properties_that_are_checked() -> None:
    with LoopbackGuest() as guest:
        assert guest.device.poll_us == DEFAULT_POLL_US
        assert guest.device.coalesce_us == DEFAULT_COALESCE_US
        with pytest.raises(OptionError, match=f"coalesce_us takes 0 to {MAX_COALESCE_US}"):
            guest.device.coalesce_us = MAX_COALESCE_US + 1
        for impossible in (-1, MAX_POLL_US + 1):
            with pytest.raises(OptionError, match=f"poll_us takes 0 to {MAX_POLL_US}"):
                guest.device.poll_us = impossible
        assert guest.device.poll_us == DEFAULT_POLL_US
