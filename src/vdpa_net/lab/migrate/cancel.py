# SPDX-License-Identifier: Apache-2.0
"""A migration that is cancelled: the source has to go on as if nothing had been."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from vdpa_net.lab.migrate.precopy import Load, Precopy
from vdpa_net.lab.traffic.endpoint import TrafficEndpoint
from vdpa_net.lab.traffic.judge import Gap, traffic_lines
from vdpa_net.migration.verdict import Line, Outcome

PHASE_SECONDS = 120
PACKETS_AFTERWARDS = 300
FIRST_PASS_SHARE = 0.3


@dataclass(frozen=True)
class CancelOutcome:
    """What was seen after a cancel: how the migration ended, whether the machine runs, and whether its device
    still logs (None: not known)."""

    phase: str
    status: str
    run_state: str
    logging: bool | None

    def line(self) -> Line:
        """The migration was cancelled, the source runs, its device logs no more."""
        detail = []
        if self.status != "cancelled":
            detail.append(f"the migration {self.status}, expected cancelled")
        if self.run_state != "running":
            detail.append(f"the source's machine is {self.run_state}, expected running")
        if self.logging:
            detail.append("the source's device still logs")
        logs = {True: ", the device logs", False: ", the device logs no more", None: ""}[self.logging]
        return Line(
            f"cancel at {self.phase}",
            Outcome.FAIL if detail else Outcome.PASS,
            f"the migration {self.status}, the source is {self.run_state}{logs}",
            "cancelled, the source goes on",
            tuple(detail),
        )


def wants_pause(phase: str) -> bool:
    """Whether QEMU has to wait before the switch-over for this phase."""
    return phase == "switch-over"


def cancel(precopy: Precopy, phase: str, at_rest: Callable[[], None]) -> CancelOutcome:
    """Bring a migration that has begun to a phase, and cancel it there. Raises LabError.

    `at_rest` is called where the source's machine and its device have stopped, before the cancel.
    """
    precopy.say(f"to be cancelled at {phase}", None)
    if phase == "first-pass":
        precopy.enter(Load(), FIRST_PASS_SHARE)
    elif phase != "setup":
        load = Load()
        precopy.wait_logging()
        precopy.enter(load)
        precopy.wait_for_load(load)
        if phase == "switch-over":
            precopy.let_go()
            precopy.wait_status("pre-switchover")
            at_rest()
    machine, side = precopy.source.machine, precopy.source.side
    machine.qmp("migrate_cancel")
    ended = precopy.wait_final()
    # A machine that QEMU had stopped for the switch-over goes on a moment later.
    if wants_pause(phase):
        machine.wait_event("RESUME", PHASE_SECONDS)
    state = machine.qmp("query-status")["status"]
    logging = bool(side.device("inspect")["logging"]) if side.is_watched else None
    return CancelOutcome(phase, ended.data["status"], state, logging)


def traffic_afterwards(endpoint: TrafficEndpoint, gap: Gap | None) -> list[Line]:
    """The lines on the traffic over the cancelled migration; a stop of the device allows for a gap."""
    endpoint.wait_received(endpoint.received + PACKETS_AFTERWARDS, PHASE_SECONDS)
    report = endpoint.finish(PHASE_SECONDS)
    return [
        Line(f"cancelled: {line.name}", line.outcome, line.measured, line.expected, line.detail)
        for line in traffic_lines(report, gap)
    ]
