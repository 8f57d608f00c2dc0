# SPDX-License-Identifier: Apache-2.0
"""Reports of iperf3."""

from __future__ import annotations

import json

import pytest

from vdpa_net.errors import LabError
from vdpa_net.lab.iperf import received_bits_per_s

REPORT = {"sum_sent": {"bits_per_second": 2611393.5}, "sum_received": {"bits_per_second": 2511393.5}}


def test_bits_are_those_of_the_receiver() -> None:
    assert received_bits_per_s(json.dumps({"end": REPORT})) == 2511393.5


@pytest.mark.parametrize(
    "text", ["", "{}", '{"end": {"sum_sent": {"bits_per_second": 1}}}', '{"end": {"sum_received": {}}}']
)
def test_a_report_without_a_result_is_an_error(text: str) -> None:
    with pytest.raises(LabError, match="iperf3's report has no"):
        received_bits_per_s(text)
