# SPDX-License-Identifier: Apache-2.0
"""A recorder in front of a back end: what passes goes to a pcapng file, as Wireshark and tcpdump read it.

A frame of the guest is recorded when the back end has taken it, a frame for the guest when the back end has
given it, before the receive filter. Each packet has its direction (`epb_flags`, as the guest's interface sees
it) and its virtqueue (`epb_queue`). With offloads negotiated there are frames longer than the MTU and
checksums that nobody has filled in yet, as in any recording on a virtual interface.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from vdpa_net.backend import Backend, Limits
from vdpa_net.errors import BackendError

if TYPE_CHECKING:
    from vdpa_net import _native

SNAP_BYTES = 262144
BUFFER_BYTES = 4 << 20


class Recorder:
    """The back end `inner` with a recorder to the file at `path` in front of it. Raises BackendError.

    The file is overwritten. A thread of the data plane writes it; at most `buffer_bytes` wait for it, and
    packets that find no room are counted and not recorded. `close` closes `inner`, too.
    """

    def __init__(
        self,
        inner: Backend,
        path: str | Path,
        *,
        snap_bytes: int = SNAP_BYTES,
        buffer_bytes: int = BUFFER_BYTES,
        name: str | None = None,
    ) -> None:
        if not 1 <= snap_bytes <= SNAP_BYTES or not 4096 <= buffer_bytes <= 1 << 30:
            raise BackendError(
                f"pcap: snap_bytes takes 1 to {SNAP_BYTES} and buffer_bytes 4096 to {1 << 30}, "
                f"got {snap_bytes} and {buffer_bytes}"
            )
        self.inner = inner
        self.path = Path(path)
        self.name = name or f"{inner.name}, recorded to {path}"
        self.queue_pairs = inner.queue_pairs
        self.limits: Limits = inner.limits
        self._snap_bytes = snap_bytes
        self._buffer_bytes = buffer_bytes
        self._native: _native.Recorder | None = None
        self._last: dict[str, int] = {}
        try:
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise BackendError(f"pcap: {path}: {error.strerror}", errno=error.errno) from error

    def native(self) -> _native.Recorder:
        """The packet end in the data plane."""
        if self._native is None:
            # Not at the top: the extension is loaded when a device is made, not when this is imported.
            from vdpa_net import _native  # noqa: PLC0415

            inner = self.inner.native()
            self._native = _native.Recorder(inner, self._fd, self._snap_bytes, self._buffer_bytes)
        return self._native

    def counters(self) -> dict[str, int]:
        """Packets `recorded` and `dropped`, `written_bytes`, and the `errno` that ended it (0: none)."""
        return self._last if self._native is None else self._native.counters()

    def set_carrier(self, on: bool) -> None:
        """The inner back end's carrier."""
        self.inner.set_carrier(on)

    def set_offloads(self, features: int) -> None:
        """The inner back end's offloads."""
        self.inner.set_offloads(features)

    def set_active_pairs(self, count: int) -> None:
        """The inner back end's pairs."""
        self.inner.set_active_pairs(count)

    def close(self) -> None:
        """Complete the file, and close the inner back end."""
        native, self._native = self._native, None
        if native is not None:
            native.close()
            self._last = native.counters()
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
        self.inner.close()
