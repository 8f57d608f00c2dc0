# SPDX-License-Identifier: Apache-2.0
"""Asking the front end for translations: what the device and the rings miss.

Nobody waits for an answer here. A front end that answers slowly, or that is itself waiting for us on the main
socket, holds up one queue and nothing else.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from vdpa_net.driver.handle import AsksForMaps
from vdpa_net.transport.vhost_user.channel import BackendChannel
from vdpa_net.wire.vhost_user import IOTLB_READ, IOTLB_WRITE, IotlbType

ASK_AGAIN_S: Final = 1.0
"""A request that was not answered is repeated after this time, if somebody still needs it."""


@dataclass
class _Asked:
    permissions: int
    at_s: float


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
        self._asked: dict[int, _Asked] = {}
        self._channel: BackendChannel | None = None
        self._closing = False
        self._fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread = threading.Thread(target=self._run, name="iotlb misses", daemon=True)
        self._thread.start()

    def watch(self, on: bool) -> None:
        """Take the device's misses for requests, or for the faults that they are without an IOMMU."""
        self._device.watch_misses(self._fd if on else None)

    def use_channel(self, channel: BackendChannel | None) -> None:
        """Ask by this channel; what was asked by another one is asked again when it is needed."""
        self._channel = channel
        self._asked.clear()

    def ask(self, iova: int, *, write: bool) -> None:
        """Ask for a page, unless that has been done."""
        if self._channel is None:
            return
        permissions = IOTLB_WRITE if write else IOTLB_READ
        known = self._asked.get(iova)
        now_s = time.monotonic()
        if known is not None and known.permissions & permissions and now_s < known.at_s + ASK_AGAIN_S:
            return
        asked = _Asked(permissions | (known.permissions if known is not None else 0), now_s)
        self._asked[iova] = asked
        self._channel.iotlb(IotlbType.MISS, iova, permissions, lambda _success: self._answered(iova, asked))

    def updated(self, iova: int, size: int) -> None:
        """There is a translation for these addresses now."""
        for page in [page for page in self._asked if iova <= page < iova + size]:
            del self._asked[page]

    def close(self) -> None:
        """Ask no more; misses are faults again. Not with the lock held."""
        self._closing = True
        self._device.watch_misses(None)
        os.eventfd_write(self._fd, 1)
        self._thread.join()
        os.close(self._fd)

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        while True:
            poll.poll()
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._fd)
            if self._closing:
                return
            with self._lock:
                for iova, write in self._device.take_misses():
                    # The translation may have come while the lock was not ours.
                    if not self._is_translated(iova, write):
                        self.ask(iova, write=write)

    def _answered(self, iova: int, asked: _Asked) -> None:
        """The front end is through with a request: an update came before its answer, or none will."""
        with self._lock:
            if self._closing or self._asked.get(iova) is not asked:
                return
            del self._asked[iova]
            self._device.refuse_miss(iova)
            if self._channel is not None:
                self._channel.iotlb(IotlbType.ACCESS_FAIL, iova, asked.permissions)
            self._on_refused(iova)
