# SPDX-License-Identifier: Apache-2.0
"""A migration that is broken off, by a cancel or by the death of its other end: the source has to go on as if
nothing had been."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

from vdpa_net.errors import PeerError
from vdpa_net.lab.migrate.pace import Pace
from vdpa_net.lab.migrate.precopy import Load, Precopy
from vdpa_net.lab.qmp import Event
from vdpa_net.lab.traffic.endpoint import TrafficEndpoint
from vdpa_net.lab.traffic.judge import Gap, traffic_lines
from vdpa_net.migration.verdict import Line, Outcome

PHASE_SECONDS = 120
FIRST_PASS_SHARE = 0.3


@dataclass(frozen=True)
class BrokenOff:
    """What was seen after `what`: how the migration ended, whether the machine runs, whether its device still
    logs (None: not known), and the driver's LM_LOGGING_CTRL. `endings` are those that a migration may take.

    With a driver that stops no log (`driver_stops_log` is false) a device has to go on as it was told: it is
    said so, and is no failure of the device's.
    """

    what: str
    endings: tuple[str, ...]
    status: str
    run_state: str
    logging: bool | None
    control: int = 0
    driver_stops_log: bool = True

    def line(self) -> Line:
        """The migration is over, the source runs, its device logs no more."""
        detail = []
        expected = " or ".join(self.endings)
        if self.status not in self.endings:
            detail.append(f"the migration {self.status}, expected {expected}")
        if self.run_state != "running":
            detail.append(f"the source's machine is {self.run_state}, expected running")
        logs = {True: ", the device logs", False: ", the device logs no more", None: ""}[self.logging]
        if self.logging and self.control and not self.driver_stops_log:
            logs += f" on: its driver has left LM_LOGGING_CTRL at {self.control}, as it always does"
        elif self.logging:
            detail.append(f"the source's device still logs (LM_LOGGING_CTRL is {self.control})")
        return Line(
            self.what,
            Outcome.FAIL if detail else Outcome.PASS,
            f"the migration {self.status}, the source is {self.run_state}{logs}",
            f"{expected}, the source goes on",
            tuple(detail),
        )


def wants_pause(phase: str) -> bool:
    """Whether QEMU has to wait before the switch-over for this phase."""
    return phase == "switch-over"


def cancel(precopy: Precopy, phase: str, at_rest: Callable[[], None]) -> BrokenOff:
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
    machine = precopy.source.machine
    machine.qmp("migrate_cancel")
    ended = precopy.wait_final()
    # A machine that QEMU had stopped for the switch-over goes on a moment later.
    if wants_pause(phase):
        machine.wait_event("RESUME", PHASE_SECONDS)
    return _outcome(precopy, f"cancel at {phase}", ("cancelled",), ended)


def lose_destination(
    precopy: Precopy, what: str, kill: Callable[[], None], endpoint: TrafficEndpoint, pace: Pace
) -> BrokenOff:
    """Kill part of the destination in pre-copy, and see that the traffic of the source goes on. Raises
    LabError.

    A source that learns of it ends the migration (failed). One that does not (a machine that is gone answers
    nothing, and TCP waits for a quarter of an hour; a device that is gone is none of QEMU's business before
    the switch-over) is told to cancel it.
    """
    precopy.enter(Load())
    precopy.say(f"to be killed: {what}", None)
    kill()
    precopy.say(f"{what} is gone, does the guest's traffic go on?", None)
    endpoint.wait_received(endpoint.received + pace.afterwards_datagrams, pace.traffic_s)
    if not precopy.has_ended():
        with contextlib.suppress(PeerError):
            precopy.source.machine.qmp("migrate_cancel")
    return _outcome(precopy, f"{what} killed", ("failed", "cancelled"), precopy.wait_final())


def _outcome(precopy: Precopy, what: str, endings: tuple[str, ...], ended: Event) -> BrokenOff:
    machine, side = precopy.source.machine, precopy.source.side
    state = machine.qmp("query-status")["status"]
    status = ended.data["status"]
    if not side.is_watched:
        return BrokenOff(what, endings, status, state, None)
    snapshot = side.device("inspect")
    control = int(snapshot["lm"]["LM_LOGGING_CTRL"])
    return BrokenOff(what, endings, status, state, bool(snapshot["logging"]), control, side.driver_stops_log)


def traffic_afterwards(prefix: str, endpoint: TrafficEndpoint, gap: Gap | None, pace: Pace) -> list[Line]:
    """The lines on the traffic over the migration that did not come to its end; a stop of the device allows
    for a gap."""
    endpoint.wait_received(endpoint.received + pace.afterwards_datagrams, pace.traffic_s)
    report = endpoint.finish(pace.traffic_s)
    return [
        Line(f"{prefix}: {line.name}", line.outcome, line.measured, line.expected, line.detail)
        for line in traffic_lines(report, gap)
    ]
