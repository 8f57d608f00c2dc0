# SPDX-License-Identifier: Apache-2.0
"""Announcing a station after a restored start: RARP frames, so that switches send its traffic here.

They are repeated, since a bridge port needs a moment after the carrier comes until it forwards and learns.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

from vdpa_net.errors import BackendError

SCHEDULE_MS: Final = (5, 20, 50, 100, 200, 500)
"""When frames are sent after the first one, in milliseconds after the start."""

SOON_S: Final = 2.0
"""How long an announcement, begun again, is only repeated. QEMU asks for the last of its five after 0.8 s."""

AGAIN_MS: Final = 2
"""When such a repetition is sent: behind the start that asks for it."""

RETRY_MS: Final = 5
FULL_MS: Final = 100
"""How often, and how long, a back end without room is asked again."""

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
    """Sends a frame at once, and on a schedule from a thread that lives as long as there is one to send.

    A station that is announced again soon is announced once more, and its schedule goes on: a front end has a
    schedule of its own, and one of ours for each of its requests would be a storm.

    `transmit` sends a frame without waiting, and says whether the back end took it; one that is full is asked
    again. `report(count, error)` is called after each frame. The fault `no-announce` sets `is_mute`:
    announcements are then counted in `times_mute` instead.
    """

    def __init__(
        self,
        transmit: Callable[[bytes], bool],
        report: Callable[[int, Exception | None], None],
        schedule_ms: tuple[int, ...] = SCHEDULE_MS,
    ) -> None:
        self._transmit = transmit
        self._report = report
        self._schedule_ms = schedule_ms
        self._changed = threading.Condition()
        self._frame, self._begun = b"", 0.0
        self._due: list[float] = []
        self._count = 0
        self._has_thread = False
        self.is_mute = False
        self.times_mute = 0

    def start(self, mac: bytes) -> None:
        """Announce this station, and no other one any more."""
        if self.is_mute:
            self.cancel()
            self.times_mute += 1
            return
        frame, now = rarp_frame(mac), time.monotonic()
        outcome = None
        with self._changed:
            if self._frame == frame and now - self._begun < SOON_S:
                self._due = sorted((*self._due, now + AGAIN_MS / 1000))
            else:
                self._frame, self._begun, self._count = frame, now, 0
                self._due = [now, *(now + due_ms / 1000 for due_ms in self._schedule_ms)]
                outcome = self._send()
            self._changed.notify()
        if outcome is not None:
            self._report(*outcome)
        self._keep_sending()

    def cancel(self) -> None:
        """Stop. On return no frame is being sent, and none follows. Does not wait for `report`."""
        with self._changed:
            self._frame = b""
            self._due.clear()
            self._changed.notify()

    def _keep_sending(self) -> None:
        with self._changed:
            if self._has_thread or not self._due:
                return
            self._has_thread = True
        threading.Thread(target=self._run, name="announce", daemon=True).start()

    def _run(self) -> None:
        while (outcome := self._next()) is not None:
            self._report(*outcome)

    def _next(self) -> tuple[int, Exception | None] | None:
        """Send the next frame when it is due, and say what to report; None: there is none."""
        with self._changed:
            while self._due:
                wait_s = self._due[0] - time.monotonic()
                if wait_s > 0:
                    self._changed.wait(wait_s)
                elif (outcome := self._send()) is not None:
                    return outcome
                else:
                    # Nothing tells here when a back end has room again.
                    self._changed.wait(RETRY_MS / 1000)
            self._has_thread = False
            return None

    def _send(self) -> tuple[int, Exception | None] | None:
        """Try to send the frame that is due; None: there is no room for it, and still hope."""
        error: Exception | None = None
        try:
            if not self._transmit(self._frame):
                if time.monotonic() - self._due[0] < FULL_MS / 1000:
                    return None
                error = BackendError(f"the back end has had no room for {FULL_MS} ms")
        except Exception as caught:
            error = caught
        del self._due[0]
        self._count += 1
        return self._count, error
