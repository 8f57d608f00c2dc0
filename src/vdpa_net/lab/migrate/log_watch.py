# SPDX-License-Identifier: Apache-2.0
"""The source's LM registers during a migration: whether its device logged, where, and what it marked."""

from __future__ import annotations

from typing import Any

from vdpa_net.lab.side import Side


class LogWatch:
    """Looks at the device of one side, from its making on."""

    def __init__(self, side: Side) -> None:
        self._side = side
        self._first_event = len(side.device("events"))
        self._marked_before = self._pages_marked()
        self._registers: dict[str, int] = {}

    def note(self) -> None:
        """Note the registers of this moment, in pre-copy."""
        self._registers = dict(self._side.device("inspect")["lm"])

    def figures(self) -> dict[str, Any]:
        """`registers` as they were noted, the ranges that the device `started` to log to (base, end), and
        how many `pages_marked`."""
        events = self._side.device("events", since=self._first_event)
        return {
            "registers": self._registers,
            "started": [
                {"base": event["base"], "end": event["end"]}
                for event in events
                if event["event"] == "log_started"
            ],
            "pages_marked": self._pages_marked() - self._marked_before,
        }

    def _pages_marked(self) -> int:
        return int(self._side.device("inspect")["log"]["pages_marked"])
