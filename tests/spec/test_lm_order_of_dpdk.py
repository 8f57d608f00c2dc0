# SPDX-License-Identifier: Apache-2.0
"""LM_LOGGING_CTRL of profile ifcvf in the order in which a stock driver writes."""

from __future__ import annotations

import os

from vdpa_net.backend.loopback import Loopback
from vdpa_net.device.net_device import NetDevice


def test_log_of_ifcvf_begins_with_the_range_that_is_written_behind_ctrl() -> None:
    """DPDK's vdpa/ifc as Debian compiles it: LM_LOGGING_CTRL, then BASE and END in stores of 8 bytes."""
    with NetDevice(Loopback(), mac="52:54:00:00:00:2a", profile="ifcvf") as device:
        fd = os.memfd_create("log")
        os.ftruncate(fd, 8192)
        device.dma_map(1 << 44, 8192, fd, 0, readable=True, writable=True)
        os.close(fd)
        device.region_write(4, 0x0, (1).to_bytes(4, "little"))
        assert device.space.log_range() is None
        device.region_write(4, 0x10, (1 << 44).to_bytes(8, "little"))
        device.region_write(4, 0x18, ((1 << 44) + 4096).to_bytes(8, "little"))
        assert device.space.log_range() == (1 << 44, (1 << 44) + 4096)
        assert device.region_read(4, 0x0, 4) == b"\1\0\0\0"
        device.region_write(4, 0x0, (1).to_bytes(4, "little"))
        device.region_write(4, 0x10, ((1 << 44) + 4096).to_bytes(8, "little"))
        device.region_write(4, 0x18, ((1 << 44) + 8192).to_bytes(8, "little"))
        assert device.space.log_range() == ((1 << 44) + 4096, (1 << 44) + 8192)
        device.region_write(4, 0x0, bytes(4))
        assert device.space.log_range() is None
        device.region_write(4, 0x18, ((1 << 44) + 8192).to_bytes(8, "little"))
        assert device.space.log_range() is None
        assert device.snapshot()["violation_count"] == 0
