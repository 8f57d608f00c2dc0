# SPDX-License-Identifier: Apache-2.0
"""What iperf3 --json tells: what arrived, by the count of the receiver."""

from __future__ import annotations

import json

from vdpa_net.errors import LabError


def received_bits_per_s(text: str) -> float:
    """Throughput at the receiver of iperf3's --json output. Raises LabError if it has none."""
    try:
        return float(json.loads(text)["end"]["sum_received"]["bits_per_second"])
    except (ValueError, KeyError, TypeError) as error:
        raise LabError(f"iperf3's report has no end.sum_received.bits_per_second: {text[:300]!r}") from error
