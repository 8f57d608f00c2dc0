# SPDX-License-Identifier: Apache-2.0
"""What the device may reach, and whoever else works on the same memory beside it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from vdpa_net._native import DmaSpace


class DmaTarget(Protocol):
    """Something with a DMA space of its own: a device handle, or `DeviceMaps` in front of one."""

    def dma_map(
        self, iova: int, size: int, fd: int, offset: int, *, readable: bool = True, writable: bool = True
    ) -> None:
        """Let it reach [iova, iova + size) through the file."""

    def dma_unmap(self, iova: int, size: int) -> None:
        """Undo one map."""


@dataclass(frozen=True)
class DmaMapping:
    """One map. The descriptor is borrowed from the memory region or log that is mapped."""

    iova: int
    size: int
    fd: int
    offset: int
    readable: bool
    writable: bool


class DeviceMaps:
    """All maps of a device, and where it logs. A mirror has the same from `mirror_to` on. Not thread-safe."""

    def __init__(self, device: DmaTarget) -> None:
        self._device = device
        self._log: tuple[int, int] | None = None
        self._maps: dict[int, DmaMapping] = {}
        self._mirror: DmaSpace | None = None

    def dma_map(
        self, iova: int, size: int, fd: int, offset: int, *, readable: bool = True, writable: bool = True
    ) -> None:
        """Let the device reach [iova, iova + size). The descriptor stays open until `dma_unmap`.

        Raises what the device raises, and DmaError if the mirror can't follow; then nothing is mapped.
        """
        mapping = DmaMapping(iova, size, fd, offset, readable, writable)
        self._device.dma_map(iova, size, fd, offset, readable=readable, writable=writable)
        if self._mirror is not None:
            try:
                _map(self._mirror, mapping)
            except BaseException:
                self._device.dma_unmap(iova, size)
                raise
        self._maps[iova] = mapping

    def dma_unmap(self, iova: int, size: int) -> None:
        """Undo one map; on return neither the device nor the mirror touches the range."""
        if self._mirror is not None:
            self._mirror.unmap(iova, size)
        self._maps.pop(iova, None)
        self._device.dma_unmap(iova, size)

    def log_to(self, log: tuple[int, int] | None) -> None:
        """The device logs to [base, end) from now on, or not at all; so does the mirror. Raises DmaError."""
        self._log = log
        if self._mirror is not None:
            _set_log(self._mirror, log)

    def mirror_to(self, space: DmaSpace | None) -> None:
        """Let this space have what the device has; None: no space any more. Raises DmaError."""
        if space is not None:
            for mapping in self._maps.values():
                _map(space, mapping)
            _set_log(space, self._log)
        self._mirror = space


def _set_log(space: DmaSpace, log: tuple[int, int] | None) -> None:
    if log is None:
        space.stop_log()
    else:
        space.start_log(*log)


def _map(space: DmaSpace, mapping: DmaMapping) -> None:
    space.map(mapping.iova, mapping.size, mapping.fd, mapping.offset, mapping.readable, mapping.writable)
