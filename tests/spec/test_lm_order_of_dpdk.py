# SPDX-License-Identifier: Apache-2.0
"""LM_LOGGING_CTRL of profile ifcvf in the orders in which stock drivers write.

DPDK's vdpa/ifc has BASE, END and LM_LOGGING_CTRL in its source; as Debian compiles it, LM_LOGGING_CTRL comes
first, then BASE and END in stores of 8 bytes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

from vdpa_net.backend.loopback import Loopback
from vdpa_net.device.net_device import NetDevice

LOG = 1 << 44
PAGE = 4096
CTRL, BASE, END = 0x0, 0x10, 0x18


@pytest.fixture
def device() -> Iterator[NetDevice]:
    with NetDevice(Loopback(), mac="52:54:00:00:00:2a", profile="ifcvf") as made:
        yield made


def map_log(device: NetDevice, size_bytes: int) -> None:
    fd = os.memfd_create("log")
    os.ftruncate(fd, size_bytes)
    device.dma_map(LOG, size_bytes, fd, 0, readable=True, writable=True)
    os.close(fd)


def store(device: NetDevice, offset: int, value: int, width: int) -> None:
    device.region_write(4, offset, value.to_bytes(width, "little"))


def store_range(device: NetDevice, base: int, end: int) -> None:
    store(device, BASE, base, 8)
    store(device, END, end, 8)


def start_as_compiled(device: NetDevice, base: int, end: int) -> None:
    store(device, CTRL, 1, 4)
    store_range(device, base, end)


def start_as_in_the_source(device: NetDevice, base: int, end: int) -> None:
    for offset, value in ((BASE, base), (END, end)):
        store(device, offset, value & 0xFFFF_FFFF, 4)
        store(device, offset + 4, value >> 32, 4)
    store(device, CTRL, 1, 4)


def refusals(device: NetDevice) -> list[str]:
    return [str(entry.what) for entry in device.violations.entries]


def test_log_of_ifcvf_begins_with_the_range_that_is_written_behind_ctrl(device: NetDevice) -> None:
    map_log(device, 2 * PAGE)
    store(device, CTRL, 1, 4)
    assert device.space.log_range() is None
    store_range(device, LOG, LOG + PAGE)
    assert device.space.log_range() == (LOG, LOG + PAGE)
    assert device.region_read(4, CTRL, 4) == b"\1\0\0\0"
    start_as_compiled(device, LOG + PAGE, LOG + 2 * PAGE)
    assert device.space.log_range() == (LOG + PAGE, LOG + 2 * PAGE)
    store(device, CTRL, 0, 4)
    assert device.space.log_range() is None
    store(device, END, LOG + 2 * PAGE, 8)
    assert device.space.log_range() is None
    assert refusals(device) == []


@pytest.mark.parametrize("start", [start_as_compiled, start_as_in_the_source])
@pytest.mark.parametrize("is_reset", [False, True])
def test_a_second_log_that_is_shorter_than_the_first_starts_without_a_violation(
    device: NetDevice, start: Callable[[NetDevice, int, int], None], is_reset: bool
) -> None:
    map_log(device, 2 * PAGE)
    start(device, LOG, LOG + 2 * PAGE)
    if is_reset:
        store_status(device, 0)
    else:
        store(device, CTRL, 0, 4)
    device.dma_unmap(LOG, 2 * PAGE)
    map_log(device, PAGE)
    start(device, LOG, LOG + PAGE)
    assert device.space.log_range() == (LOG, LOG + PAGE)
    assert refusals(device) == []


def store_status(device: NetDevice, value: int) -> None:
    device.region_write(0, 0x14, bytes([value]))


@pytest.mark.parametrize("start", [start_as_compiled, start_as_in_the_source])
def test_a_second_log_without_a_stop_of_the_first_moves_it(
    device: NetDevice, start: Callable[[NetDevice, int, int], None]
) -> None:
    """DPDK takes no notice of a migration that is cancelled: the device logs when it is to log again."""
    map_log(device, 2 * PAGE)
    start(device, LOG, LOG + 2 * PAGE)
    start(device, LOG, LOG + PAGE)
    assert device.space.log_range() == (LOG, LOG + PAGE)
    assert refusals(device) == []


def test_the_range_of_before_does_where_no_other_comes(device: NetDevice) -> None:
    map_log(device, PAGE)
    start_as_compiled(device, LOG, LOG + PAGE)
    store(device, CTRL, 0, 4)
    store(device, CTRL, 1, 4)
    assert device.space.log_range() == (LOG, LOG + PAGE)
    assert refusals(device) == []


@pytest.mark.parametrize("ends", ["off", "on again", "reset"])
def test_a_start_to_which_no_range_comes_is_a_violation_at_its_end(device: NetDevice, ends: str) -> None:
    store(device, CTRL, 1, 4)
    assert refusals(device) == []
    if ends == "reset":
        store_status(device, 0)
    else:
        store(device, CTRL, 0 if ends == "off" else 1, 4)
    assert refusals(device) == ["log_start_refused"]


def test_a_range_behind_ctrl_that_can_not_be_had_is_a_violation(device: NetDevice) -> None:
    start_as_compiled(device, LOG, LOG + PAGE)
    assert device.space.log_range() is None
    assert device.region_read(4, CTRL, 4) == bytes(4)
    assert refusals(device) == ["log_start_refused"]
    store(device, CTRL, 0, 4)
    assert refusals(device) == ["log_start_refused"]
