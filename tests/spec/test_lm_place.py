# SPDX-License-Identifier: Apache-2.0
"""LM registers: where the block lies (profile `vdpa`; test_profiles.py has the others).

A test per sentence of that section of the registers' contract; each docstring says which. Everything goes
through region reads and writes of a device with its real data plane.
"""

from __future__ import annotations

import pytest

from spec.direct import (
    BASE,
    BLOCK,
    END,
    RING_STATE,
    Rig,
    rig,
)
from vdpa_net.driver.pci_scan import scan
from vdpa_net.driver.vdpa_driver import VdpaDriver
from vdpa_net.errors import ProtocolError
from vdpa_net.wire import virtio_pci
from vdpa_net.wire.lm import VDPA


def test_block_begins_right_behind_the_notify_region_of_its_bar(device: Rig) -> None:
    """The LM block begins at notify.offset + notify.length of the same BAR; registers are little-endian."""
    notify = device.driver.capabilities[virtio_pci.CAP_NOTIFY_CFG]
    assert (notify.region, notify.offset, notify.length) == (4, 0x3000, 4 * 1024)
    assert notify.offset + notify.length == BLOCK
    device.write(BASE, 0x1234_5000)
    place = notify.offset + notify.length + 0x10
    assert device.device.region_read(4, place, 4) == bytes.fromhex("00503412")


def test_block_is_long_enough_and_the_bar_is_a_power_of_two(device: Rig) -> None:
    """It is 0x20 + 4 * 1024 bytes long, and the BAR is rounded up to a power of two."""
    info = device.device.region_info(4)
    assert info is not None
    assert VDPA.registers.size == 0x20 + 4 * 1024
    assert info.size >= BLOCK + VDPA.registers.size
    assert info.size & (info.size - 1) == 0


def test_layout_is_told_by_the_subsystem_id(device: Rig) -> None:
    """Subsystem 1af4:1100; a driver knows from it which layout there is."""
    assert device.device.region_read(7, 0x2C, 4) == bytes.fromhex("f41a0011")


def test_with_vdpa_off_the_block_is_absent() -> None:
    """With vdpa=off the block is absent and the device is a plain virtio-net."""
    with rig(vdpa=False) as plain:
        info = plain.device.region_info(4)
        assert info is not None
        assert info.size == BLOCK


@pytest.mark.parametrize("width", [1, 2, 4, 8])
def test_registers_take_accesses_of_one_two_four_and_eight_bytes(device: Rig, width: int) -> None:
    """Accesses of 1, 2 and 4 bytes; 8 bytes act as two of 4."""
    data = bytes(range(1, 17))
    for at in range(0, 16, width):
        device.device.region_write(4, BLOCK + BASE + at, data[at : at + width])
    assert device.device.region_read(4, BLOCK + BASE, 8) == data[:8]
    assert device.device.region_read(4, BLOCK + END, 8) == data[8:]
    for at in range(0, 16, width):
        assert device.device.region_read(4, BLOCK + BASE + at, width) == data[at : at + width]
    assert device.kinds() == []


@pytest.mark.parametrize("queue", [3, 4, 512, 1023])
def test_ring_state_of_a_queue_that_does_not_exist_reads_zero_and_takes_nothing(
    device: Rig, queue: int
) -> None:
    """Queues that do not exist read 0; a write to one is a recorded violation without effect."""
    assert device.read(RING_STATE + 4 * queue) == 0
    assert device.kinds() == []
    device.write(RING_STATE + 4 * queue, 0x50005)
    assert device.read(RING_STATE + 4 * queue) == 0
    assert device.kinds() == ["no_such_queue"]


def test_function_is_the_one_that_qemu_has(device: Rig) -> None:
    """1af4:1041 revision >= 1; common 0x0, ISR 0x1000, device 0x2000, notify 0x3000; MSI-X in BAR 1."""
    assert device.device.region_read(7, 0, 4) == bytes.fromhex("f41a4110")
    assert device.device.region_read(7, 8, 1)[0] >= 1
    places = {
        kind: (place.region, place.offset)
        for kind, place in device.driver.capabilities.items()
        if kind not in (virtio_pci.CAP_PCI_CFG, virtio_pci.CAP_VENDOR_CFG)
    }
    assert places == {
        virtio_pci.CAP_COMMON_CFG: (4, 0),
        virtio_pci.CAP_ISR_CFG: (4, 0x1000),
        virtio_pci.CAP_DEVICE_CFG: (4, 0x2000),
        virtio_pci.CAP_NOTIFY_CFG: (4, 0x3000),
    }
    assert device.driver.capabilities[virtio_pci.CAP_NOTIFY_CFG].multiplier == 4
    assert scan(device.driver.handle).profile is VDPA
    assert device.device.region_info(1) is not None


def test_driver_checks_that_the_bar_is_long_enough() -> None:
    """A driver finds the block from the notify capability and checks that the BAR is long enough."""
    with rig(vdpa=False) as plain, pytest.raises(ProtocolError, match="which has 0x4000 bytes"):
        VdpaDriver(plain.driver.handle)


@pytest.mark.parametrize("offset", range(1, 8))
@pytest.mark.parametrize("width", [2, 4, 8])
def test_access_that_is_not_aligned_reaches_the_bytes_it_covers(device: Rig, offset: int, width: int) -> None:
    """Little-endian, whatever the boundaries between registers."""
    before = bytes(range(16))
    for at in range(0, 16, 4):
        device.device.region_write(4, BLOCK + BASE + at, before[at : at + 4])
    data = bytes(range(0x80, 0x80 + width))
    device.device.region_write(4, BLOCK + BASE + offset, data)
    after = before[:offset] + data + before[offset + width :]
    assert b"".join(device.device.region_read(4, BLOCK + BASE + at, 4) for at in range(0, 16, 4)) == after
    assert device.device.region_read(4, BLOCK + BASE + offset, width) == data


def test_hole_between_the_registers_reads_zero_and_takes_nothing(device: Rig) -> None:
    """Offsets 0x4 to 0xf belong to no register."""
    device.write(4, 0xFFFF_FFFF)
    assert device.device.region_read(4, BLOCK + 4, 8) == bytes(8)
    assert device.kinds() == ["no_register"]
