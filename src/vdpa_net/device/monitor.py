# SPDX-License-Identifier: Apache-2.0
"""A thread that sleeps until an eventfd wakes it: data plane events, control queue doorbells."""

from __future__ import annotations

import contextlib
import os
import select
import threading
from collections.abc import Callable

_WAKE_BYTES = 4096


class Monitor:
    """Calls `on_event(key)` when the descriptor watched under that key has been signalled.

    Descriptors are duplicated and drained. One that can't be waited for, or hangs up, is dropped: it is a
    peer's, and must not make this thread spin.
    """

    def __init__(self, on_event: Callable[[str], None]) -> None:
        self._on_event = on_event
        self._epoll = select.epoll()
        self._lock = threading.Lock()
        self._keys: dict[int, str] = {}
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll.register(self._wake, select.EPOLLIN)
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="device events", daemon=True)
        self._thread.start()

    def watch(self, key: str, fd: int | None) -> None:
        """Watch this eventfd under `key` in place of the one before; None: none.

        Raises OSError for a bad fd.
        """
        with self._lock:
            if self._closed:
                return
            duplicate = None if fd is None else os.dup(fd)
            for old in [number for number, name in self._keys.items() if name == key]:
                self._drop(old)
            if duplicate is None:
                return
            try:
                self._epoll.register(duplicate, select.EPOLLIN)
            except OSError:
                os.close(duplicate)
                raise
            self._keys[duplicate] = key

    def close(self) -> None:
        """End the thread (unless called from it) and close the duplicates. Twice does no harm."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            os.eventfd_write(self._wake, 1)
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _run(self) -> None:
        while not self._closed:
            for fd, events in self._epoll.poll():
                key = self._take(fd, events)
                if key is not None:
                    self._on_event(key)
        with self._lock:
            for fd in list(self._keys):
                self._drop(fd)
            self._epoll.close()
            os.close(self._wake)

    def _take(self, fd: int, events: int) -> str | None:
        with self._lock:
            key = self._keys.get(fd)
            if key is None or self._closed:
                return None
            if not events & select.EPOLLIN or not _drain(fd):
                self._drop(fd)
                return None
            return key

    def _drop(self, fd: int) -> None:
        del self._keys[fd]
        with contextlib.suppress(OSError):
            self._epoll.unregister(fd)
        os.close(fd)


def _drain(fd: int) -> bool:
    """Take what has arrived; False if the descriptor gives nothing although it is readable."""
    try:
        return bool(os.read(fd, _WAKE_BYTES))
    except BlockingIOError:
        return True
    except OSError:
        return False
