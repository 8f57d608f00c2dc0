# SPDX-License-Identifier: Apache-2.0
"""A guest with an IOMMU (`iommu_platform=on`): its device reaches memory by the front end's translations.

Ring addresses are IOVAs then, and so is everything that the device sees. Without an IOMMU ring addresses are
user addresses of the front end, and the device sees guest physical ones.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from vdpa_net.driver.iotlb import Iotlb
from vdpa_net.driver.iotlb_misses import IotlbMisses
from vdpa_net.driver.memory_table import MemoryTable
from vdpa_net.driver.vdpa_driver import VdpaDriver
from vdpa_net.driver.vhost_log import VhostLog
from vdpa_net.errors import ProtocolError
from vdpa_net.transport.vhost_user.channel import BackendChannel
from vdpa_net.wire.vhost_user import MemoryRegion


class NotTranslated(ProtocolError):
    """There is no translation yet; it has been asked for."""


class VhostIommu:
    """Translations of one front end at a time. The caller holds the back end's lock, `lock`.

    `complain` is told what the front end would not translate.
    """

    def __init__(
        self,
        driver: VdpaDriver,
        lock: threading.RLock,
        memory: MemoryTable,
        log: VhostLog,
        complain: Callable[[str], None],
    ) -> None:
        self._device = driver.asks_for_maps()
        self._lock = lock
        self._memory = memory
        self._complain = complain
        self._misses: IotlbMisses | None = None
        self._channel: BackendChannel | None = None
        self.iotlb = Iotlb(memory, driver.maps, log)
        self.translated = False
        memory.on_close = self.iotlb.forget_region

    @property
    def is_possible(self) -> bool:
        """Whether the device can wait for translations."""
        return self._device is not None

    def set_translated(self, translated: bool) -> None:
        """Whether the guest has an IOMMU from now on, for a device that does not run.

        Raises what the device raises.
        """
        if translated == self.translated or self._device is None:
            return
        self.iotlb.clear()
        self._memory.set_direct(not translated)
        self.translated = translated
        if translated and self._misses is None:
            self._misses = IotlbMisses(self._device, self._lock, self._is_translated, self._refused)
            self._misses.use_channel(self._channel)
        if self._misses is not None:
            self._misses.watch(translated)

    def use_channel(self, channel: BackendChannel | None) -> None:
        """Ask the front end by this channel."""
        self._channel = channel
        if self._misses is not None:
            self._misses.use_channel(channel)

    def update(self, iova: int, size: int, user_address: int, permissions: int) -> None:
        """Take a translation. Raises ProtocolError."""
        self.iotlb.update(iova, size, user_address, permissions)
        if self._misses is not None:
            self._misses.updated(iova, size)

    def disconnected(self) -> IotlbMisses | None:
        """Forget everything; what is returned is to be closed without the lock."""
        self.iotlb.clear()
        # Regions that are only translated were never mapped as they are, and need not be mappable.
        self._memory.clear()
        self._memory.set_direct(True)
        self.translated = False
        self._channel = None
        misses, self._misses = self._misses, None
        return misses

    # --- memory as the rings see it ------------------------------------------------------------------

    @property
    def regions(self) -> list[MemoryRegion]:
        """The front end's memory regions."""
        return self._memory.regions

    def guest_address(self, address: int, size: int, what: str) -> int:
        """The device's address of part of a ring.

        Raises ProtocolError outside of every region, NotTranslated where a translation is still to come.
        """
        if not self.translated:
            return self._memory.guest_address(address, size, what)
        page = self.iotlb.missing(address, size, write=True)
        if page is None:
            return address
        if self._misses is not None:
            self._misses.ask_for_ring(page)
        raise NotTranslated(f"{what}: there is no translation of {page:#x}")

    def guest_addresses(self, areas: tuple[int, int, int]) -> tuple[int, int, int]:
        """Where three areas, of which the device's addresses are given, begin in guest memory."""
        if not self.translated:
            return areas
        first, second, third = (self.iotlb.guest_address(address, "ring") for address in areas)
        return first, second, third

    def u16(self, address: int) -> int:
        """The 16-bit value at an address of the device. Raises ProtocolError."""
        if self.translated:
            address = self.iotlb.guest_address(address, "ring")
        return self._memory.u16(address)

    def _is_translated(self, iova: int, write: bool) -> bool:
        return self.iotlb.missing(iova, 1, write=write) is None

    def _refused(self, iova: int) -> None:
        self._complain(f"the front end has no translation of {iova:#x}")
