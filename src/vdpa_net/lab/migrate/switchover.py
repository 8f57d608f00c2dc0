# SPDX-License-Identifier: Apache-2.0
"""One round: the guest moves from one side to the other under traffic, and what can be seen is written down.

There are two kinds of round. One keeps both machines still at the switch-over and compares their RAM; its
own pause lies in the gap, so it does not time it. The other lets the destination go on at once and times the
gap.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vdpa_net.errors import LabError, StateError, VdpaNetError
from vdpa_net.lab.migrate.observe import (
    RING_NAMES,
    USED_IDX_OFFSET_BYTES,
    GuestProgress,
    QueueObservations,
    Round,
    wire_values,
)
from vdpa_net.lab.migrate.precopy import Load, Precopy, is_final
from vdpa_net.lab.migrate.topology import FlatTopology, HostedGuest
from vdpa_net.lab.progress import ProgressCallback
from vdpa_net.lab.ram import GuestRam
from vdpa_net.lab.traffic.endpoint import TrafficEndpoint
from vdpa_net.lab.traffic.judge import Gap, lost_in_gap, traffic_lines
from vdpa_net.migration.checks import PAGE_BYTES, AuditFindings, differing_pages

PHASE_SECONDS = 120
GUEST_PROGRESS_SECONDS = 30
TRAFFIC_SECONDS = 60
WARM_UP_DATAGRAMS = 200
SAMPLE_SECONDS = 0.05


@dataclass(frozen=True)
class RoundOptions:
    """`minimum_pages` is how many pages the device has to write after the first pass."""

    number: int
    compares_ram: bool
    minimum_pages: int


class RoundRunner:
    """Runs one round; afterwards `arrived` hosts the guest."""

    def __init__(
        self,
        topology: FlatTopology,
        source: HostedGuest,
        endpoint: TrafficEndpoint,
        options: RoundOptions,
        progress: ProgressCallback,
    ) -> None:
        self._topology = topology
        self._source = source
        self._endpoint = endpoint
        self._options = options
        self._progress = progress
        self._round = Round(options.number, options.compares_ram, source.side.name)
        self._load = Load()
        self._violations_before: dict[str, int] = {}
        self._destination: HostedGuest | None = None

    def run(self) -> Round:
        """Migrate once. Raises LabError if it can't be done at all; a migration that fails says so."""
        sides = self._topology.sides
        target = next(side for side in sides if side is not self._source.side)
        self._violations_before = {side.name: self._violation_count(side.name) for side in sides}
        self._say("starting the destination")
        self._destination = self._topology.expect_guest(target)
        self._say("waiting for steady traffic")
        self._endpoint.start(TRAFFIC_SECONDS)
        self._endpoint.wait_received(WARM_UP_DATAGRAMS, TRAFFIC_SECONDS)
        self._migrate()
        self._observe_switchover()
        self._observe_guest()
        self._observe_traffic()
        self._observe_sides()
        self._keep_evidence()
        return self._round

    def _say(self, what: str, fraction: float | None = None) -> None:
        kind = "RAM compared" if self._options.compares_ram else "gap timed"
        self._progress(f"round {self._options.number} ({kind}): {what}", fraction)

    def _migrate(self) -> None:
        source, destination = self._source.machine, self.arrived().machine
        socket = Path(self._topology.options.directory) / f"migration-{self._options.number}"
        uri = f"unix:{socket}"
        for machine in (source, destination):
            machine.qmp("migrate-set-capabilities", {"capabilities": [_on("events")]})
        destination.qmp("migrate-incoming", {"uri": uri})
        precopy = Precopy(
            self._source,
            self._options.minimum_pages,
            one_pass=self._topology.options.one_pass,
            say=self._say,
        )
        precopy.prepare()
        self._source.side.device("audit_arm")
        if not self._options.compares_ram:
            # The destination goes on by itself as soon as it has everything.
            destination.qmp("cont")
        source.qmp("migrate", {"uri": uri})
        self._load = precopy.hold()
        before = self._source.side.device("inspect")["queues"]
        ended = precopy.release()
        info = source.qmp("query-migrate")
        if ended.data["status"] != "completed":
            raise LabError(f"the migration {ended.data['status']}: {info.get('error-desc', info)}")
        self._round.figures |= {
            "downtime_ms": info.get("downtime"),
            "total_time_ms": info.get("total-time"),
            "passes": info["ram"].get("dirty-sync-count"),
            "transferred_bytes": info["ram"].get("transferred"),
        }
        self._round.busy = self._completed_since(before)

    def _completed_since(self, before: list[Mapping[str, Any]]) -> dict[str, int]:
        """Buffers that each ring completed between the release of the migration and its stop."""
        evidence = self._source.side.driver("evidence")["queues"]
        completed: dict[str, int] = {}
        for queue, name in enumerate(RING_NAMES):
            state = _evidence_of(evidence, queue).get("ring_state_after_stop")
            if state is not None:
                completed[f"{name} done since the release"] = (
                    (int(state) >> 16) - before[queue]["used_idx"]
                ) & 0xFFFF
        ring = _evidence_of(evidence, 0)
        if ring.get("driver") is not None and ring.get("ring_state_after_stop") is not None:
            available = self._source.ram.u16(int(ring["driver"]) + USED_IDX_OFFSET_BYTES)
            completed["rx posted"] = (available - int(ring["ring_state_after_stop"])) & 0xFFFF
        return completed

    def _observe_switchover(self) -> None:
        source, destination = self._source, self.arrived()
        self._observe_queues_at_source()
        if self._options.compares_ram:
            destination.machine.wait_event("MIGRATION", PHASE_SECONDS, where=is_final)
            self._say("comparing RAM")
            self._round.differing = _compare(source.ram, destination.ram)
            self._round.total_pages = source.ram.size_bytes // PAGE_BYTES
            destination.machine.qmp("cont")

    def _observe_queues_at_source(self) -> None:
        evidence = self._source.side.driver("evidence")["queues"]
        wire = wire_values(self._source.side.driver("wire_log"), "GET_VRING_BASE")
        for queue in range(len(RING_NAMES)):
            record = _evidence_of(evidence, queue)
            if record.get("device") is None:
                continue
            used_idx = self._source.ram.u16(int(record["device"]) + USED_IDX_OFFSET_BYTES)
            self._round.queues.append(
                QueueObservations(
                    queue,
                    used_idx,
                    register_after_stop=record.get("ring_state_after_stop"),
                    wire_get=wire.get(queue),
                )
            )

    def _observe_guest(self) -> None:
        """The guest goes on: it takes completions beyond the index at which the source stopped."""
        self._say("the guest goes on")
        for observed in self._round.queues:
            observed.guest = self._await_progress(observed)
        driver = self.arrived().side.driver
        evidence = driver("evidence")["queues"]
        wire = wire_values(driver("wire_log"), "SET_VRING_BASE")
        for observed in self._round.queues:
            observed.wire_set = wire.get(observed.queue)
            observed.register_before_enable = _evidence_of(evidence, observed.queue).get(
                "ring_state_before_enable"
            )

    def _await_progress(self, observed: QueueObservations) -> GuestProgress:
        """Wait until the guest has posted more buffers than the ring holds: it had to reap in between."""
        ram = self.arrived().ram
        deadline = time.monotonic() + GUEST_PROGRESS_SECONDS
        progress = GuestProgress(0, 0, 0)
        while time.monotonic() < deadline and not progress.is_beyond_the_ring:
            record = _evidence_of(self.arrived().side.driver("evidence")["queues"], observed.queue)
            if record.get("driver") is not None and record.get("size"):
                start = observed.used_idx_in_ram
                progress = GuestProgress(
                    int(record["size"]),
                    (ram.u16(int(record["driver"]) + USED_IDX_OFFSET_BYTES) - start) & 0xFFFF,
                    (ram.u16(int(record["device"]) + USED_IDX_OFFSET_BYTES) - start) & 0xFFFF,
                )
            # The guest's own index is a word in its memory: nobody announces a change of it.
            time.sleep(SAMPLE_SECONDS)
        return progress

    def _observe_traffic(self) -> None:
        self._say("counting packets")
        try:
            report = self._endpoint.finish(TRAFFIC_SECONDS)
        except LabError as error:
            self._round.traffic_problem = str(error)
            return
        self._round.figures["traffic"] = report.to_json()
        record = _evidence_of(self._source.side.driver("evidence")["queues"], 0)
        if record.get("stop_requested_ns") is None:
            self._round.traffic_problem = "the source's driver did not stop the receive queue"
            return
        gap = Gap(int(record["stop_requested_ns"]))
        silence = report.silence_around(gap.stop_request_ns)
        self._round.traffic = traffic_lines(report, gap)
        self._round.figures |= {
            "gap_ms": round(silence.duration_ms, 1) if silence else None,
            "lost_in_gap": lost_in_gap(report, gap),
        }

    def _observe_sides(self) -> None:
        try:
            audit = self._source.side.device("audit_result")
            unmarked = [(int(page), int(interval)) for page, interval in audit["unmarked"]]
            self._round.audit = AuditFindings(frozenset(audit["written"]), unmarked, audit["intervals"])
            self._round.pages_after_first_pass = self._load.pages
        except VdpaNetError as error:
            self._round.audit_problem = self._load.problem or str(error)
        for side in self._topology.sides:
            snapshot = side.device("inspect")
            new = snapshot["violation_count"] - self._violations_before[side.name]
            recent = snapshot["violations"][-new:] if new else []
            self._round.violations += [f"side {side.name}: {entry}" for entry in recent]
            self._round.faults_fired |= snapshot["faults"]

    def _keep_evidence(self) -> None:
        """What both sides know, in the lab's directory."""
        for side in self._topology.sides:
            known = {
                "inspect": side.device("inspect"),
                "events": side.device("events"),
                "evidence": side.driver("evidence"),
                "wire_log": side.driver("wire_log"),
            }
            path = self._topology.options.directory / f"round-{self._options.number}-{side.name}.json"
            path.write_text(json.dumps(known, indent=1) + "\n")

    def _violation_count(self, name: str) -> int:
        side = next(side for side in self._topology.sides if side.name == name)
        return int(side.device("inspect")["violation_count"])

    def arrived(self) -> HostedGuest:
        """The QEMU that hosts the guest after the round."""
        if self._destination is None:
            raise StateError("the round has not been run")
        return self._destination


def _on(capability: str) -> dict[str, object]:
    return {"capability": capability, "state": True}


def _evidence_of(queues: Any, queue: int) -> Mapping[str, Any]:
    """The driver's record of a queue, empty if it has none."""
    if isinstance(queues, Mapping):
        return dict(queues.get(str(queue), {}))
    return next((dict(record) for record in queues if record.get("queue") == queue), {})


def _compare(source: GuestRam, destination: GuestRam) -> list[int]:
    with memoryview(source.view) as left, memoryview(destination.view) as right:
        return differing_pages(left, right)
