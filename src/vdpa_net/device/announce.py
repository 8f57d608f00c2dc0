# SPDX-License-Identifier: Apache-2.0
"""Announcing a station after a restored start: RARP frames, so that switches send its traffic here.

They are repeated, since a bridge port needs a moment after the carrier comes until it forwards and learns.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

SCHEDULE_MS: Final = (5, 20, 50, 100, 200, 500)
"""When frames are sent after the first one, in milliseconds after the start."""

_MIN_FRAME_BYTES: Final = 60
_BROADCAST: Final = b"\xff" * 6
_ETHERTYPE_RARP: Final = bytes.fromhex("8035")
_ETHERNET_IPV4_REQUEST: Final = bytes.fromhex("0001 0800 06 04 0003")
_NO_ADDRESS: Final = bytes(4)


def rarp_frame(mac: bytes) -> bytes:
    """A broadcast RARP request (RFC 903) of this station for itself, padded to Ethernet's minimum."""
    frame = _BROADCAST + mac + _ETHERTYPE_RARP + _ETHERNET_IPV4_REQUEST + (mac + _NO_ADDRESS) * 2
    return frame.ljust(_MIN_FRAME_BYTES, b"\0")


class Announcer:
    """Sends a frame at once, and on a schedule from a thread of its own.

    `report(count, error)` is called after each frame. The fault `no-announce` sets `is_mute`: announcements
    are then counted in `times_mute` instead.
    """

    def __init__(
        self,
        transmit: Callable[[bytes], None],
        report: Callable[[int, Exception | None], None],
        schedule_ms: tuple[int, ...] = SCHEDULE_MS,
    ) -> None:
        self._transmit = transmit
        self._report = report
        self._schedule_ms = schedule_ms
        self._lock = threading.Lock()
        self._cancel = threading.Event()
        self._cancel.set()
        self.is_mute = False
        self.times_mute = 0

    def start(self, mac: bytes) -> None:
        """Announce this station; an announcement under way begins anew."""
        self.cancel()
        if self.is_mute:
            self.times_mute += 1
            return
        begin = time.monotonic()
        self._cancel = cancel = threading.Event()
        frame = rarp_frame(mac)
        self._send(frame, cancel, 1)
        threading.Thread(target=self._run, args=(frame, cancel, begin), name="announce", daemon=True).start()

    def cancel(self) -> None:
        """Stop. On return no frame is being sent, and none follows. Does not wait for `report`."""
        with self._lock:
            self._cancel.set()

    def _run(self, frame: bytes, cancel: threading.Event, begin: float) -> None:
        for count, due_ms in enumerate(self._schedule_ms, 2):
            if cancel.wait(max(0.0, begin + due_ms / 1000 - time.monotonic())):
                return
            self._send(frame, cancel, count)

    def _send(self, frame: bytes, cancel: threading.Event, count: int) -> None:
        error: Exception | None = None
        with self._lock:
            if cancel.is_set():
                return
            try:
                self._transmit(frame)
            except Exception as caught:
                error = caught
        self._report(count, error)
