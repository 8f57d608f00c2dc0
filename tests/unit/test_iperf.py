# SPDX-License-Identifier: Apache-2.0
"""Reports of iperf3."""

from __future__ import annotations

import json

import pytest

from vdpa_net.errors import LabError
from vdpa_net.lab.iperf import received_bits_per_s, received_packets_per_s

REPORT = {
    "sum": {"packets": 51035, "lost_packets": 32525, "seconds": 1.1, "sender": True},
    "sum_received": {"packets": 48279, "lost_packets": 32525, "seconds": 2.0, "bits_per_second": 2511393.5},
}


def test_packets_that_arrived_are_those_that_the_receiver_missed_nothing_of() -> None:
    assert received_packets_per_s(json.dumps({"end": REPORT})) == (48279 - 32525) / 2


def test_bits_are_those_of_the_receiver() -> None:
    assert received_bits_per_s(json.dumps({"end": REPORT})) == 2511393.5


@pytest.mark.parametrize(
    "text", ["", "{}", '{"end": {"sum": {"packets": 1}}}', '{"end": {"sum_received": {}}}']
)
def test_a_report_without_a_result_is_an_error(text: str) -> None:
    for read in (received_packets_per_s, received_bits_per_s):
        with pytest.raises(LabError, match="iperf3's report has no"):
            read(text)
