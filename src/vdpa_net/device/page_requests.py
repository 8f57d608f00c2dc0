# SPDX-License-Identifier: Apache-2.0
"""The page request registers: what the data plane misses, for a driver that is reached by registers alone."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from vdpa_net.closing import Closing
from vdpa_net.device.msix import Msix
from vdpa_net.migration.violations import ViolationLog
from vdpa_net.wire.layout import Register
from vdpa_net.wire.page_requests import ON, PAGE_MASK, PAGE_REQUESTS, REFUSED, VALID, WRITE
from vdpa_net.wire.virtio_pci import MSI_NO_VECTOR

if TYPE_CHECKING:
    from vdpa_net._native import DmaSpace


class PageRequests(Closing):
    """RegisterFile of `wire.page_requests`. The caller holds the device's lock.

    `event_fd` is signalled when there is a request; `signalled` then raises the vector. Like the MSI-X table,
    and unlike virtio's own registers, these are reset with the function only.
    """

    def __init__(self, space: DmaSpace, msix: Msix, violations: ViolationLog) -> None:
        self._space = space
        self._msix = msix
        self._violations = violations
        self.event_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._values: dict[str, int] = {}
        self.reset()

    def load(self, register: Register) -> int:
        """Value of a register; PRQ_REQUEST_LOW takes the next request, PRQ_REQUEST_HIGH tells its rest."""
        if register.name == "PRQ_REQUEST_LOW":
            self._take()
        return self._values[register.name]

    def store(self, register: Register, value: int, written: int) -> None:  # noqa: ARG002
        """Write a register; PRQ_ANSWER_HIGH completes an answer."""
        if register.name == "PRQ_CTRL":
            self._switch(value)
            return
        if register.name == "PRQ_VECTOR" and value != MSI_NO_VECTOR and value >= self._msix.vectors:
            # As for the vectors of virtio's queues: what is not there reads as none (4.1.5.1.2.1).
            value = MSI_NO_VECTOR
        self._values[register.name] = value
        if register.name == "PRQ_ANSWER_HIGH":
            self._answer(value << 32 | self._values["PRQ_ANSWER_LOW"])

    def signalled(self) -> None:
        """There is a request: interrupt the driver."""
        if self._values["PRQ_CTRL"]:
            self._msix.raise_vector(self._values["PRQ_VECTOR"])

    def reset(self) -> None:
        """As after a reset of the function: accesses without a map are faults."""
        if self._values.get("PRQ_CTRL"):
            self._space.watch_misses(None)
        self._values = {register.name: register.reset for register in PAGE_REQUESTS}

    def close(self) -> None:
        """Give the eventfd back."""
        os.close(self.event_fd)

    def _switch(self, value: int) -> None:
        if value & ~ON:
            detail = f"expected 0 or {ON}"
            self._violations.record("page_requests", "bad_page_request_ctrl", value, "PRQ_CTRL", detail)
        elif value != self._values["PRQ_CTRL"]:
            self._values["PRQ_CTRL"] = value
            self._space.watch_misses(self.event_fd if value else None)

    def _take(self) -> None:
        # One at a time: those that wait may be mapped by then.
        requests = self._space.take_misses(1) if self._values["PRQ_CTRL"] else []
        word = 0
        for iova, write in requests:
            word = iova & PAGE_MASK | (WRITE if write else 0) | VALID
        self._values["PRQ_REQUEST_LOW"] = word & 0xFFFF_FFFF
        self._values["PRQ_REQUEST_HIGH"] = word >> 32

    def _answer(self, word: int) -> None:
        answer = self._space.refuse_miss if word & REFUSED else self._space.retry_miss
        if self._values["PRQ_CTRL"]:
            answer(word & PAGE_MASK, bool(word & WRITE))
