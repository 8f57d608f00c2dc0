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


def received_packets_per_s(text: str) -> float:
    """UDP packets that arrived, a second. Raises LabError if the report does not tell.

    Of the two counts in `end.sum` packets are the sender's and the lost ones the receiver's, which knows
    nothing of those that were lost last.
    """
    try:
        received = json.loads(text)["end"]["sum_received"]
        return float(received["packets"] - received["lost_packets"]) / float(received["seconds"])
    except (ValueError, KeyError, TypeError, ZeroDivisionError) as error:
        raise LabError(f"iperf3's report has no packets in end.sum_received: {text[:300]!r}") from error
