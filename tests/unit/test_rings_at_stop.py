# SPDX-License-Identifier: Apache-2.0
"""When packets may have been left in front of a device that was stopped."""

from __future__ import annotations

import pytest

from vdpa_net.lab.migrate.rings_at_stop import RingsAtStop


@pytest.mark.parametrize(
    ("posted", "mergeable", "may_leave"),
    [
        ({"rx posted": 0}, True, True),
        ({"rx posted": 0}, False, True),
        ({"rx posted": 1}, False, False),
        # One packet of 64 KiB takes that many buffers of Linux.
        ({"rx posted": 42}, True, True),
        ({"rx posted": 43}, True, False),
        ({"rx0 posted": 200, "rx1 posted": 0}, True, True),
        ({}, True, False),
    ],
)
def test_only_a_ring_without_room_for_a_packet_leaves_some(
    posted: dict[str, int], mergeable: bool, may_leave: bool
) -> None:
    assert RingsAtStop({}, posted, mergeable).may_leave_packets is may_leave
