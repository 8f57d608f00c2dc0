# SPDX-License-Identifier: Apache-2.0
"""virtio 1.3, sentence by sentence, on a device with its real data plane.

Clauses are in the tests' docstrings.
"""

from __future__ import annotations

import pytest

from spec.direct import CTRL_QUEUE, MAC, PLAIN, RX, TX, Rig, eventfd_count, rig
from vdpa_net.testing.guest_driver import WANTED
from vdpa_net.wire import virtio_net, virtio_pci
from vdpa_net.wire.virtio_pci import Status

VECTORS = {RX: 1, TX: 2, CTRL_QUEUE: 3}


def test_device_does_not_consume_buffers_before_driver_ok(device: Rig) -> None:
    """2.1.2: the device MUST NOT consume buffers or send any used buffer notifications before DRIVER_OK."""
    device.driver.queues.post_receive()
    assert device.driver.queues.transmit(b"early" * 20)
    for ring in device.driver.rings:
        ring.publish()
    before = device.memory.snapshot()
    device.set_common("device_status", 3)
    for queue, ring in enumerate(device.driver.rings):
        device.set_common("queue_select", queue)
        for name in ("desc", "driver", "device"):
            device.set_common(f"queue_{name}", getattr(ring, name))
        device.set_common("queue_enable", 1)
        device.device.region_write(4, 0x3000 + 4 * queue, queue.to_bytes(2, "little"))
    assert device.memory.snapshot() == before


def test_feature_bits_beyond_63_read_zero(device: Rig) -> None:
    """4.1.4.3.1: it will present 0 for any device_feature_select other than 0 or 1."""
    for select in (2, 3, 0xFFFFFFFF):
        device.set_common("device_feature_select", select)
        assert device.common("device_feature") == 0


def test_reset_is_done_when_status_reads_zero(running: Rig) -> None:
    """4.1.4.3.1: the device MUST reset when 0 is written to device_status and present a 0 once done."""
    running.exchange()
    running.set_common("device_status", 0)
    assert running.common("device_status") == 0
    for queue in range(3):
        running.set_common("queue_select", queue)
        assert running.common("queue_enable") == 0
        assert running.common("queue_size") in (64, 256)


def test_queue_size_is_zero_or_a_power_of_two(device: Rig) -> None:
    """4.1.4.3.1: without RING_PACKED the device MUST present either 0 or a power of 2 in queue_size."""
    for queue in (0, 1, 2, 3, 500, 0xFFFF):
        device.set_common("queue_select", queue)
        size = device.common("queue_size")
        assert size & (size - 1) == 0
        assert bool(size) == (queue < device.common("num_queues"))


def test_generation_follows_a_change_that_was_read(running: Rig) -> None:
    """4.1.4.3.1: a changed config_generation after the driver has read a value which has changed since."""
    first = running.common("config_generation")
    assert running.driver.read_device_config(0, 6) == bytes.fromhex(MAC.replace(":", ""))
    assert running.common("config_generation") == first
    mac = bytes.fromhex("020000000042")
    ack = running.driver.control(virtio_net.CTRL_MAC, virtio_net.CTRL_MAC_ADDR_SET, mac)
    assert ack == virtio_net.CTRL_OK
    assert running.driver.read_device_config(0, 6) == mac
    assert running.common("config_generation") != first


def test_notify_capability_is_large_enough_for_every_queue(device: Rig) -> None:
    """4.1.4.4.1: cap.length >= queue_notify_off * notify_off_multiplier + 2, with an even power of 2."""
    notify = device.driver.capabilities[virtio_pci.CAP_NOTIFY_CFG]
    assert notify.multiplier == 4
    for queue in range(device.common("num_queues")):
        device.set_common("queue_select", queue)
        assert notify.length >= device.common("queue_notify_off") * notify.multiplier + 2


def test_device_has_msix_vectors_for_every_event(device: Rig) -> None:
    """4.1.5.1.2.1: the device MUST return the vector mapped, NO_VECTOR if unmapped, and unmap on reset."""
    device.set_common("config_msix_vector", 0)
    for queue, vector in VECTORS.items():
        device.set_common("queue_select", queue)
        assert device.common("queue_msix_vector") == virtio_pci.MSI_NO_VECTOR
        device.set_common("queue_msix_vector", vector)
        assert device.common("queue_msix_vector") == vector
    device.set_common("device_status", 0)
    assert device.common("config_msix_vector") == virtio_pci.MSI_NO_VECTOR
    for queue in VECTORS:
        device.set_common("queue_select", queue)
        assert device.common("queue_msix_vector") == virtio_pci.MSI_NO_VECTOR


