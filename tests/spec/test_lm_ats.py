# SPDX-License-Identifier: Apache-2.0
"""LM registers: ATS.

A test per sentence of that section of the registers' contract; each docstring says which. Everything goes
through region reads and writes of a device with its real data plane.
"""

from __future__ import annotations

import errno

import pytest

from spec.direct import (
    rig,
)
from vdpa_net.errors import DmaError

PAGE = 4096


def test_ats_on_is_a_capability_and_its_enable_bit_and_nothing_more() -> None:
    with rig(ats=True) as device:
        assert device.device.region_read(7, 0x100, 2) == b"\x0f\x00"
        device.device.region_write(7, 0x106, b"\x00\x80")
        assert device.device.region_read(7, 0x106, 2) == b"\x00\x80"
        device.driver.start()
        device.exchange()
        with pytest.raises(DmaError) as caught:
            device.device.dma_unmap(0, PAGE)
        assert caught.value.errno == errno.ENOENT
