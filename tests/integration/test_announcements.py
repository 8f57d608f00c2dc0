# SPDX-License-Identifier: Apache-2.0
"""Announcements are seen on the port through which they come, bridge or not."""

from __future__ import annotations

import os
import time
from contextlib import closing

import pytest

from conftest import NetworkNamespace
from vdpa_net.backend.tap import VNET_HEADER_BYTES, Tap
from vdpa_net.device.announce import rarp_frame
from vdpa_net.lab.migrate.announce import Announcement, AnnouncementWatch, announcement_line
from vdpa_net.lab.network import LabNetwork
from vdpa_net.migration.verdict import Outcome

pytestmark = pytest.mark.tap

MAC = "02:00:00:00:00:77"
SECONDS = 10


def arp(mac: str, sender: str, target: str) -> bytes:
    own = bytes.fromhex(mac.replace(":", ""))
    head = b"\xff" * 6 + own + bytes.fromhex("0806 0001 0800 06 04 0001")
    addresses = (bytes(int(part) for part in text.split(".")) for text in (sender, target))
    return (head + own + next(addresses) + bytes(6) + next(addresses)).ljust(60, b"\0")


def watched() -> tuple[list[Announcement], list[Announcement]]:
    """What two ports of a bridge saw of three frames that came through the first."""
    with LabNetwork() as network, closing(Tap("vt0")) as first, closing(Tap("vt1")) as second:
        for tap in (first, second):
            network.attach(tap.name)
            tap.set_carrier(True)
        with AnnouncementWatch(("vt0", "vt1")) as watch:
            own = bytes.fromhex(MAC.replace(":", ""))
            question = arp(MAC, "10.0.0.1", "10.0.0.2")
            for frame in (question, rarp_frame(own), arp(MAC, "10.0.0.1", "10.0.0.1")):
                os.write(first._fds[0], bytes(VNET_HEADER_BYTES) + frame)
            deadline = time.monotonic() + SECONDS
            while len(watch.seen("vt0", MAC, 0)) < 2 and time.monotonic() < deadline:
                os.sched_yield()
            return watch.seen("vt0", MAC, 0), watch.seen("vt1", MAC, 0)


def test_announcements_count_where_they_come_in_and_questions_do_not(netns: NetworkNamespace) -> None:
    came_in, went_out = netns.run(watched)
    assert [entry.kind for entry in came_in] == ["RARP", "gratuitous ARP"]
    assert not went_out


def watched_after_a_loss() -> list[Announcement]:
    """What is seen on one port after the interface of the other has gone."""
    with LabNetwork() as network, closing(Tap("vt0")) as first:
        second = Tap("vt1")
        for tap in (first, second):
            network.attach(tap.name)
            tap.set_carrier(True)
        with AnnouncementWatch(("vt0", "vt1")) as watch:
            second.close()
            os.write(
                first._fds[0], bytes(VNET_HEADER_BYTES) + rarp_frame(bytes.fromhex(MAC.replace(":", "")))
            )
            deadline = time.monotonic() + SECONDS
            while not watch.seen("vt0", MAC, 0) and time.monotonic() < deadline:
                os.sched_yield()
            return watch.seen("vt0", MAC, 0)


def test_loss_of_an_interface_does_not_end_the_watch_over_the_others(netns: NetworkNamespace) -> None:
    assert [entry.kind for entry in netns.run(watched_after_a_loss)] == ["RARP"]


def test_only_rarp_of_the_device_makes_the_line_hold() -> None:
    rarp = Announcement("vt1", "RARP", MAC, 3_000_000)
    line = announcement_line([rarp], "vt1", 1_000_000)
    assert line.outcome is Outcome.PASS
    assert "2.0 ms after the stop" in line.measured
    line = announcement_line([Announcement("vt1", "gratuitous ARP", MAC, 3_000_000)], "vt1", 1_000_000)
    assert line.outcome is Outcome.FAIL
    assert "vt1" in line.detail[0]
