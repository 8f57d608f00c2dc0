# SPDX-License-Identifier: Apache-2.0
"""A device behind a vfio-user socket, as a driver sees it."""

from __future__ import annotations

import os
import select
import threading

from vdpa_net import _native
from vdpa_net.closing import Closing
from vdpa_net.errors import PeerError
from vdpa_net.transport.fdsocket import close_fds
from vdpa_net.transport.vfio_user.client import DEFAULT_TIMEOUT_S, IoEventfd, VfioUserClient

_DOORBELL_BYTES = 2


class VfioUserHandle(Closing):
    """DeviceHandle of a vfio-user server.

    Kicks take the shortest way that the server offers: an eventfd for the doorbell, to which a native thread
    relays the guest's; else a thread of this handle writes the doorbell register, posted.
    """

    def __init__(self, path: str | os.PathLike[str], *, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        """Connect. `timeout_s` is how long one request may take. Raises PeerGone, PeerError."""
        self._client = VfioUserClient(path, timeout_s=timeout_s)
        self._doorbells: dict[int, list[IoEventfd]] = {}
        self._relay: _native.KickRelay | None = None
        self._writer: DoorbellWriter | None = None

    def read(self, region: int, offset: int, size: int) -> bytes:
        """Read from a region."""
        return self._client.region_read(region, offset, size)

    def write(self, region: int, offset: int, data: bytes, *, posted: bool = False) -> None:
        """Write to a region; `posted` does not wait for the device."""
        self._client.region_write(region, offset, data, posted=posted)

    def region_size(self, region: int) -> int:
        """Size of a region in bytes, 0 if it is not there."""
        return self._client.region_info(region)["size"]

    def dma_map(
        self, iova: int, size: int, fd: int, offset: int, *, readable: bool = True, writable: bool = True
    ) -> None:
        """Let the device reach a range of the file."""
        self._client.dma_map(iova, size, fd, offset, readable=readable, writable=writable)

    def dma_unmap(self, iova: int, size: int) -> None:
        """Undo one map; on return the device does not touch the range."""
        self._client.dma_unmap(iova, size)

    def set_irqs(self, start: int, fds: list[int | None]) -> None:
        """Bind MSI-X vectors to eventfds; None unbinds."""
        self._client.set_irqs(start, fds)

    def attach_kick(self, queue: int, fd: int | None, doorbell_region: int, doorbell_offset: int) -> None:
        """Make signals on this eventfd reach the queue's doorbell; None detaches."""
        if self._relay is not None:
            self._relay.remove(queue)
        if self._writer is not None:
            self._writer.remove(queue)
        if fd is None:
            return
        target = self._doorbell_fd(queue, doorbell_region, doorbell_offset)
        if target is not None:
            self._relay = self._relay or _native.KickRelay()
            self._relay.add(queue, fd, target)
        else:
            self._writer = self._writer or DoorbellWriter(self._client)
            self._writer.add(queue, fd, doorbell_region, doorbell_offset)

    def _doorbell_fd(self, queue: int, region: int, offset: int) -> int | None:
        if region not in self._doorbells:
            try:
                self._doorbells[region] = self._client.region_io_fds(region)
            except PeerError:
                if self._client.closed:
                    raise
                # The message is optional ("an optional feature intended for performance improvements").
                self._doorbells[region] = []
        for bell in self._doorbells[region]:
            if bell.offset == offset and bell.datamatch in (None, queue):
                return bell.fd
        return None

    def reset(self) -> None:
        """Device reset."""
        self._client.reset()

    def close(self) -> None:
        """Disconnect: the server resets the device and drops its maps. Idempotent."""
        if self._relay is not None:
            self._relay.close()
            self._relay = None
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        for bells in self._doorbells.values():
            close_fds(bell.fd for bell in bells)
        self._doorbells.clear()
        self._client.close()


class DoorbellWriter:
    """Turns eventfd signals into posted writes of a queue's index to its doorbell. One thread.

    A doorbell is two bytes wide (virtio 1.3, 4.1.4.4.1).
    """

    def __init__(self, client: VfioUserClient) -> None:
        self._client = client
        self._lock = threading.Lock()
        self._sources: dict[int, tuple[int, int, int]] = {}
        self._poll = select.epoll()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC)
        self._poll.register(self._wake, select.EPOLLIN)
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="doorbells", daemon=True)
        self._thread.start()

    def add(self, queue: int, fd: int, region: int, offset: int) -> None:
        """Watch (a duplicate of) this eventfd, which nobody else reads, for the queue."""
        source = os.dup(fd)
        with self._lock:
            self._sources[source] = (queue, region, offset)
            self._poll.register(source, select.EPOLLIN)

    def remove(self, queue: int) -> None:
        """Stop watching for the queue; on return no further write is made for it."""
        with self._lock:
            for source in [fd for fd, (number, _, _) in self._sources.items() if number == queue]:
                self._drop(source)

    def _drop(self, source: int) -> None:
        del self._sources[source]
        self._poll.unregister(source)
        os.close(source)

    def close(self) -> None:
        """End the thread. Idempotent."""
        if self._poll.closed:
            return
        self._closing = True
        os.eventfd_write(self._wake, 1)
        self._thread.join()
        for source in list(self._sources):
            self._drop(source)
        self._poll.close()
        os.close(self._wake)

    def _run(self) -> None:
        while True:
            for source, _ in self._poll.poll():
                if self._closing:
                    return
                with self._lock:
                    self._ring(source)

    def _ring(self, source: int) -> None:
        if source not in self._sources:
            return
        queue, region, offset = self._sources[source]
        os.eventfd_read(source)
        try:
            self._client.region_write(region, offset, queue.to_bytes(_DOORBELL_BYTES, "little"), posted=True)
        except PeerError:
            # The device is gone; whoever drives it learns that from its own requests.
            self._drop(source)
