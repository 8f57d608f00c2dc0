# SPDX-License-Identifier: Apache-2.0
"""The log test against somebody else's back end: DPDK's net_vhost in testpmd, known by its socket alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from lab.testpmd import Testpmd
from vdpa_net.migration.verdict import Outcome
from vdpa_net.testing.log_test import LogTestOptions
from vdpa_net.testing.pytest_plugin import VhostMigration

pytestmark = [pytest.mark.vm, pytest.mark.timeout(180)]

START_SECONDS = 60


class Backend(Testpmd):
    """Sends back on its only port what comes in there."""

    def __init__(self, directory: Path, name: str, queue_pairs: int) -> None:
        self.socket = directory / f"{name}.sock"
        port = f"net_vhost0,iface={self.socket},queues={queue_pairs}"
        # Its link is down until a front end comes.
        app = ["--disable-link-check", f"--rxq={queue_pairs}", f"--txq={queue_pairs}"]
        super().__init__(directory, name, ("librte_net_vhost",), ["--vdev", port], app)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as made:
        yield made


@pytest.mark.parametrize("queue_pairs", [1, pytest.param(2, marks=pytest.mark.exhaustive)])
def test_guest_moves_between_two_testpmds_and_the_verdict_says_what_it_can_not_check(
    stack: ExitStack, tmp_path: Path, vhost_migration: VhostMigration, queue_pairs: int
) -> None:
    ends = [Backend(tmp_path, name, queue_pairs) for name in ("source", "destination")]
    for end in ends:
        stack.callback(end.close)
    sockets = ends[0].socket, ends[1].socket
    options = LogTestOptions(rounds=2, queue_pairs=queue_pairs)
    verdict = vhost_migration.verdict(*sockets, options, wait_s=START_SECONDS)
    examined = {line.name.partition(": ")[2].partition(",")[0]: line for line in verdict.lines}
    assert {"load", "guest RAM", "dirty audit", "ring state vq0", "frames from the guest"} <= set(examined)
    bad = [line for line in verdict.lines if line.outcome is not Outcome.PASS]
    # What lies in a burst of testpmd's when its receive ring is stopped is for testpmd to drop.
    assert all("frames to the guest" in line.name for line in bad), bad
    assert set(verdict.not_checked) == {
        "dirty audit by the kernel",
        "announcement",
        "ring state in LM_RING_STATE, violations of the device",
    }
