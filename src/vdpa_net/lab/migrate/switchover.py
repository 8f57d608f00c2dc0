# SPDX-License-Identifier: Apache-2.0
"""One round: the guest moves from one side to the other under traffic, and what can be seen is written down.

There are two kinds of round. One keeps both machines still at the switch-over and compares their RAM; its
own pause lies in the gap, so it does not time it. The other lets the destination go on at once and times the
gap.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass

from vdpa_net.errors import LabError, PeerGone, StateError, VdpaNetError
from vdpa_net.lab.migrate.announce import announcement_line
from vdpa_net.lab.migrate.arrival import COMPLETED, Arrival
from vdpa_net.lab.migrate.cancel import cancel, lose_destination, traffic_afterwards, wants_pause
from vdpa_net.lab.migrate.disturb import disturb
from vdpa_net.lab.migrate.evidence import (
    describe_pages,
    first_stop_request_ns,
    keep_evidence,
    queue_record,
    started_ns,
)
from vdpa_net.lab.migrate.live import LiveFigures
from vdpa_net.lab.migrate.log_watch import LogWatch
from vdpa_net.lab.migrate.observe import Round
from vdpa_net.lab.migrate.precopy import Load, Precopy, PrecopyOptions, is_final
from vdpa_net.lab.migrate.queue_watch import QueueWatch
from vdpa_net.lab.migrate.timeline import Timeline, host_clock_ns
from vdpa_net.lab.migrate.topology import GUEST_MAC, FlatTopology, HostedGuest
from vdpa_net.lab.progress import ProgressCallback
from vdpa_net.lab.side import Side
from vdpa_net.lab.traffic.endpoint import TrafficEndpoint
from vdpa_net.lab.traffic.judge import Gap, lost_in_gap, lost_in_gap_ns, traffic_lines
from vdpa_net.migration.checks import PAGE_BYTES, AuditFindings

SETTLING_NS = 500_000_000
"""How long after its queues run again a guest's silence still counts as that of the switch-over."""


@dataclass(frozen=True)
class RoundOptions:
    """`cancel_at` and `disturbances` are what happens before the guest moves; `kill` names a part of the
    destination that is killed in pre-copy, so that it does not move."""

    number: int
    compares_ram: bool
    precopy: PrecopyOptions
    cancel_at: str | None = None
    disturbances: tuple[str, ...] = ()
    kill: str | None = None


