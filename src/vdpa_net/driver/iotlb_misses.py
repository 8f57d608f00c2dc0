# SPDX-License-Identifier: Apache-2.0
"""Asking the front end for translations: what the device and the rings miss.

Nobody waits for an answer here. A front end that answers slowly, or that is itself waiting for us on the main
socket, holds up one queue and nothing else.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from vdpa_net.driver.handle import AsksForMaps
from vdpa_net.driver.wake_thread import WakeThread
from vdpa_net.transport.vhost_user.channel import BackendChannel
from vdpa_net.wire.vhost_user import IOTLB_READ, IOTLB_WRITE, IotlbType


@dataclass(frozen=True)
class _Request:
    """A page that is asked for. `of_ring`: by a ring that is to start, not by the device."""

    iova: int
    write: bool
    of_ring: bool = False

    @property
    def permissions(self) -> int:
        return IOTLB_WRITE if self.write else IOTLB_READ


class IotlbMisses:
    """The requests under way. The caller holds the back end's lock, `lock`.

    `is_translated(iova, write)` says whether a page needs no asking any more. `on_refused(iova)` is called
    with the lock held when the front end has no translation for a page.
    """

    def __init__(
        self,
        device: AsksForMaps,
        lock: threading.RLock,
        is_translated: Callable[[int, bool], bool],
        on_refused: Callable[[int], None],
    ) -> None:
        self._device = device
        self._lock = lock
        self._is_translated = is_translated
        self._on_refused = on_refused
        self._asked: dict[_Request, int] = {}
        self._count = 0
        self._doubtful: set[_Request] = set()
        self._channel: BackendChannel | None = None
        self._closing = False
        self._thread = WakeThread("iotlb misses", self._take_misses)
        self._thread.start()

    def watch(self, on: bool) -> None:
        """Take the device's misses for requests, or for the faults that they are without an IOMMU."""
        self._asked.clear()
        self._doubtful.clear()
        self._device.watch_misses(self._thread.fd if on else None)

    def use_channel(self, channel: BackendChannel | None) -> None:
        """Ask by this channel, for what is under way, too."""
        self._channel = channel
        under_way, self._asked = self._asked, {}
        for request in under_way:
            self._ask(request)

    def ask_for_ring(self, iova: int) -> None:
        """Ask for a page of a ring, unless that has been done."""
        self._ask(_Request(iova, True, of_ring=True))

    def updated(self, iova: int, size: int) -> None:
        """There is a translation for these addresses now."""
        for request in [item for item in self._asked if iova <= item.iova < iova + size]:
            del self._asked[request]
        self._doubtful = {item for item in self._doubtful if not iova <= item.iova < iova + size}

    def close(self) -> None:
        """Ask no more; misses are faults again. Not with the lock held."""
        self._closing = True
        self._device.watch_misses(None)
        self._thread.close()

    def _take_misses(self) -> None:
        if self._closing:
            return
        with self._lock:
            for iova, write in self._device.take_misses():
                self._ask(_Request(iova, write))

    def _ask(self, request: _Request) -> None:
        if self._is_translated(request.iova, request.write):
            # It came while the lock was not ours.
            self._device.retry_miss(request.iova, request.write)
        elif self._channel is not None and request not in self._asked:
            self._count += 1
            number = self._asked[request] = self._count
            self._channel.iotlb(
                IotlbType.MISS,
                request.iova,
                request.permissions,
                lambda _success: self._answered(request, number),
            )

    def _answered(self, request: _Request, number: int) -> None:
        """The front end is through with a request: an update came before its answer, or none will."""
        with self._lock:
            if self._closing or self._asked.get(request) != number:
                return
            del self._asked[request]
            if not request.of_ring and request not in self._doubtful:
                # The page may have been given up while the request was under way. Who needs it asks again.
                self._doubtful.add(request)
                self._device.retry_miss(request.iova, request.write)
                return
            self._doubtful.discard(request)
            self._device.refuse_miss(request.iova, request.write)
            if self._channel is not None:
                self._channel.iotlb(IotlbType.ACCESS_FAIL, request.iova, request.permissions)
            self._on_refused(request.iova)
