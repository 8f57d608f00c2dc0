# SPDX-License-Identifier: Apache-2.0
"""Progress of an image build, read from what mmdebstrap and apt print."""

from __future__ import annotations

import re

_UNITS = {"B": 1, "kB": 1000, "MB": 1000**2, "GB": 1000**3}
_SIZE = r"(?P<number>[\d.,]+) (?P<unit>[kMG]?B)"
_NEEDED = re.compile(rf"^Need to get (?:[\d.,]+ [kMG]?B/)?{_SIZE} of archives")
_GOT = re.compile(rf"^Get:\d+ .* \[{_SIZE}\]$")
_PLANNED = re.compile(r"^\d+ upgraded, (\d+) newly installed")
_PHASES = (
    (re.compile(r"^I: running apt-get update"), "reading the package lists"),
    (re.compile(r"^I: downloading packages"), "fetching the base system"),
    (re.compile(r"^I: extracting archives"), "unpacking the base system"),
    (re.compile(r"^I: installing essential"), "installing the base system"),
    (re.compile(r"^I: running --essential-hook"), "fetching packages"),
    (re.compile(r"^I: installing remaining"), "installing packages"),
    (re.compile(r"^I: cleaning"), "cleaning up"),
)


class BuildLog:
    """Feed it every line; it says what is being done and how far that is."""

    def __init__(self) -> None:
        self._phase = "starting"
        self._needed_bytes = 0
        self._got_bytes = 0
        self._planned_steps = 0
        self._steps = 0

    def feed(self, line: str) -> tuple[str, float | None]:
        """The phase, and the share of it that is done (None: not known)."""
        line = line.rstrip()
        for pattern, phase in _PHASES:
            if pattern.match(line):
                self._phase, self._needed_bytes, self._got_bytes, self._steps = phase, 0, 0, 0
        if match := _NEEDED.match(line):
            self._needed_bytes = _bytes(match)
        elif match := _GOT.match(line):
            self._got_bytes += _bytes(match)
        elif match := _PLANNED.match(line):
            # Each package is unpacked and then set up.
            self._planned_steps = 2 * int(match[1])
        elif line.startswith(("Unpacking ", "Setting up ")):
            self._steps += 1
        return self._phase, self._fraction()

    def _fraction(self) -> float | None:
        if self._phase.startswith("fetching") and self._needed_bytes:
            return min(1.0, self._got_bytes / self._needed_bytes)
        if self._phase.startswith("installing") and self._planned_steps:
            return min(1.0, self._steps / self._planned_steps)
        return None


def _bytes(match: re.Match[str]) -> int:
    return int(float(match["number"].replace(",", "")) * _UNITS[match["unit"]])
