# SPDX-License-Identifier: Apache-2.0
"""LM registers: starting again.

A test per sentence of that section of the registers' contract; each docstring says which. Everything goes
through region reads and writes of a device with its real data plane.
"""

from __future__ import annotations

import pytest

from spec.direct import (
    RX,
    TX,
    Rig,
    eventfd_count,
    rig,
)
from vdpa_net.device.announce import rarp_frame
from vdpa_net.testing.guest_driver import WANTED
from vdpa_net.wire import virtio_pci

RARP = rarp_frame(bytes.fromhex("525400000001"))
FRAMES = range(1, 8)
"""How many an announcement may have sent, as time goes."""


def state(avail: int, used: int | None = None) -> int:
    return (avail if used is None else used) << 16 | avail


def test_ring_is_scanned_without_a_kick(running: Rig) -> None:
    """After a start the device scans each ring without waiting for a kick."""
    running.driver.queues.post_receive()
    running.driver.publish()
    running.stop(TX)
    assert running.driver.queues.transmit(b"unkicked" * 10)
    running.driver.rings[TX].publish()
    running.set_common("queue_enable", 1)
    assert running.driver.receive(1) == [b"unkicked" * 10]


def test_restored_start_raises_an_interrupt_per_queue() -> None:
    """After a restored start it raises one interrupt per queue."""
    with rig(first_index=7) as device:
        device.driver.start({RX: state(7), TX: state(7)})
        assert [eventfd_count(device.driver.call_fds[queue + 1]) for queue in (RX, TX)] == [1, 1]


def test_fresh_start_raises_none(running: Rig) -> None:
    """... and after a fresh one none."""
    assert [eventfd_count(fd) for fd in running.driver.call_fds] == [0, 0, 0, 0]


def test_restored_start_announces_the_configured_mac_with_rarp() -> None:
    """After a restored start the device announces itself: RARP with the MAC of its configuration."""
    with rig(first_index=7) as device:
        device.driver.start({RX: state(7), TX: state(7)})
        assert device.first_frame() == RARP


def test_carrier_is_off_until_driver_ok_and_off_again_after_a_reset(device: Rig) -> None:
    """The tap's carrier is off until DRIVER_OK."""
    assert not device.backend.carrier
    device.driver.start()
    assert device.backend.carrier
    device.set_common("device_status", 0)
    assert not device.backend.carrier


def test_what_the_back_end_had_queued_before_driver_ok_is_dropped(running: Rig) -> None:
    """What the tap had queued before DRIVER_OK is dropped."""
    for index in range(3):
        assert running.driver.queues.transmit(bytes([index]) * 60)
    running.driver.publish()
    running.driver.finish_transmit()
    events: list[object] = []
    running.device.on_event(
        lambda name, info: events.append(info["packets_flushed"]) if name == "driver_ok" else None
    )
    states = {TX: running.stop(TX)}
    running.driver.start(states)
    assert events == [3]
    assert running.first_frame() == RARP, "the first frame is one of after the start"


@pytest.mark.parametrize("with_it", [True, False])
def test_features_ok_is_granted_with_and_without_access_platform(with_it: bool) -> None:
    """FEATURES_OK is granted with and without ACCESS_PLATFORM: addresses are IOVAs either way."""
    features = WANTED if with_it else WANTED & ~(1 << virtio_pci.F_ACCESS_PLATFORM)
    with rig(features=features) as device:
        device.driver.start()
        assert bool(device.driver.features >> virtio_pci.F_ACCESS_PLATFORM & 1) == with_it
        device.exchange()


def test_restored_start_can_announce_another_mac(running: Rig) -> None:
    """... or with the MAC that SEND_RARP gives."""
    running.device.announce("52:54:00:77:88:99")
    assert running.first_frame() == rarp_frame(bytes.fromhex("525400778899"))


def packets_flushed(device: Rig) -> list[int]:
    """What each DRIVER_OK from now on drops."""
    flushed: list[int] = []
    device.device.on_event(
        lambda name, info: flushed.append(int(str(info["packets_flushed"]))) if name == "driver_ok" else None
    )
    return flushed


def test_what_comes_for_an_announced_station_waits_for_its_driver(
    device: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machine that the guest comes from has stopped, and would lose it."""
    monkeypatch.setattr("vdpa_net.device.link.AHEAD_S", 3600.0)
    flushed = packets_flushed(device)
    device.device.announce("52:54:00:77:88:99")
    assert device.backend.carrier
    device.driver.start()
    assert device.first_frame() == rarp_frame(bytes.fromhex("525400778899")), "kept in the loopback"
    assert flushed == [0]
    device.set_common("device_status", 0)
    assert not device.backend.carrier


def test_what_waits_for_a_driver_has_no_offloads_of_the_one_before(device: Rig) -> None:
    """The next one may not know them, and what waits in a tap stays as it came."""
    device.driver.start()
    assert device.backend.features
    device.set_common("device_status", 0)
    device.device.announce()
    assert device.backend.carrier
    assert device.backend.features == 0


@pytest.mark.parametrize("end", ["withdraw", "detach_client"])
def test_an_announced_station_that_does_not_come_leaves_nothing_behind(device: Rig, end: str) -> None:
    flushed = packets_flushed(device)
    device.device.announce()
    getattr(device.device, end)()
    assert not device.backend.carrier
    if end == "withdraw":
        device.driver.start()
        assert flushed[0] in FRAMES


def test_what_has_waited_for_too_long_is_dropped(device: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vdpa_net.device.link.AHEAD_S", -1.0)
    flushed = packets_flushed(device)
    device.device.announce()
    device.driver.start()
    assert flushed[0] in FRAMES
    assert device.backend.carrier


def test_withdrawing_the_station_of_a_running_device_changes_nothing(running: Rig) -> None:
    running.device.announce()
    running.device.withdraw()
    assert running.backend.carrier
    running.exchange()
