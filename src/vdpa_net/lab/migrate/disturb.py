# SPDX-License-Identifier: Apache-2.0
"""What can happen to a guest while it is being migrated: the guest does it when its console tells it to."""

from __future__ import annotations

from vdpa_net.lab.migrate.topology import HostedGuest

DISTURB_SECONDS = 120


def disturb(hosted: HostedGuest, name: str, queue_pairs: int) -> None:
    """Do one of DISTURBANCES and return when the guest's network is up again. Raises LabError."""
    machine = hosted.machine
    start = machine.console.position
    if name == "reboot":
        # The lab's machines end with their guest otherwise.
        machine.qmp("set-action", {"reboot": "reset"})
        machine.type_line("reboot")
        machine.wait_console(r"LAB ready traffic", DISTURB_SECONDS, start=start)
        return
    words = [f"channels {count}" for count in (1, queue_pairs)] if name == "channels" else [name]
    for word in words:
        start = machine.console.position
        machine.type_line(word)
        outcome = machine.wait_console(r"LAB (done .*|failed .*)", DISTURB_SECONDS, start=start)
        if outcome.startswith("failed"):
            raise machine.failure(f"could not do {word!r}: {outcome}")
