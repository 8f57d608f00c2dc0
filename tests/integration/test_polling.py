# SPDX-License-Identifier: Apache-2.0
"""Polling after work: how long the workers look at rings and back end before they sleep."""

from __future__ import annotations

import pytest

from vdpa_net.device.options import DEFAULT_POLL_US, MAX_POLL_US
from vdpa_net.errors import OptionError, StateError
from vdpa_net.testing.frames import FrameMint
from vdpa_net.testing.guest_cpu import TX
from vdpa_net.testing.guest_driver import PACKED, WANTED
from vdpa_net.testing.loopback_guest import LoopbackGuest

ATTEMPTS = 20


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


@pytest.mark.parametrize("poll_us", [0, 1, 1000])
def test_nothing_is_lost_however_long_a_device_polls(poll_us: int) -> None:
    mint = FrameMint(poll_us)
    with LoopbackGuest(queue_size=16) as guest:
        guest.device.poll_us = poll_us
        guest.start()
        for turn in range(50):
            frames = [mint.frame(3 * turn + part, 300) for part in range(3)]
            assert guest.driver.send(frames) == 3
            assert guest.driver.receive(3) == frames
            guest.driver.finish_transmit()
        assert guest.device.violations.entries == []


def test_time_to_poll_is_a_property_that_is_checked() -> None:
    with LoopbackGuest() as guest:
        assert guest.device.poll_us == DEFAULT_POLL_US
        for impossible in (-1, MAX_POLL_US + 1):
            with pytest.raises(OptionError, match=f"poll_us takes 0 to {MAX_POLL_US}"):
                guest.device.poll_us = impossible
        assert guest.device.poll_us == DEFAULT_POLL_US
