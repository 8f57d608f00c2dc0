# SPDX-License-Identifier: Apache-2.0
"""The front end's dirty log: LOG_ALL, SET_LOG_BASE and SET_LOG_FD, in any order and any number of times.

Without a vIOMMU the device marks the front end's log itself. Behind one its pages are IOVAs, while the front
end's log holds guest physical pages: the device gets a private log, from which marks are carried over through
the translations of the moment: before one of them is given up, periodically, and after a ring has stopped.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Sequence
from typing import Final

from vdpa_net.driver.front_log import FrontLog, PrivateLog, Translation
from vdpa_net.driver.log_area import LogArea
from vdpa_net.driver.timers import Timer
from vdpa_net.driver.vdpa_driver import VdpaDriver
from vdpa_net.driver.vring import close_fd, keep_eventfd

PERIOD_S: Final = 0.02
"""How often marks are carried over and the front end is told of them while the log runs."""


class VhostLog:
    """One device's log for one front end at a time. The caller holds the back end's lock, which is `lock`.

    `translations` gives those in force behind a vIOMMU. `complain` is told of marks that found no place.
    """

    def __init__(self, driver: VdpaDriver, lock: threading.RLock, complain: Callable[[str], None]) -> None:
        self._driver = driver
        self._lock = lock
        self.translations: Callable[[], Sequence[Translation]] = list
        self._wanted = False
        self._translated = False
        self._area: LogArea | None = None
        self._front: FrontLog | None = None
        self._private: PrivateLog | None = None
        self._fd: int | None = None
        self._timer: Timer | None = None
        self._complain = complain

    def set_base(self, size_bytes: int, offset_bytes: int, fd: int) -> None:
        """Use this log, from now on if LOG_ALL is set. Raises ProtocolError; then the old one is in force."""
        area = LogArea(size_bytes, offset_bytes, fd)
        front: FrontLog | None = None
        try:
            front = FrontLog(area)
            if self._wanted and self._driver.is_running and self._private is None:
                self._driver.start_logging(self._for_device(area))
        except BaseException:
            if front is not None:
                front.close()
            area.close()
            raise
        self._forget_front()
        self._area, self._front = area, front
        self._settle()

    def set_wanted(self, wanted: bool) -> None:
        """LOG_ALL. Raises what the device raises; then nothing has changed."""
        if self._driver.is_running:
            if not wanted:
                self._driver.stop_logging()
                self.carry_over()
                self._drop_private()
            elif self._area is not None and not self._driver.is_logging:
                self._driver.start_logging(self._for_device(self._area))
        self._wanted = wanted
        self._settle()

    def set_fd(self, fd: int) -> None:
        """Signal this eventfd when the log was written."""
        before, self._fd = self._fd, keep_eventfd(fd)
        close_fd(before)
        self._settle()

    def for_start(self, *, translated: bool) -> LogArea | None:
        """Where a device that starts is to log; `translated`: its addresses are IOVAs."""
        self._translated = translated
        self._drop_private()
        if not self._wanted or self._area is None:
            return None
        return self._for_device(self._area)

    def cover(self, end: int) -> None:
        """Have a bit for every page below `end` in the private log, if there is one.

        Raises what the device raises; then the old one is in force.
        """
        old = self._private
        if old is None or end <= old.covered:
            return
        fresh = PrivateLog(end)
        try:
            self._driver.start_logging(fresh.area)
        except BaseException:
            fresh.close()
            raise
        self.carry_over()
        self._private = fresh
        old.close()

    def carry_over(self, translations: Sequence[Translation] | None = None) -> None:
        """Carry the marks of these translations, or of all in force, over to the front end's log."""
        if self._private is None or self._front is None:
            return
        entries = self.translations() if translations is None else translations
        if self._front.carry_over(self._private, entries):
            self._signal()
        for complaint in self._front.take_complaints():
            self._complain(complaint)

    def close(self) -> None:
        """The front end is gone: forget everything."""
        self._wanted = self._translated = False
        self._settle()
        self._drop_private()
        self._forget_front()
        close_fd(self._fd)
        self._fd = None

    # --- steps ---------------------------------------------------------------------------------------

    def _for_device(self, area: LogArea) -> LogArea:
        if not self._translated:
            return area
        ends = [iova + size for iova, size, _ in self.translations()]
        self._drop_private()
        self._private = PrivateLog(max(ends, default=1))
        return self._private.area

    def _settle(self) -> None:
        """Look at the log from time to time, or not."""
        needed = self._wanted and self._area is not None
        if needed and self._timer is None:
            self._timer = Timer(PERIOD_S, self._lock, self._look, repeat=True)
        elif not needed and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        if self._private is not None:
            self.carry_over()
        elif self._fd is not None and self._front is not None and self._front.has_marks():
            self._signal()

    def _signal(self) -> None:
        if self._fd is not None:
            with contextlib.suppress(OSError):
                os.eventfd_write(self._fd, 1)

    def _forget_front(self) -> None:
        if self._front is not None:
            self._front.close()
        if self._area is not None:
            self._area.close()
        self._front = self._area = None

    def _drop_private(self) -> None:
        if self._private is not None:
            self._private.close()
            self._private = None
