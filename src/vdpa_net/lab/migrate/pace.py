# SPDX-License-Identifier: Apache-2.0
"""How fast things are expected to go in a topology: a guest of a guest takes its time."""

from __future__ import annotations

from dataclasses import dataclass

from vdpa_net.lab.traffic.flows import WINDOW


@dataclass(frozen=True)
class Pace:
    """Seconds to wait at most, and QEMU's limits in bytes per second.

    `later_passes_bytes_per_s` is less than what the traffic dirties and more than nothing: passes end, and
    never find nothing to send. `end_of_first_pass_bytes_per_s` is slow enough for its end to be noticed:
    later passes at full speed take a millisecond. A busy machine notices it late even so: the end is
    approached, what remains of the first pass is to last `glide_s`. `sample_s` is the time between two looks
    at what nobody announces. `busy_window_s` is how long before the release of a migration every ring has to
    have moved at the latest for it to count as busy at its stop: between release and stop alone a guest may
    get no processor of a busy machine. `window_datagrams` is `TrafficOptions.window`; `afterwards_datagrams`
    have to come from a guest that goes on where it is.
    """

    phase_s: float = 120
    logging_s: float = 15
    progress_s: float = 30
    traffic_s: float = 120
    load_s: float = 60
    sample_s: float = 0.02
    busy_window_s: float = 0.2
    warm_up_datagrams: int = 200
    window_datagrams: int = WINDOW
    afterwards_datagrams: int = 300
    first_pass_bytes_per_s: int = 96 << 20
    end_of_first_pass_bytes_per_s: int = 8 << 20
    glide_s: float = 1
    later_passes_bytes_per_s: int = 1 << 20


FLAT = Pace()
