# SPDX-License-Identifier: Apache-2.0
"""Kills the source's QEMU in a phase of a migration, then boots another machine on the same device.

To be run as a process of its own: it moves itself into a private network.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from pathlib import Path

from vdpa_net.lab import accelerator, guest, image, quirks
from vdpa_net.lab.migrate.live import LiveFigures
from vdpa_net.lab.migrate.precopy import Load, Precopy, PrecopyOptions
from vdpa_net.lab.migrate.session import GUEST_TOOLS
from vdpa_net.lab.migrate.topology import FlatTopology, HostedGuest, TopologyOptions
from vdpa_net.lab.network import GUEST_ADDRESS, LAB_ADDRESS, enter_private_network
from vdpa_net.lab.traffic.endpoint import TrafficEndpoint
from vdpa_net.lab.traffic.format import DEFAULT_PORT
from vdpa_net.lab.traffic.judge import traffic_lines
from vdpa_net.migration.verdict import Outcome

SECONDS = 180
PACKETS = 500


def options(directory: Path) -> TopologyOptions:
    built = image.require()
    qemu = built.qemu()
    small = guest.build(built, tools=GUEST_TOOLS)
    accel = accelerator.choose_accelerator(qemu, small)
    number = accelerator.qemu_version(qemu)
    one_pass = quirks.loses_writes_after_second_pass(number, accel)
    return TopologyOptions(qemu, small, accel, 256, "in-process", directory, one_pass=one_pass)


def migrate_up_to(phase: str, source: HostedGuest, target: HostedGuest, endpoint: TrafficEndpoint) -> None:
    """Begin a migration and come as far as the phase."""
    uri = f"unix:{source.machine.directory / 'migration'}"
    pause = {"capability": "pause-before-switchover", "state": phase == "switch-over"}
    capabilities = [{"capability": "events", "state": True}, pause]
    source.machine.qmp("migrate-set-capabilities", {"capabilities": capabilities})
    target.machine.qmp("migrate-incoming", {"uri": uri})
    precopy = Precopy(source, PrecopyOptions(64, one_pass=False), endpoint, print, LiveFigures())
    precopy.prepare()
    source.side.device("audit_arm")
    source.machine.qmp("migrate", {"uri": uri})
    precopy.wait_logging()
    load = Load()
    precopy.enter(load, 0.3 if phase == "first-pass" else None)
    if phase == "switch-over":
        precopy.wait_for_load(load)
        precopy.let_go()
        precopy.wait_status("pre-switchover")


def main(phase: str) -> None:
    enter_private_network()
    with tempfile.TemporaryDirectory(prefix="vn-kill-") as name:
        local, agent = (LAB_ADDRESS, DEFAULT_PORT), (GUEST_ADDRESS, DEFAULT_PORT)
        with FlatTopology(options(Path(name))) as topology, TrafficEndpoint(local, agent) as endpoint:
            side = topology.sides[0]
            source = topology.boot(side)
            target = topology.expect_guest(topology.sides[1])
            endpoint.start(SECONDS)
            endpoint.wait_received(PACKETS, SECONDS)
            migrate_up_to(phase, source, target, endpoint)
            os.kill(source.machine.pid, signal.SIGKILL)
            source.machine.wait_exit(SECONDS)
            endpoint.abandon()
            for hosted in (source, target):
                topology.remove(hosted)
            topology.boot(side)
            endpoint.start(SECONDS)
            endpoint.wait_received(PACKETS, SECONDS)
            lines = traffic_lines(endpoint.finish(SECONDS), None)
            bad = [line for line in lines if line.outcome is not Outcome.PASS]
            assert not bad, bad
            assert not side.device("inspect")["logging"], "the device still logs"
    print("the next machine's traffic is whole")


if __name__ == "__main__":
    main(sys.argv[1])
