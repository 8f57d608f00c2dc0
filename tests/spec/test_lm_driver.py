# SPDX-License-Identifier: Apache-2.0
"""LM registers: what the driver does, in order.

A test per line of that section of the registers' contract: our own driver on a device with its real data
plane, with every access written down.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from spec.direct import LOG_IOVA, RX, TX, Handle, Rig, rig
from vdpa_net.driver.log_area import LogArea
from vdpa_net.driver.queue_setup import QueueSetup
from vdpa_net.driver.vdpa_driver import VdpaDriver
from vdpa_net.errors import ProtocolError, StateError
from vdpa_net.wire.layout import Register
from vdpa_net.wire.virtio_pci import COMMON_CFG

LOG_BYTES = 100
"""Not a whole page, and it need not be."""


class Recorder(Handle):
    """`done` is what the driver did: "name=value" for writes, "name?" for reads, maps and unmaps."""

    def __init__(self, made: Rig) -> None:
        super().__init__(made.device)
        self._made = made
        self.done: list[str] = []
        self.refuse_ctrl = False

    def _register(self, region: int, offset: int) -> Register | None:
        if (region, offset < 0x1000) == (self._made.profile.virtio_bar, True):
            return COMMON_CFG.at(offset)
        if region == self._made.lm_bar and offset >= self._made.lm_offset:
            return self._made.profile.registers.at(offset - self._made.lm_offset)
        return None

    def read(self, region: int, offset: int, size: int) -> bytes:
        if register := self._register(region, offset):
            self.done.append(f"{register.name}?")
            if register.name == "LM_LOGGING_CTRL" and self.refuse_ctrl:
                return bytes(size)
        return super().read(region, offset, size)

    def write(self, region: int, offset: int, data: bytes, *, posted: bool = False) -> None:
        if register := self._register(region, offset):
            self.done.append(f"{register.name}={int.from_bytes(data, 'little'):#x}")
        super().write(region, offset, data, posted=posted)

    def dma_map(
        self, iova: int, size: int, fd: int, offset: int, *, readable: bool = True, writable: bool = True
    ) -> None:
        self.done.append(f"map {iova:#x} of {size:#x}")
        super().dma_map(iova, size, fd, offset, readable=readable, writable=writable)

    def dma_unmap(self, iova: int, size: int) -> None:
        self.done.append("unmap")
        super().dma_unmap(iova, size)

    def names(self, *wanted: str) -> list[str]:
        """What was done with these, in order."""
        return [text for text in self.done if text.startswith(wanted)]

    def last(self, wanted: str) -> int:
        """Where this was done last."""
        return max(at for at, text in enumerate(self.done) if text == wanted)


class Driven:
    """A device, our driver on it, and two rings of a guest that has negotiated nothing itself."""

    def __init__(self, made: Rig) -> None:
        self.rig = made
        self.handle = Recorder(made)
        self.driver = VdpaDriver(self.handle)
        self.fd = os.memfd_create("log")
        os.ftruncate(self.fd, 3 * 4096)

    def area(self) -> LogArea:
        return LogArea(LOG_BYTES, 4096, self.fd)

    def setups(self) -> list[QueueSetup]:
        rings = self.rig.driver.rings
        return [
            QueueSetup(
                queue, rings[queue].size, rings[queue].desc, rings[queue].driver, rings[queue].device, 0, 0
            )
            for queue in (RX, TX)
        ]

    def start(self, log: LogArea | None = None) -> None:
        # The reset of before holds while nobody has touched the device.
        del self.handle.done[: self.handle.last("device_status=0x0")]
        self.driver.start(self.driver.device_features, self.setups(), log)


@pytest.fixture
def driven() -> Iterator[Driven]:
    with rig() as made:
        found = Driven(made)
        yield found
        os.close(found.fd)


def test_start_is_reset_acknowledge_driver_features_queues_driver_ok(driven: Driven) -> None:
    """start: reset, ACKNOWLEDGE, DRIVER, features, FEATURES_OK; ...; per queue; DRIVER_OK."""
    driven.start()
    assert driven.handle.names("device_status=", "driver_feature=", "queue_enable=") == [
        "device_status=0x0",
        "device_status=0x1",
        "device_status=0x3",
        f"driver_feature={driven.driver.device_features & 0xFFFFFFFF:#x}",
        f"driver_feature={driven.driver.device_features >> 32:#x}",
        "device_status=0xb",
        "queue_enable=0x1",
        "queue_enable=0x1",
        "device_status=0xf",
    ]
    assert driven.rig.kinds() == []


def test_a_device_that_was_touched_after_its_reset_is_reset_again(driven: Driven) -> None:
    """start: reset, ..."""
    driven.rig.set_common("device_status", 1)
    driven.handle.done.clear()
    driven.handle.done.append("device_status=0x0")
    driven.start()
    assert driven.handle.names("device_status=")[:3] == [
        "device_status=0x0",
        "device_status=0x0",
        "device_status=0x1",
    ]
    assert driven.rig.kinds() == []


def test_each_queue_gets_addresses_size_vector_and_ring_state_before_it_is_enabled(driven: Driven) -> None:
    """per queue: addresses, size, MSI-X vector, LM_RING_STATE, queue_enable = 1."""
    driven.start()
    done = driven.handle.done
    enabled = [at for at, text in enumerate(done) if text == "queue_enable=0x1"]
    for queue, end in zip((RX, TX), enabled, strict=True):
        begin = max(at for at, text in enumerate(done[:end]) if text == f"queue_select={queue:#x}")
        names = {text.split("=")[0] for text in done[begin:end] if "=" in text}
        assert names >= {
            "queue_desc",
            "queue_driver",
            "queue_device",
            "queue_size",
            "queue_msix_vector",
            f"LM_RING_STATE[{queue}]",
        }


def test_log_that_is_set_is_started_before_the_queues(driven: Driven) -> None:
    """If LOG_ALL and a log are set, logging first: a guest that reboots must not run unlogged."""
    driven.start(driven.area())
    order = driven.handle.names("LM_LOGGING_CTRL=", "queue_enable=", "device_status=0xf")
    assert order == ["LM_LOGGING_CTRL=0x1", "queue_enable=0x1", "queue_enable=0x1", "device_status=0xf"]


def test_log_is_mapped_in_whole_pages_then_base_end_ctrl_and_read_back(driven: Driven) -> None:
    """logging: map the log (page-aligned size), BASE, END, CTRL = 1, read back."""
    driven.start()
    driven.handle.done.clear()
    driven.driver.start_logging(driven.area())
    assert driven.handle.done == [
        f"map {LOG_IOVA:#x} of 0x1000",
        "LM_BASE_ADDR_LOW=0x0",
        f"LM_BASE_ADDR_HIGH={LOG_IOVA >> 32:#x}",
        f"LM_END_ADDR_LOW={LOG_BYTES:#x}",
        f"LM_END_ADDR_HIGH={LOG_IOVA >> 32:#x}",
        "LM_LOGGING_CTRL=0x1",
        "LM_LOGGING_CTRL?",
    ]


def test_device_that_does_not_log_is_found_out(driven: Driven) -> None:
    """Drivers read CTRL back."""
    driven.start()
    driven.handle.refuse_ctrl = True
    with pytest.raises(ProtocolError, match="LM_LOGGING_CTRL reads 0x0 after 1 was written"):
        driven.driver.start_logging(driven.area())
    assert driven.handle.done[-1] == "unmap"


def test_logging_comes_more_than_once_and_the_old_log_goes_after_the_new_one_counts(driven: Driven) -> None:
    """LOG_ALL and SET_LOG_BASE come in any order, more than once."""
    driven.start(driven.area())
    driven.handle.done.clear()
    driven.driver.start_logging(driven.area())
    assert driven.handle.names("map", "LM_LOGGING_CTRL", "unmap") == [
        *driven.handle.names("map"),
        "LM_LOGGING_CTRL=0x1",
        "LM_LOGGING_CTRL?",
        "unmap",
    ]


def test_log_all_cleared_is_ctrl_0(driven: Driven) -> None:
    """LOG_ALL cleared: CTRL = 0."""
    driven.start(driven.area())
    driven.handle.done.clear()
    driven.driver.stop_logging()
    assert driven.handle.done == ["LM_LOGGING_CTRL=0x0", "LM_LOGGING_CTRL?", "unmap"]


def test_stop_is_queue_enable_0_until_it_reads_0_then_ring_state(driven: Driven) -> None:
    """stop: per queue: queue_enable = 0, read until 0, read LM_RING_STATE."""
    driven.start()
    driven.handle.done.clear()
    driven.driver.stop_queue(TX)
    assert driven.handle.done == [
        "queue_select=0x1",
        "queue_enable=0x0",
        "queue_enable?",
        "LM_RING_STATE[1]?",
    ]


def test_when_all_have_stopped_logging_ends_and_the_device_is_reset(driven: Driven) -> None:
    """When all queues have stopped: CTRL = 0, read back, unmap the log; reset."""
    driven.start(driven.area())
    driven.driver.stop_queue(RX)
    with pytest.raises(StateError, match=r"queues \[1\] still run"):
        driven.driver.finish()
    driven.driver.stop_queue(TX)
    driven.handle.done.clear()
    driven.driver.finish()
    assert driven.handle.done == [
        "LM_LOGGING_CTRL=0x0",
        "LM_LOGGING_CTRL?",
        "unmap",
        "device_status=0x0",
        "device_status?",
    ]
    assert driven.rig.kinds() == []


def test_restore_writes_the_ring_state_before_queue_enable(driven: Driven) -> None:
    """restore: LM_RING_STATE before queue_enable."""
    driven.start()
    order = driven.handle.names("LM_RING_STATE[1]=", "queue_enable=")
    assert order[1:] == ["LM_RING_STATE[1]=0x0", "queue_enable=0x1"]