class RoundRunner:
    """Runs one round; afterwards `arrived` hosts the guest."""

    def __init__(
        self,
        topology: FlatTopology,
        source: HostedGuest,
        endpoint: TrafficEndpoint,
        options: RoundOptions,
        shown: tuple[ProgressCallback, LiveFigures],
    ) -> None:
        self._topology = topology
        self._pace = topology.pace
        self._source = source
        self._endpoint = endpoint
        self._options = options
        self._progress, self._live = shown
        self._pairs = topology.options.queue_pairs
        self._watched = source.side.is_watched
        self._round = Round(
            options.number,
            options.compares_ram,
            source.side.name,
            watched=self._watched,
            audited=options.precopy.device_logs,
        )
        self._queues = QueueWatch(source, self._pairs, self._pace)
        self._load = Load()
        self._violations_before: dict[str, int] = {}
        self._log = LogWatch(source.side) if self._watched else None
        self._destination: HostedGuest | None = None
        self._timeline = Timeline()

    def run(self) -> Round:
        """Migrate once. Raises LabError if it can't be done at all; a migration that fails says so."""
        self._live.reset()
        if self._watched:
            self._violations_before = {
                side.name: int(side.device("inspect")["violation_count"]) for side in self._topology.sides
            }
        if self._options.cancel_at is not None:
            self._start_destination()
            self._start_traffic()
            self._cancel(self._options.cancel_at)
        self._start_destination()
        if self._options.kill is not None:
            self._start_traffic()
            self._kill(self._options.kill)
            return self._round
        self._migrate()
        self._observe_switchover()
        if self._is_there():
            self._observe_guest()
            self._observe_traffic()
        else:
            self._endpoint.abandon()
        if self._watched:
            self._observe_sides()
        return self._round

    def arrived(self) -> HostedGuest:
        """The QEMU that hosts the guest after the round."""
        if self._destination is None:
            raise StateError("the round has not been run")
        return self._destination

    # --- the migration ------------------------------------------------------------------------------

    def _say(self, what: str, fraction: float | None = None) -> None:
        kind = "RAM compared" if self._options.compares_ram else "gap timed"
        self._progress(f"round {self._options.number} ({kind}): {what}", fraction)

    def _start_destination(self) -> None:
        self._say("starting the destination")
        target = next(side for side in self._topology.sides if side is not self._source.side)
        self._destination = self._topology.expect_guest(target)

    def _start_traffic(self) -> None:
        self._say("waiting for steady traffic")
        self._endpoint.start(self._pace.traffic_s)
        self._endpoint.wait_received(self._pace.warm_up_datagrams, self._pace.traffic_s)

    def _begin(self, *, pause: bool = False) -> Precopy:
        """The migration has begun, and is held in its first pass."""
        source, destination = self._source.machine, self.arrived().machine
        uri, incoming_uri = self._topology.migration_uris(self.arrived().side)
        switches = [_switch("events", True)]
        destination.qmp("migrate-set-capabilities", {"capabilities": switches})
        switches.append(_switch("pause-before-switchover", pause))
        source.qmp("migrate-set-capabilities", {"capabilities": switches})
        destination.qmp("migrate-incoming", {"uri": incoming_uri})
        precopy = Precopy(self._source, self._options.precopy, self._endpoint, self._say, self._live)
        precopy.wire = self._topology.wire
        precopy.prepare()
        if self._watched:
            self._source.side.device("audit_arm", by_file=self._options.precopy.audits_by_file)
        if not self._options.compares_ram:
            # The destination goes on by itself as soon as it has everything.
            destination.qmp("cont")
        self._timeline.begun_ns = time.monotonic_ns()
        source.qmp("migrate", {"uri": uri})
        return precopy

    def _cancel(self, phase: str) -> None:
        precopy = self._begin(pause=wants_pause(phase))
        self._note_queues("the migration's begin")
        outcome = cancel(precopy, phase, self._look_at_stop)
        self._round.more_lines.append(outcome.line())
        self._topology.remove(self.arrived())
        self._destination = None
        self._say(f"cancelled at {phase}, the source goes on")
        stopped = wants_pause(phase) and self._watched
        stop_ns = first_stop_request_ns(self._source.side, self._pairs) if stopped else None
        if wants_pause(phase) and stop_ns is None:
            stop_ns = self._timeline.begun_ns
        gap = None if stop_ns is None else self._gap(stop_ns)
        self._round.more_lines += traffic_afterwards("cancelled", self._endpoint, gap, self._pace)

    def _kill(self, part: str) -> None:
        precopy = self._begin()
        precopy.wait_logging()
        outcome = lose_destination(
            precopy,
            part,
            lambda: self._topology.kill(part, self.arrived()),
            self._endpoint,
            self._pace,
        )
        self._round.moved = False
        self._round.more_lines.append(outcome.line())
        self._say("the source goes on")
        self._round.more_lines += traffic_afterwards(f"{part} killed", self._endpoint, None, self._pace)
        if self._watched:
            self._observe_side(self._source.side)

    def _migrate(self) -> None:
        disturbed = bool(self._options.disturbances)
        if not disturbed:
            self._start_traffic()
        precopy = self._begin()
        precopy.wait_logging()
        precopy.enter(self._load)
        for name in self._options.disturbances:
            self._say(f"pre-copy, the guest: {name}")
            disturb(self._source, name, self._pairs)
        if disturbed:
            self._start_traffic()
        precopy.wait_for_load(self._load)
        if precopy.has_ended():
            self._note_queues("the release")
        else:
            self._note_while_busy()
        if self._log is not None and not precopy.has_ended():
            self._log.note()
        self._timeline.released_ns = time.monotonic_ns()
        ended = precopy.release(self._hand_over)
        self._timeline.ended_ns = ended.seen_ns
        info = self._source.machine.qmp("query-migrate")
        self._round.arrival = self._arrival(ended.data["status"], info.get("error-desc", ""))
        ram = info.get("ram", {})
        figures = {
            "downtime_ms": info.get("downtime"),
            "total_time_ms": info.get("total-time"),
            "passes": ram.get("dirty-sync-count"),
            "transferred_bytes": ram.get("transferred"),
            "samples": [asdict(sample) for sample in precopy.samples],
            "pass_starts": precopy.passes(),
        }
        # QEMU tells little of a migration that has failed.
        self._round.figures |= {name: value for name, value in figures.items() if value is not None}

    def _hand_over(self) -> None:
        """The source's machine has stopped: the network sends the guest's packets to the destination from now
        on, where they wait for it."""
        destination = self.arrived().side
        # A comparison of RAM lasts for longer than a tap can keep packets.
        if destination.is_watched and not self._options.compares_ram:
            destination.device("announce", mac=GUEST_MAC)

    def _look_at_stop(self) -> None:
        if self._watched:
            self._round.rings = self._queues.at_stop()

    def _note_queues(self, moment: str) -> None:
        if self._watched:
            self._queues.note(moment, expects_packed=self._topology.options.packed)

    def _note_while_busy(self) -> None:
        if self._watched:
            self._say("pre-copy, waiting for all queues to move")
            packed = self._topology.options.packed
            self._queues.note_while_busy(self._pace.busy_window_s, self._pace.load_s, expects_packed=packed)

    # --- observations -------------------------------------------------------------------------------

    def _observe_switchover(self) -> None:
        destination = self.arrived()
        if self._is_there() and not self._options.compares_ram:
            # To look at what stands still would take a processor from the guest whose gap is timed.
            self._await_guest()
        self._look_at_stop()
        if self._watched and self._round.arrival.source == COMPLETED:
            self._round.queues = self._queues.at_source()
        if self._options.compares_ram and self._is_there():
            self._say("comparing RAM")
            source = self._source.ram
            self._round.differing = source.differing_pages(destination.ram)
            self._round.total_pages = source.size_bytes // PAGE_BYTES
            by_file = self._options.precopy.audits_by_file
            notes = describe_pages(self._round.differing, self._source, destination.ram, by_file=by_file)
            self._round.page_notes = notes
            self._timeline.compared_ns = time.monotonic_ns()
            destination.machine.qmp("cont")
            self._await_guest()

    def _arrival(self, source: str, why: str) -> Arrival:
        """How the migration ended at the destination, where the source says that it has ended like this."""
        machine = self.arrived().machine
        try:
            status = machine.wait_event("MIGRATION", self._pace.phase_s, where=is_final).data["status"]
        except PeerGone as error:
            status = str(error)
        if (source, status) == (COMPLETED, COMPLETED):
            return Arrival(source, status)
        # A QEMU that refuses the state of a device ends, and says why there only.
        return Arrival(source, status, tuple(text for text in (why, machine.last_words()) if text))

    def _is_there(self) -> bool:
        return self._round.arrival.is_complete

    def _await_guest(self) -> None:
        self._say("the guest goes on")
        try:
            self._endpoint.wait_arrival_after(self._timeline.ended_ns, self._pace.progress_s)
        except LabError as error:
            self._round.standstill = f"after the switch-over: {error}"

    def _observe_guest(self) -> None:
        """The guest goes on: it takes completions beyond the index at which the source stopped."""
        if self._watched:
            self._queues.at_destination(self._round.queues, self.arrived())

    def _observe_traffic(self) -> None:
        self._say("counting packets")
        patience_s = self._pace.traffic_s if self._round.goes_on else self._pace.progress_s
        try:
            report = self._endpoint.finish(patience_s)
        except LabError as error:
            self._round.standstill = self._round.standstill or str(error)
            return
        stop_ns = self._stop_request_ns()
        if stop_ns is None:
            self._round.traffic_problem = "the source's driver did not stop the receive queue"
            return
        started = started_ns(self.arrived().side, self._pairs) if self._watched else None
        self._note_instants(stop_ns, started)
        gap = self._gap(stop_ns, started)
        silence = report.longest_silence(stop_ns, self._timeline.served_again_ns() + SETTLING_NS)
        if silence is not None:
            self._timeline.silence = (silence.start_ns, silence.end_ns)
        self._round.traffic = traffic_lines(report, gap)
        self._round.figures |= {
            "traffic": report.to_json(),
            "gap_ms": round(silence.duration_ms, 1) if silence else None,
            "lost_in_gap": lost_in_gap(report, gap),
            "timeline": self._timeline.to_json(report, lost_in_gap_ns(report, gap)),
        }
        if self._topology.announcements is not None:
            tap = self.arrived().side.options.tap
            seen = self._topology.announcements.seen(tap, GUEST_MAC, stop_ns)
            self._round.more_lines.append(announcement_line(seen, tap, stop_ns))

    def _gap(self, stop_request_ns: int, started: tuple[int, int] | None = None) -> Gap:
        waiting_ns: int | None = None
        if not self._watched:
            # QEMU's event STOP comes when its devices have stopped.
            waiting_ns = self._timeline.released_ns
        elif self._topology.options.iommu or self._round.rings.may_leave_packets:
            waiting_ns = self._timeline.begun_ns
        several = self._pairs > 1
        return Gap(stop_request_ns, several, started, waiting_since_ns=waiting_ns)

    def _stop_request_ns(self) -> int | None:
        """When the source's device began to stop; of a foreign one, when its machine did."""
        if self._watched:
            return first_stop_request_ns(self._source.side, self._pairs)
        stops = [event for event in self._source.machine.session.events() if event.name == "STOP"]
        return host_clock_ns(stops[-1].sent_s) if stops else None

    def _note_instants(self, stop_request_ns: int, started: tuple[int, int] | None) -> None:
        self._timeline.stop_request_ns = stop_request_ns
        if self._watched:
            queues = range(2 * self._pairs)
            stopped = [queue_record(self._source.side, queue).get("stopped_ns") for queue in queues]
            self._timeline.stopped_ns = max((at for at in stopped if at), default=None)
            self._timeline.started_ns = None if started is None else started[0]

    def _observe_audit(self) -> None:
        try:
            audit = self._source.side.device("audit_result")
            unmarked = [(int(page), int(interval)) for page, interval in audit["unmarked"]]
            self._round.audit = AuditFindings(
                frozenset(audit["written"]),
                unmarked,
                audit["intervals"],
                marked=audit["marked"],
                over_marked=audit["over_marked"],
            )
            self._round.figures["audit_series"] = audit["series"]
        except VdpaNetError as error:
            self._round.audit_problem = self._load.problem or str(error)

    def _observe_sides(self) -> None:
        self._round.pages_after_first_pass = self._load.pages
        if self._options.precopy.device_logs:
            self._observe_audit()
        if self._log is not None:
            self._round.figures["log"] = self._log.figures()
        for side in self._topology.sides:
            self._observe_side(side)

    def _observe_side(self, side: Side) -> None:
        snapshot = side.device("inspect")
        new = snapshot["violation_count"] - self._violations_before[side.name]
        recent = snapshot["violations"][-new:] if new else []
        self._round.violations += [f"side {side.name}: {entry}" for entry in recent]
        self._round.faults_fired |= snapshot["faults"]
        self._round.figures[f"device_{side.name}"] = {
            "log": snapshot["log"],
            "queues": {str(queue["index"]): queue["counters"] for queue in snapshot["queues"]},
        }
        name = f"round-{self._options.number}-{side.name}.json"
        keep_evidence(side, self._topology.options.directory / name)


def _switch(capability: str, state: bool) -> dict[str, object]:
    return {"capability": capability, "state": state}
