# SPDX-License-Identifier: Apache-2.0
"""One round: the guest moves from one side to the other under traffic, and what can be seen is written down.

There are two kinds of round. One keeps both machines still at the switch-over and compares their RAM; its
own pause lies in the gap, so it does not time it. The other lets the destination go on at once and times the
gap.

When the switch-over happens is the lab's decision, not chance's: the migration may not converge
(downtime-limit 0) until the device has written enough pages after the first pass; then the limit is raised.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vdpa_net.errors import LabError, PeerError, StateError, VdpaNetError
from vdpa_net.lab.endpoint import TrafficEndpoint
from vdpa_net.lab.observe import (
    RING_NAMES,
    USED_IDX_OFFSET_BYTES,
    GuestProgress,
    QueueObservations,
    Round,
    pages_of_bitmap,
    traffic_lines,
    wire_values,
)
from vdpa_net.lab.progress import ProgressCallback
from vdpa_net.lab.qmp import Event
from vdpa_net.lab.ram import GuestRam
from vdpa_net.lab.topology import FlatTopology, HostedGuest
from vdpa_net.migration.checks import PAGE_BYTES, AuditInterval, differing_pages

PHASE_SECONDS = 120
GUEST_PROGRESS_SECONDS = 30
TRAFFIC_SECONDS = 60
WARM_UP_DATAGRAMS = 200
BANDWIDTH_BYTES_PER_S = 1 << 30
DOWNTIME_LIMIT_MS = 300
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
        return self._round

    def _say(self, what: str, fraction: float | None = None) -> None:
        kind = "RAM compared" if self._options.compares_ram else "gap timed"
        self._progress(f"round {self._options.number} ({kind}): {what}", fraction)

    def _migrate(self) -> None:
        source, destination = self._source.machine, self.arrived().machine
        socket = Path(self._topology.options.directory) / f"migration-{self._options.number}"
        uri = f"unix:{socket}"
        start = source.session.position
        for machine in (source, destination):
            machine.qmp("migrate-set-capabilities", {"capabilities": [_on("events")]})
        destination.qmp("migrate-incoming", {"uri": uri})
        source.qmp("migrate-set-parameters", _parameters(0))
        self._source.side.device("audit_arm")
        if not self._options.compares_ram:
            # The destination goes on by itself as soon as it has everything.
            destination.qmp("cont")
        self._say("first pass")
        source.qmp("migrate", {"uri": uri})
        # Pass 2 begins when the first one is complete.
        source.wait_event("MIGRATION_PASS", PHASE_SECONDS, start=start, where=lambda e: e.data["pass"] >= 2)
        self._wait_for_load()
        self._allow_switchover(start)

    def _wait_for_load(self) -> None:
        """Return when the device has written enough pages after the first pass, or does not any more."""
        device = self._source.side.device
        wanted = self._options.minimum_pages
        try:
            device("audit_checkpoint")
            deadline = time.monotonic() + PHASE_SECONDS
            while time.monotonic() < deadline:
                written = int(device("audit_written_since"))
                self._round.pages_after_first_pass = written
                self._say(f"pre-copy, the device wrote {written} of {wanted} pages", min(1, written / wanted))
                if written >= wanted:
                    return
                # The number of written pages is a sample, nobody announces it.
                time.sleep(SAMPLE_SECONDS)
        except PeerError as error:
            self._round.audit_problem = str(error)

    def _allow_switchover(self, start: int) -> None:
        before = self._source.side.device("inspect")["queues"]
        self._say("switch-over")
        self._source.machine.qmp("migrate-set-parameters", _parameters(DOWNTIME_LIMIT_MS))
        ended = self._source.machine.wait_event("MIGRATION", PHASE_SECONDS, start=start, where=_is_final)
        if ended.data["status"] != "completed":
            info = self._source.machine.qmp("query-migrate")
            raise LabError(f"the migration {ended.data['status']}: {info.get('error-desc', info)}")
        info = self._source.machine.qmp("query-migrate")
        ram = info["ram"]
        self._round.figures |= {
            "downtime_ms": info.get("downtime"),
            "total_time_ms": info.get("total-time"),
            "passes": ram.get("dirty-sync-count"),
            "transferred_bytes": ram.get("transferred"),
        }
        self._round.busy = self._completed_since(before)

    def _completed_since(self, before: list[Mapping[str, Any]]) -> dict[str, int]:
        """Buffers that each ring completed between the decision to switch over and its stop."""
        evidence = self._source.side.driver("evidence")["queues"]
        completed: dict[str, int] = {}
        for queue, name in enumerate(RING_NAMES):
            state = _evidence_of(evidence, queue).get("ring_state_after_stop")
            if state is not None:
                completed[f"{name} completed"] = ((int(state) >> 16) - before[queue]["used_idx"]) & 0xFFFF
        ring = _evidence_of(evidence, 0)
        if ring.get("driver") is not None and ring.get("ring_state_after_stop") is not None:
            available = self._source.ram.u16(int(ring["driver"]) + USED_IDX_OFFSET_BYTES)
            completed["rx buffers posted"] = (available - int(ring["ring_state_after_stop"])) & 0xFFFF
        return completed

    def _observe_switchover(self) -> None:
        source, destination = self._source, self.arrived()
        self._observe_queues_at_source()
        if self._options.compares_ram:
            destination.machine.wait_event("MIGRATION", PHASE_SECONDS, where=_is_final)
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
        stop_request_ns = _stop_request_ns(self._source.side.driver("wire_log"))
        if stop_request_ns is None:
            self._round.traffic_problem = "the source's QEMU did not ask for a stop of the receive queue"
            return
        lines, figures = traffic_lines(report, stop_request_ns)
        self._round.traffic = lines
        self._round.figures |= figures

    def _observe_sides(self) -> None:
        try:
            audit = self._source.side.device("audit_result")
            marked = pages_of_bitmap(bytes.fromhex(audit["marked"]))
            self._round.audit = AuditInterval(frozenset(audit["written"]), frozenset(marked))
            self._round.pages_after_first_pass = int(audit["since_checkpoint"])
        except VdpaNetError as error:
            self._round.audit_problem = str(error)
        for side in self._topology.sides:
            snapshot = side.device("inspect")
            new = snapshot["violation_count"] - self._violations_before[side.name]
            recent = snapshot["violations"][-new:] if new else []
            self._round.violations += [f"side {side.name}: {entry}" for entry in recent]
            self._round.faults_fired |= snapshot["faults"]

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


def _parameters(downtime_limit_ms: int) -> dict[str, int]:
    return {"max-bandwidth": BANDWIDTH_BYTES_PER_S, "downtime-limit": downtime_limit_ms}


def _is_final(event: Event) -> bool:
    return event.data["status"] in ("completed", "failed", "cancelled")


def _evidence_of(queues: Any, queue: int) -> Mapping[str, Any]:
    """The driver's record of a queue, empty if it has none."""
    if isinstance(queues, Mapping):
        return dict(queues.get(str(queue), {}))
    return next((dict(record) for record in queues if record.get("queue") == queue), {})


def _stop_request_ns(log: list[dict[str, Any]]) -> int | None:
    """When the front end last asked for the stop of the receive queue (CLOCK_MONOTONIC)."""
    times: list[int] = []
    for entry in log:
        payload = entry["payload"] or {}
        disables = entry["message"] == "SET_VRING_ENABLE" and payload.get("num") == 0
        if payload.get("index") == 0 and (disables or entry["message"] == "GET_VRING_BASE"):
            times.append(int(entry["monotonic_ns"]))
        elif payload.get("index") == 0 and entry["message"] == "SET_VRING_BASE":
            times.clear()
    return times[0] if times else None


def _compare(source: GuestRam, destination: GuestRam) -> list[int]:
    with memoryview(source.view) as left, memoryview(destination.view) as right:
        return differing_pages(left, right)
