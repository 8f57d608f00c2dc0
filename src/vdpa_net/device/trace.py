# SPDX-License-Identifier: Apache-2.0
"""A trace of register accesses: one line each, decoded.

    +0.013207 W common_cfg.device_status        0x0f                ACKNOWLEDGE|DRIVER|DRIVER_OK|FEATURES_OK
    +0.013431 R common_cfg.queue_size[q1]       0x0100              256
    +0.013800 W lm.LM_RING_STATE[0]             0x00050007          last_avail_idx=7 used_idx=5

Columns: seconds since the trace began, R or W, register, value, what it says. Registers behind a selector
have the queue, or the half of the feature word, with them that was selected when the trace last saw it; the
ring state is taken apart as the ring format wants it whose negotiation the trace saw.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from vdpa_net.device.access import Access, RegisterValue
from vdpa_net.wire import describe
from vdpa_net.wire.virtio_pci import F_RING_PACKED

_NAME_COLUMNS = 34
_VALUE_COLUMNS = 18
_SELECTED_BY_QUEUE = frozenset(
    f"common_cfg.queue_{name}"
    for name in (
        "size",
        "msix_vector",
        "enable",
        "notify_off",
        "desc",
        "driver",
        "device",
        "notif_config_data",
        "reset",
    )
)
_FEATURE_SELECT = {
    "common_cfg.device_feature": "device_feature_select",
    "common_cfg.driver_feature": "driver_feature_select",
}


class RegisterTrace:
    """An access hook that gives one line per register to `write_line`, and changes nothing."""

    def __init__(self, write_line: Callable[[str], None]) -> None:
        self._write_line = write_line
        self._begun_ns = time.monotonic_ns()
        self._selects: dict[str, int] = {}
        self._packed = False

    def __call__(self, access: Access) -> None:
        """Write the lines of an access."""
        seconds = (time.monotonic_ns() - self._begun_ns) / 1e9
        letter = "W" if access.write else "R"
        for name, value, meaning in self._rows(access):
            columns = f"{name:{_NAME_COLUMNS}} {value:{_VALUE_COLUMNS}} {meaning}"
            self._write_line(f"+{seconds:.6f} {letter} {columns}".rstrip())

    def _rows(self, access: Access) -> list[tuple[str, str, str]]:
        if not access.registers:
            place = f"region {access.region} + {access.offset:#x}"
            return [(place, f"0x{access.data[::-1].hex()}", "no register there")]
        return [self._row(item) for item in access.registers]

    def _row(self, item: RegisterValue) -> tuple[str, str, str]:
        self._follow(item)
        name, meaning = item.name, describe.describe(item.name, item.value, packed=self._packed)
        if name in _SELECTED_BY_QUEUE:
            name = f"{name}[q{self._selects.get('queue_select', 0)}]"
        elif name in _FEATURE_SELECT:
            half = self._selects.get(_FEATURE_SELECT[name], 0)
            meaning = describe.features(item.value, half) if half < 2 else "beyond bit 63"
            name = f"{name}[{half}]"
        elif name == "common_cfg.device_status" and not item.value:
            meaning = "reset"
        if not meaning and item.value > 9 and item.block != "config":
            meaning = str(item.value)
        partial = "" if item.whole else "(a part of it)"
        return name, f"0x{item.value:0{2 * item.register.width}x}", describe.joined((meaning, partial))

    def _follow(self, item: RegisterValue) -> None:
        """Selectors are read and written alike; a reset puts them back to 0."""
        if item.name == "common_cfg.device_status" and not item.value:
            self._selects.clear()
            self._packed = False
        elif item.name == "common_cfg.driver_feature" and self._selects.get("driver_feature_select") == 1:
            self._packed = bool(item.value << 32 & 1 << F_RING_PACKED)
        elif item.block == "common_cfg" and item.register.name.endswith("_select"):
            self._selects[item.register.name] = item.value
