# SPDX-License-Identifier: Apache-2.0
"""The guest's driver double finds its device by capabilities alone, and says what is wrong with it."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from types import TracebackType
from typing import Self

import pytest

from vdpa_net.errors import PeerError, StateError
from vdpa_net.testing.guest_driver import GuestDriver
from vdpa_net.testing.guest_memory import GuestMemory
from vdpa_net.wire.virtio_pci import COMMON_CFG

CONFIG = 7
COMMON, NOTIFY, DEVICE = (2, 0x400), (3, 0x100), (2, 0x800)


def capability(
    kind: int, following: int, bar: int, offset: int, length: int, *, multiplier: int = 0
) -> bytes:
    return struct.pack("<BBBBB3xIII", 9, following, 20, kind, bar, offset, length, multiplier)


class PaperDevice:
    """Registers that hold what is written to them. Its capabilities lie in an odd order, and in a circle."""

    def __init__(self) -> None:
        config = bytearray(256)
        config[0x34] = 0xC0
        config[0xC0:0xD4] = capability(2, 0x40, NOTIFY[0], NOTIFY[1], 0x20, multiplier=8)
        config[0x40:0x54] = capability(1, 0x60, COMMON[0], COMMON[1], 56)
        config[0x60:0x74] = capability(4, 0x80, DEVICE[0], DEVICE[1], 12)
        config[0x80:0x94] = capability(1, 0xC0, 0, 0, 4)
        self.regions = {CONFIG: config, 2: bytearray(0x1000), 3: bytearray(0x1000)}
        self.common = {name: COMMON[1] + register.offset for name, register in COMMON_CFG.by_name.items()}
        self.maps: list[tuple[int, int]] = []
        self.doorbells: list[tuple[int, bytes]] = []
        self.granted = True
        self.resets = True

    def read(self, region: int, offset: int, size: int) -> bytes:
        return bytes(self.regions[region][offset : offset + size])

    def write(self, region: int, offset: int, data: bytes, *, posted: bool = False) -> None:
        if posted:
            self.doorbells.append((offset, data))
        if region == 2 and offset == self.common["device_status"]:
            if not data[0] and not self.resets:
                return
            if not self.granted:
                data = bytes([data[0] & ~8])
        self.regions[region][offset : offset + len(data)] = data

    def region_size(self, region: int) -> int:
        return len(self.regions.get(region, b""))

    def dma_map(self, iova: int, size: int, *_file: int, **_access: bool) -> None:
        self.maps.append((iova, size))

    def dma_unmap(self, iova: int, size: int) -> None:
        self.maps.remove((iova, size))

    def set_irqs(self, start: int, fds: list[int | None]) -> None: ...

    def attach_kick(self, queue: int, fd: int | None, doorbell_region: int, doorbell_offset: int) -> None: ...

    def reset(self) -> None: ...

    def close(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


@pytest.fixture
def device() -> PaperDevice:
    return PaperDevice()


@pytest.fixture
def driver(device: PaperDevice) -> Iterator[GuestDriver]:
    with GuestMemory([(0, 4 << 20)]) as memory, GuestDriver(device, memory, timeout_s=0.05) as made:
        yield made


def test_first_capability_of_a_kind_counts_wherever_it_lies(device: PaperDevice, driver: GuestDriver) -> None:
    found = driver.capabilities
    assert (found[1].region, found[1].offset, found[1].length) == (2, 0x400, 56)
    assert (found[2].region, found[2].offset, found[2].multiplier) == (3, 0x100, 8)
    assert device.maps == [(0, 4 << 20)]


def test_lm_block_lies_behind_the_notify_region(driver: GuestDriver) -> None:
    assert driver.lm_place == (3, 0x120)


def test_start_programs_each_queue_and_kicks_its_doorbell(device: PaperDevice, driver: GuestDriver) -> None:
    device.regions[2][device.common["queue_notify_off"]] = 5
    driver.start()
    written = device.regions[2]
    at = device.common["queue_desc"]
    assert int.from_bytes(written[at : at + 8], "little") == driver.rings[1].desc
    assert written[device.common["device_status"]] == 0xF
    driver.kick(1)
    assert device.doorbells == [(0x100 + 5 * 8, b"\1\0")]


def test_ring_state_is_restored_before_the_queue_is_enabled(device: PaperDevice, driver: GuestDriver) -> None:
    order: list[str] = []
    lm, enable = 0x120 + 0x20, device.common["queue_enable"]
    write = device.write

    def spy(region: int, offset: int, data: bytes, *, posted: bool = False) -> None:
        if (region, offset) == (3, lm + 4):
            order.append(f"state {int.from_bytes(data, 'little'):#x}")
        elif (region, offset) == (2, enable):
            order.append("enable")
        write(region, offset, data, posted=posted)

    device.write = spy  # type: ignore[method-assign]
    driver.start({1: 0x00070007})
    assert order == ["enable", "state 0x70007", "enable"]


def test_refused_features_are_a_clear_error(device: PaperDevice, driver: GuestDriver) -> None:
    device.granted = False
    with pytest.raises(PeerError, match="refuses the features"):
        driver.start()


def test_device_that_never_resets_or_answers_does_not_hang_the_driver(
    device: PaperDevice, driver: GuestDriver
) -> None:
    driver.start()
    with pytest.raises(StateError, match="in vain for 1 frames, 0 came"):
        driver.receive(1, timeout_s=0.01)
    device.resets = False
    with pytest.raises(StateError, match="in vain for the device to finish its reset"):
        driver.start()
