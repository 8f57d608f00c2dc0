# SPDX-License-Identifier: Apache-2.0
"""What a vDPA driver needs of a device, wherever the device is.

Implementations: `in_process` (the device lives in this process), `vfio_user` (behind a vfio-user socket). A
kernel VFIO handle (`vfio`) has its place beside them.
"""

from __future__ import annotations

from types import TracebackType
from typing import Protocol, Self, runtime_checkable


class DeviceHandle(Protocol):
    """A PCI function: regions by VFIO index, a DMA space, MSI-X vectors, doorbells.

    Region indices are VFIO's: 0 to 5 are BARs, 7 is the configuration space. Every call returns when the
    device has acted on it, except for writes with `posted=True`. Raises PeerError when the device refuses,
    PeerGone when it is not there any more.
    """

    def read(self, region: int, offset: int, size: int) -> bytes:
        """Read `size` bytes; the device sees one access for sizes 1, 2, 4 and 8."""

    def write(self, region: int, offset: int, data: bytes, *, posted: bool = False) -> None:
        """Write bytes; `posted` does not wait for the device."""

    def region_size(self, region: int) -> int:
        """Size of a region in bytes, 0 if it is not there."""

    def dma_map(
        self, iova: int, size: int, fd: int, offset: int, *, readable: bool = True, writable: bool = True
    ) -> None:
        """Let the device reach [iova, iova + size) through the file. The caller keeps its fd."""

    def dma_unmap(self, iova: int, size: int) -> None:
        """Undo one map; on return the device does not touch the range."""

    def set_irqs(self, start: int, fds: list[int | None]) -> None:
        """Bind MSI-X vectors from `start` on to eventfds (duplicated); None unbinds."""

    def attach_kick(self, queue: int, fd: int | None, doorbell_region: int, doorbell_offset: int) -> None:
        """Make signals on this eventfd reach the queue's doorbell; None detaches."""

    def reset(self) -> None:
        """Device reset (VFIO_DEVICE_RESET)."""

    def close(self) -> None:
        """Give the device back."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


@runtime_checkable
class AsksForMaps(Protocol):
    """A device that can wait for a map which it misses, as one behind a guest's IOMMU has to.

    A handle can have it. VFIO and vfio-user have no message for that: behind those it takes registers
    (`driver.page_requests`).
    """

    def watch_misses(self, fd: int | None) -> None:
        """Signal this eventfd when a map is missed, and wait for it; None: don't wait, it is a fault."""

    def take_misses(self) -> list[tuple[int, bool]]:
        """What was missed since the last call: the page's IOVA, and whether it has to be writable.

        Each comes once, until it is mapped, retried or refused.
        """

    def retry_miss(self, iova: int, write: bool) -> None:
        """Nothing came of this; whoever still misses it says so again."""

    def refuse_miss(self, iova: int, write: bool) -> None:
        """This page will not be mapped: the next such access is a fault."""


@runtime_checkable
class CanAnnounce(Protocol):
    """A handle whose device can be asked to announce a station; no register does that."""

    def announce(self, mac: str) -> None:
        """Announce this MAC address on the device's network, and keep what comes for it until DRIVER_OK.

        Raises OptionError.
        """

    def withdraw(self) -> None:
        """What was announced before DRIVER_OK does not come."""
