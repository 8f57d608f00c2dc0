# SPDX-License-Identifier: Apache-2.0
"""What a migration has come to at this moment, for the progress line of a terminal."""

from __future__ import annotations

from dataclasses import dataclass

from vdpa_net.lab.traffic.endpoint import TrafficEndpoint

NOTABLE_SILENCE_MS = 20.0
"""Silences below it are the pauses between packets."""


@dataclass
class LiveFigures:
    """Written by whoever knows better, read by the terminal's own thread; None is not known."""

    transferred_bytes: int | None = None
    dirty_pages_per_s: int | None = None
    longest_silence_ms: float = 0.0
    endpoint: TrafficEndpoint | None = None

    def reset(self) -> None:
        """A new round begins."""
        self.transferred_bytes = self.dirty_pages_per_s = None
        self.longest_silence_ms = 0.0

    def take(self, info: dict[str, object]) -> None:
        """Note what query-migrate returned."""
        ram = info.get("ram")
        if isinstance(ram, dict):
            self.transferred_bytes = int(ram.get("transferred", 0))
            self.dirty_pages_per_s = int(ram.get("dirty-pages-rate", 0))

    def text(self) -> str:
        """Transferred, dirty rate, and the gap so far."""
        words = []
        if self.transferred_bytes is not None:
            words.append(f"{self.transferred_bytes / (1 << 20):.1f} MiB sent")
        if self.dirty_pages_per_s is not None:
            words.append(f"dirty {self.dirty_pages_per_s} pages/s")
        if self.endpoint is not None:
            self.longest_silence_ms = max(self.longest_silence_ms, self.endpoint.silence_ms)
            if self.longest_silence_ms >= NOTABLE_SILENCE_MS:
                words.append(f"gap so far {self.longest_silence_ms:.0f} ms")
        return ", ".join(words)
