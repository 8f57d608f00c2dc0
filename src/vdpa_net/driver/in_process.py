# SPDX-License-Identifier: Apache-2.0
"""A device that lives in this process, as a driver sees it."""

from __future__ import annotations

from vdpa_net.closing import Closing
from vdpa_net.device.net_device import NetDevice


class InProcessHandle(Closing):
    """DeviceHandle of a NetDevice. Kicks need no relay: the guest's eventfd becomes the queue's own."""

    def __init__(self, device: NetDevice) -> None:
        self._device = device
        self._closed = False

    def read(self, region: int, offset: int, size: int) -> bytes:
        """Read from a region. Raises AccessError outside of it."""
        return self._device.region_read(region, offset, size)

    def write(self, region: int, offset: int, data: bytes, *, posted: bool = False) -> None:  # noqa: ARG002
        """Write to a region; the device has acted on it on return, posted or not."""
        self._device.region_write(region, offset, data)

    def region_size(self, region: int) -> int:
        """Size of a region in bytes, 0 if it is not there."""
        info = self._device.region_info(region)
        return 0 if info is None else info.size

    def dma_map(
        self, iova: int, size: int, fd: int, offset: int, *, readable: bool = True, writable: bool = True
    ) -> None:
        """Let the device reach a range of the file. Raises DmaError."""
        self._device.dma_map(iova, size, fd, offset, readable=readable, writable=writable)

    def dma_unmap(self, iova: int, size: int) -> None:
        """Undo one map. Raises DmaError."""
        self._device.dma_unmap(iova, size)

    def set_irqs(self, start: int, fds: list[int | None]) -> None:
        """Bind MSI-X vectors to eventfds; None unbinds. Raises AccessError."""
        self._device.set_irqs(start, fds)

    def attach_kick(self, queue: int, fd: int | None, doorbell_region: int, doorbell_offset: int) -> None:  # noqa: ARG002
        """Make the eventfd the queue's kick; None detaches. Raises AccessError."""
        self._device.set_kick(queue, fd)

    def watch_misses(self, fd: int | None) -> None:
        """Signal this eventfd when the device misses a map, and let it wait; None: don't wait."""
        self._device.space.watch_misses(fd)

    def take_misses(self) -> list[tuple[int, bool]]:
        """What was missed since the last call: IOVA of the page, and whether it has to be writable."""
        return self._device.space.take_misses()

    def retry_miss(self, iova: int, write: bool) -> None:
        """Nothing came of a request; whoever still misses the page says so again."""
        self._device.space.retry_miss(iova, write)

    def refuse_miss(self, iova: int, write: bool) -> None:
        """This page will not be mapped: the next such access is a fault."""
        self._device.space.refuse_miss(iova, write)

    def announce(self, mac: str) -> None:
        """Announce a station on the device's network. Raises OptionError."""
        self._device.announce(mac)

    def withdraw(self) -> None:
        """The station does not come."""
        self._device.withdraw()

    def reset(self) -> None:
        """Device reset."""
        self._device.reset()

    def close(self) -> None:
        """Give the device back: it resets and forgets maps and eventfds. Idempotent."""
        if not self._closed:
            self._closed = True
            self.watch_misses(None)
            self._device.detach_client()
