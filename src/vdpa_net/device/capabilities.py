# SPDX-License-Identifier: Apache-2.0
"""Capability lists that allocate and link themselves (PCIe 7.5.3, 7.6.3)."""

from __future__ import annotations

from collections.abc import Mapping

from vdpa_net.errors import StateError
from vdpa_net.record import replace
from vdpa_net.wire import pci
from vdpa_net.wire.layout import Register, RegisterMap


class CapabilityList:
    """Collects capabilities; `registers` are theirs, at their place and with `cap_next` filled in.

    Register names get a prefix: `msix.message_control`, `virtio1.offset`.
    """

    def __init__(self) -> None:
        self.registers: list[Register] = []
        self.first = 0
        self.offsets: dict[str, int] = {}
        self._next_free = pci.FIRST_CAPABILITY
        self._last_link: int | None = None

    def add(self, prefix: str, table: RegisterMap, resets: Mapping[str, int] | None = None) -> int:
        """Append a capability; returns its offset. `resets` replaces the table's reset values."""
        offset = self._next_free
        if offset + table.size > pci.FIRST_EXTENDED_CAPABILITY:
            raise StateError(
                f"capability {prefix} ends at {offset + table.size:#x}, behind the 256 bytes for them"
            )
        self._link(offset)
        self._last_link = len(self.registers) + [register.name for register in table].index("cap_next")
        self.registers += placed(prefix, table, offset, resets)
        self.offsets[prefix] = offset
        self._next_free = (offset + table.size + 3) & ~3
        return offset

    def _link(self, offset: int) -> None:
        if self._last_link is None:
            self.first = offset
        else:
            self.registers[self._last_link] = replace(self.registers[self._last_link], reset=offset)


def placed(
    prefix: str, table: RegisterMap, offset: int, resets: Mapping[str, int] | None = None
) -> list[Register]:
    """The registers of a table moved to `offset`, with a prefix to their names and other reset values."""
    resets = resets or {}
    return [
        replace(
            register,
            name=f"{prefix}.{register.name}",
            offset=offset + register.offset,
            reset=resets.get(register.name, register.reset),
        )
        for register in table
    ]
