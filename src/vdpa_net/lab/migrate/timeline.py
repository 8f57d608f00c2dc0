# SPDX-License-Identifier: Apache-2.0
"""When what happened in a round, for its report. Instants are CLOCK_MONOTONIC in ns, None where not known."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass

from vdpa_net.lab.traffic.reception import TrafficReport

WINDOW_NS = 3_000_000_000
"""How much of the traffic around the switch-over the report shows, on either side."""


@dataclass
class Timeline:
    """The instants of one migration, in the order in which they come; `silence` is the gap's two ends."""

    begun_ns: int = 0
    released_ns: int = 0
    stop_request_ns: int = 0
    stopped_ns: int | None = None
    ended_ns: int = 0
    compared_ns: int | None = None
    started_ns: int | None = None
    silence: tuple[int, int] | None = None

    def served_again_ns(self) -> int:
        """When the destination's device served the guest, or the best that is known about it."""
        return max(self.started_ns or 0, self.ended_ns, self.compared_ns or 0)

    def to_json(self, report: TrafficReport, lost_ns: list[int]) -> dict[str, object]:
        """The instants, and the packets around them: round trips as pairs (sent, taken), the times of the
        packets that were lost in the gap, and the arrivals from the guest."""
        first = self.stop_request_ns - WINDOW_NS
        again_ns = self.silence[1] if self.silence else 0
        last = max(self.ended_ns, self.compared_ns or 0, self.started_ns or 0, again_ns) + WINDOW_NS
        return {
            **asdict(self),
            "round_trips": [pair for pair in report.round_trips if first <= pair[0] <= last],
            "lost_ns": lost_ns,
            "arrivals_ns": [at_ns for at_ns in report.arrivals_ns() if first <= at_ns <= last],
        }


def host_clock_ns(realtime_s: float) -> int:
    """An instant of CLOCK_REALTIME (QEMU's time stamps) in CLOCK_MONOTONIC ns."""
    return time.monotonic_ns() - time.time_ns() + int(realtime_s * 1e9)
