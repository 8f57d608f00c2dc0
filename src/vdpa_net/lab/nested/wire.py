# SPDX-License-Identifier: Apache-2.0
"""The wire that a level-2 guest migrates over: it carries one TCP connection, as far as it is told.

A level-2 guest can be so slow that nothing is dirty at the end of a pass, which ends the migration, and its
QEMU so slow to answer that the lab notices too late. A wire that carries no more than a number of bytes holds
the migration in its first pass, whatever the guest does and whenever QEMU answers.
"""

from __future__ import annotations

import contextlib
import socket
import threading

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
        self._hold_after_bytes: int | None = None
        self._carried_bytes = 0
        self._is_held = False
        self._closed = False
        self._thread = threading.Thread(target=self._serve, name="migration wire", daemon=True)
        self._thread.start()

    def hold_after(self, size_bytes: int) -> None:
        """Carry so much towards the target in all, and then wait for `go_on`."""
        with self._changed:
            self._hold_after_bytes = size_bytes

    def wait_held(self, timeout_s: float) -> bool:
        """Return once it holds; false if it does not come to that in time, or is broken."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_held or self._closed, timeout_s)
            return self._is_held and not self._closed

    def go_on(self) -> None:
        """Hold no more: carry whatever comes."""
        with self._changed:
            self._hold_after_bytes = None
            self._is_held = False
            self._changed.notify_all()

    def close(self) -> None:
        """Cut it. Safe to call again."""
        self._break(self._listener)
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

    def _carry(self, source: socket.socket, target: socket.socket, holds: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(CHUNK_BYTES):
                target.sendall(data)
                if holds:
                    self._count(len(data))
            if holds:
                _shut(target, socket.SHUT_WR)
                return
        # An end that is gone, or has nothing more to answer, leaves the other nothing to wait for.
        self._break()

    def _count(self, size_bytes: int) -> None:
        """So much has been carried; wait if that is far enough."""
        with self._changed:
            self._carried_bytes += size_bytes
            while not self._closed and self._is_far_enough():
                self._is_held = True
                self._changed.notify_all()
                self._changed.wait()

    def _is_far_enough(self) -> bool:
        return self._hold_after_bytes is not None and self._carried_bytes >= self._hold_after_bytes

    def _break(self, *more: socket.socket) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            ends = [*more, *self._ends]
        for end in ends:
            _shut(end, socket.SHUT_RDWR)


def _shut(end: socket.socket, how: int) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(how)
