# SPDX-License-Identifier: Apache-2.0
"""The wire that a level-2 guest migrates over: it carries one TCP connection, no faster than it is told.

QEMU's own limit (max-bandwidth) counts what it has flushed, 128 KiB at once, and looks ten times a second: it
can't be slower than 1.3 MB/s. A level-2 guest dirties less than that, and a pass that finds nothing to send
ends the migration. On a wire that is slower than the guest it lasts as long as the lab wants.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time

from vdpa_net.closing import Closing

CONNECT_SECONDS = 60
BUFFER_BYTES = 64 << 10
"""What is under way on the wire; the kernel takes twice as much for it."""

CHUNK_BYTES = 4 << 10


class MigrationWire(Closing):
    """Listens on `address` (host, port); what connects there is joined with `target`."""

    def __init__(self, host: str, target: tuple[str, int]) -> None:
        """Listen on a free port of the host's address. Raises OSError."""
        self._target = target
        self._listener = socket.socket()
        # Accepted sockets have it from the beginning, as the window of TCP needs it.
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
        self._listener.bind((host, 0))
        self._listener.listen(1)
        self.address: tuple[str, int] = self._listener.getsockname()
        self._ends: list[socket.socket] = []
        self._changed = threading.Condition()
        self._bytes_per_s: int | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._serve, name="migration wire", daemon=True)
        self._thread.start()

    def limit(self, bytes_per_s: int | None) -> None:
        """Carry no more than this from now on; None: as much as comes."""
        with self._changed:
            self._bytes_per_s = bytes_per_s
            self._changed.notify_all()

    def close(self) -> None:
        """Cut it. Safe to call again."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            ends = [self._listener, *self._ends]
        for end in ends:
            _shut(end, socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            near = self._listener.accept()[0]
            with near, socket.create_connection(self._target, CONNECT_SECONDS) as far:
                far.settimeout(None)
                with self._changed:
                    self._ends = [near, far]
                    if self._closed:
                        return
                back = threading.Thread(target=self._carry, args=(far, near, False), daemon=True)
                back.start()
                self._carry(near, far, True)
                back.join()

    def _carry(self, source: socket.socket, target: socket.socket, slowly: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(CHUNK_BYTES):
                target.sendall(data)
                if slowly:
                    self._pause(len(data))
            _shut(target, socket.SHUT_WR)
            return
        # One that is broken breaks the other.
        for end in (source, target):
            _shut(end, socket.SHUT_RDWR)

    def _pause(self, size: int) -> None:
        """Wait as long as so much takes at the limit, and no longer than it is in force."""
        began_s = time.monotonic()
        with self._changed:
            while self._bytes_per_s is not None and not self._closed:
                left_s = began_s + size / self._bytes_per_s - time.monotonic()
                if left_s <= 0:
                    return
                self._changed.wait(left_s)


def _shut(end: socket.socket, how: int) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(how)