def test_broken_ring_sets_needs_reset_and_notifies_the_driver(running: Rig) -> None:
    """2.1.2: the device SHOULD set DEVICE_NEEDS_RESET, and MUST then send a configuration change."""
    seen: list[Status] = []
    running.device.on_event(
        lambda name, _: seen.append(running.driver.status) if name == "needs_reset" else None
    )
    ring = running.driver.rings[CTRL_QUEUE]
    running.memory.store_u16(ring.driver + 4, ring.size)
    running.memory.store_u16(ring.driver + 2, 1)
    running.driver.kick(CTRL_QUEUE)
    assert running.driver.status & Status.DEVICE_NEEDS_RESET
    assert len(seen) == 1
    assert eventfd_count(running.driver.call_fds[0]) == 1
    assert running.device.region_read(4, 0x1000, 1) == b"\2"
    assert running.kinds() != []


@pytest.mark.parametrize("again", [False, True])
def test_queue_that_breaks_and_is_stopped_at_once_sets_needs_reset(running: Rig, again: bool) -> None:
    """2.1.2: whether or not anybody looked at the queue between its fault and its stop, or its next start."""
    ring = running.driver.rings[TX]
    running.memory.store_u16(ring.driver + 2, ring.size + 1)
    with running.device._lock:  # the monitor's thread waits meanwhile
        running.driver.kick(TX)
        running.stop(TX)
        if again:
            running.memory.store_u16(ring.driver + 2, 0)
            running.set_common("queue_enable", 1)
        assert running.driver.status & Status.DEVICE_NEEDS_RESET
    assert "avail_idx" in running.kinds()


def test_queue_that_broke_before_a_reset_needs_none_after_it(running: Rig) -> None:
    """2.1.1: a reset clears DEVICE_NEEDS_RESET."""
    ring = running.driver.rings[TX]
    with running.device._lock:
        running.memory.store_u16(ring.driver + 2, ring.size + 1)
        running.driver.kick(TX)
        running.set_common("device_status", 0)
    running.memory.store_u16(ring.driver + 2, 0)
    running.driver.start()
    running.device._on_signal("plane")
    assert not running.driver.status & Status.DEVICE_NEEDS_RESET


def test_broken_device_works_again_after_a_reset(running: Rig) -> None:
    """2.1.1: the driver can recover from DEVICE_NEEDS_RESET by a reset."""
    for queue in (RX, TX, CTRL_QUEUE):
        ring = running.driver.rings[queue]
        running.memory.store_u16(ring.driver + 2, (ring.avail_idx + ring.size + 1) & 0xFFFF)
        running.driver.kick(queue)
    running.set_common("device_status", 0)
    for ring in running.driver.rings:
        running.memory.store_u16(ring.driver + 2, 0)
    running.driver.start()
    assert not running.driver.status & Status.DEVICE_NEEDS_RESET
    running.exchange()


def test_device_works_without_every_optional_feature() -> None:
    """2.2.1: the device SHOULD accept any valid subset of features the driver accepts."""
    needed = 1 << virtio_pci.F_VERSION_1
    with rig(features=needed) as device:
        device.driver._shapes = PLAIN
        device.driver.start()
        assert device.driver.features == needed
        device.set_common("queue_select", TX)
        assert device.common("queue_enable") == 1
        assert device.driver.queues.transmit(b"plain" * 20)
        device.driver.publish()
        device.driver.finish_transmit()


@pytest.mark.parametrize(
    "without", ["event_idx", "indirect_desc", "mrg_rxbuf", "csum", "guest_csum", "ctrl_vq"]
)
def test_frames_travel_without_a_feature(without: str) -> None:
    """5.1.3: each feature bit is optional."""
    with rig(disabled_features=frozenset({without}), features=WANTED) as device:
        device.driver._shapes = None
        device.driver.start()
        device.exchange(count=8, size=400)
        assert device.kinds() == []


def test_mtu_and_mac_are_those_of_the_configuration() -> None:
    """5.1.4: mac is valid with VIRTIO_NET_F_MAC, mtu exists with VIRTIO_NET_F_MTU."""
    with rig(mtu=9000) as device:
        device.driver.start()
        assert int.from_bytes(device.driver.read_device_config(10, 2), "little") == 9000
        assert device.driver.read_device_config(0, 6).hex(":") == MAC


def test_control_command_that_is_not_known_is_answered_with_err(running: Rig) -> None:
    """5.1.6.5: ack is VIRTIO_NET_OK or VIRTIO_NET_ERR."""
    control = running.driver.control
    assert control(virtio_net.CTRL_RX, virtio_net.CTRL_RX_ALLMULTI, b"\1") == virtio_net.CTRL_OK
    assert control(4, 0, b"\2\0") == virtio_net.CTRL_ERR
    assert control(0x55, 7) == virtio_net.CTRL_ERR
    assert not running.driver.status & Status.DEVICE_NEEDS_RESET
