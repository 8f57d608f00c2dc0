# SPDX-License-Identifier: Apache-2.0
"""A device's requests for maps, by its page request registers: for handles that have no call for that."""

from __future__ import annotations

import contextlib
import os

from vdpa_net.driver.handle import DeviceHandle
from vdpa_net.errors import ProtocolError, VdpaNetError
from vdpa_net.wire.page_requests import ON, PAGE_MASK, PAGE_REQUESTS, REFUSED, VALID, WRITE
from vdpa_net.wire.virtio_pci import MSI_NO_VECTOR

MAX_TAKEN = 4096
"""A device that has more is asked again, but not at once: one that always has must not keep its driver."""


class PageRequests:
    """`AsksForMaps` on registers at `offset` of a region; the requests come with MSI-X vector `vector`."""

    def __init__(self, handle: DeviceHandle, region: int, offset: int, vector: int) -> None:
        self._handle = handle
        self._region = region
        self._offset = offset
        self._vector = vector
        self._fd: int | None = None

    def watch_misses(self, fd: int | None) -> None:
        """Signal this eventfd when a map is missed; None: don't wait, it is a fault.

        Raises ProtocolError for a device that does not do it, and what the handle raises; giving up never
        fails, for a device that has gone asks for nothing.
        """
        self._fd = fd
        if fd is None:
            with contextlib.suppress(VdpaNetError):
                self._write("PRQ_CTRL", 0)
                self._handle.set_irqs(self._vector, [None])
            return
        self._handle.set_irqs(self._vector, [fd])
        self._write("PRQ_VECTOR", self._vector)
        if (got := self._read("PRQ_VECTOR")) != self._vector:
            none = " (VIRTIO_MSI_NO_VECTOR)" if got == MSI_NO_VECTOR else ""
            raise ProtocolError(f"PRQ_VECTOR reads {got:#x}{none}, {self._vector} was written")
        self._write("PRQ_CTRL", ON)
        if (got := self._read("PRQ_CTRL")) != ON:
            raise ProtocolError(f"PRQ_CTRL reads {got:#x} after {ON} was written: the device does not ask")

    def take_misses(self) -> list[tuple[int, bool]]:
        """What was missed since the last call; nothing of a device that has gone."""
        found: list[tuple[int, bool]] = []
        with contextlib.suppress(VdpaNetError):
            while len(found) < MAX_TAKEN and (low := self._read("PRQ_REQUEST_LOW")) & VALID:
                word = self._read("PRQ_REQUEST_HIGH") << 32 | low
                found.append((word & PAGE_MASK, bool(word & WRITE)))
        if len(found) == MAX_TAKEN and self._fd is not None:
            os.eventfd_write(self._fd, 1)
        return found

    def retry_miss(self, iova: int, write: bool) -> None:
        """Nothing came of this; whoever still misses it says so again."""
        self._answer(iova | (WRITE if write else 0))

    def refuse_miss(self, iova: int, write: bool) -> None:
        """This page will not be mapped: the next such access is a fault."""
        self._answer(iova | (WRITE if write else 0) | REFUSED)

    def _answer(self, word: int) -> None:
        with contextlib.suppress(VdpaNetError):
            self._write("PRQ_ANSWER_LOW", word & 0xFFFF_FFFF)
            self._write("PRQ_ANSWER_HIGH", word >> 32)

    def _read(self, name: str) -> int:
        register = PAGE_REQUESTS[name]
        data = self._handle.read(self._region, self._offset + register.offset, register.width)
        return int.from_bytes(data, "little")

    def _write(self, name: str, value: int) -> None:
        register = PAGE_REQUESTS[name]
        data = value.to_bytes(register.width, "little")
        self._handle.write(self._region, self._offset + register.offset, data)
