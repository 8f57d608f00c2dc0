# SPDX-License-Identifier: Apache-2.0
"""What a round of migration left behind, turned into lines of the verdict. Pure: no process, no socket."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from vdpa_net.lab.migrate.arrival import Arrival
from vdpa_net.lab.migrate.ring_memory import GuestProgress, PackedMemory, SplitMemory
from vdpa_net.lab.migrate.rings_at_stop import RingsAtStop
from vdpa_net.migration.checks import (
    AuditFindings,
    check_audit_findings,
    check_ram,
    check_ring_state,
    check_round_counts,
    check_violations,
)
from vdpa_net.migration.verdict import Line, Outcome
from vdpa_net.wire.lm import unpack_ring_state

OUT_OF_REACH = {
    "ring state": "the back end's registers and messages can't be seen",
    "dirty audit": "what the back end writes and marks can't be seen",
    "violations": "the back end records none for us",
    "announcement": "the back end's own network carries it",
}
"""Claims about a back end that is not ours, and why they can't be examined."""


@dataclass
class QueueObservations:
    """One queue at the switch-over, each value from a place of its own.

    `used_in_ram` is the reference (None: RAM does not tell); `register_after_stop` and
    `register_before_enable` are LM_RING_STATE as the drivers read it (32 bits); `wire_get` and `wire_set` are
    GET_VRING_BASE's answer and SET_VRING_BASE as they crossed the vhost sockets; `guest` is how the guest
    went on at the destination. `packed` says how all of them are to be read.
    """

    queue: int
    used_in_ram: int | None
    register_after_stop: int | None = None
    wire_get: int | None = None
    wire_set: int | None = None
    register_before_enable: int | None = None
    guest: GuestProgress | None = None
    packed: bool = False

    def line(self) -> Line:
        """The queue's line: all observations say what RAM says."""
        kind = PackedMemory if self.packed else SplitMemory
        observed: dict[str, int | None] = {}
        for name, value, has_halves in (
            ("LM_RING_STATE after the stop at the source", self.register_after_stop, True),
            ("LM_RING_STATE before queue_enable at the destination", self.register_before_enable, True),
            ("GET_VRING_BASE answered to the source's QEMU", self.wire_get, self.packed),
            ("SET_VRING_BASE sent by the destination's QEMU", self.wire_set, self.packed),
        ):
            observed |= _halves(name, value) if has_halves else {name: value}
        if self.used_in_ram is None:
            why = f"{kind.reference} can't be told"
            return Line(f"ring state vq{self.queue}", Outcome.NOT_RUN, why, "an index in RAM", (why,))
        line = check_ring_state(
            self.queue, observed, self.used_in_ram, reference=kind.reference, show=kind.show
        )
        return self._with_guest(line, kind.show(self.used_in_ram))

    def _with_guest(self, line: Line, start: str) -> Line:
        if self.guest is None:
            return replace(
                line,
                outcome=_worse(line.outcome, Outcome.NOT_RUN),
                detail=(*line.detail, "guest not observed"),
            )
        if self.guest.is_beyond_the_ring:
            return replace(line, measured=f"{line.measured}; the guest went on by {self.guest.posted}")
        stuck = (
            f"the guest did not go on: {self.guest.posted} buffers posted, {self.guest.completed} completed "
            f"since {start}, expected more than the ring's {self.guest.ring_size}"
        )
        return replace(line, outcome=Outcome.FAIL, detail=(*line.detail, stuck))


@dataclass
class Round:
    """Everything that was observed in one round; `None` is what this kind of round does not observe.

    `watched` is false where the back end is not ours: what only it could tell is not checked. `audited` is
    false where a driver marks the pages in place of the device, `moved` if the guest was to stay where it is.
    `standstill` is how a guest that has arrived shows that it does not go on. `page_notes` say more about
    pages that differ; `more_lines` are claims that only some rounds make.
    """

    number: int
    compares_ram: bool
    source_name: str
    differing: list[int] | None = None
    total_pages: int = 0
    queues: list[QueueObservations] = field(default_factory=list)
    audit: AuditFindings | None = None
    audit_problem: str = ""
    pages_after_first_pass: int = 0
    rings: RingsAtStop = field(default_factory=RingsAtStop)
    traffic: list[Line] = field(default_factory=list)
    traffic_problem: str = ""
    arrival: Arrival = field(default_factory=Arrival)
    standstill: str = ""
    violations: list[str] = field(default_factory=list)
    faults_fired: dict[str, int] = field(default_factory=dict)
    page_notes: dict[int, str] = field(default_factory=dict)
    more_lines: list[Line] = field(default_factory=list)
    watched: bool = True
    audited: bool = True
    moved: bool = True
    figures: dict[str, Any] = field(default_factory=dict)

    def lines(self, minimum_pages: int) -> list[Line]:
        """The verdict on this round."""
        if not self.moved:
            return [
                _in_round(line, self.number) for line in [*self.more_lines, check_violations(self.violations)]
            ]
        if not self.arrival.is_complete:
            return [_in_round(line, self.number) for line in self._without_arrival()]
        lines = [self.arrival.line()]
        lines += [self._load(minimum_pages)] if self.watched else []
        if self.compares_ram:
            lines.append(self._ram())
        if self.watched:
            lines += [queue.line() for queue in self.queues] or [
                _not_run("ring state", "no queue was observed")
            ]
            lines += [self._audit()] if self.audited else []
        lines += self.traffic or [self._no_traffic()]
        lines += self.more_lines
        if self.watched:
            lines.append(check_violations(self.violations))
        return [_in_round(line, self.number) for line in lines]

    def _without_arrival(self) -> list[Line]:
        """A guest that has not come can't be asked; what is known of the source may tell the reason."""
        lines = [queue.line() for queue in self.queues]
        known = (
            f"{line.name}: {text}"
            for line in lines
            if line.outcome is Outcome.FAIL
            for text in line.detail
            if "observed" not in text
        )
        return [self.arrival.line(known), _not_run("everything else", "the guest did not arrive")]

    @property
    def goes_on(self) -> bool:
        """Whether nothing has shown yet that the guest stands still."""
        queues = [queue.guest for queue in self.queues if queue.guest is not None]
        return not self.standstill and all(guest.is_beyond_the_ring for guest in queues)

    def _no_traffic(self) -> Line:
        if self.standstill:
            return Line("traffic", Outcome.FAIL, "the guest does not go on", "it goes on", (self.standstill,))
        return _not_run("traffic", self.traffic_problem or "not observed")

    def _load(self, minimum_pages: int) -> Line:
        rings = self.rings
        return check_round_counts(self.pages_after_first_pass, minimum_pages, rings.done, rings.posted)

    def _ram(self) -> Line:
        if self.differing is None:
            return _not_run("guest RAM", "not compared")
        line = check_ram(self.differing, self.total_pages, self.page_notes)
        if not self.differing or self.audit is None:
            return line
        by_device = len(set(self.differing) & self.audit.written)
        return replace(line, measured=f"{line.measured}, {by_device} of them written by the device")

    def _audit(self) -> Line:
        if self.audit is None:
            return _not_run("dirty audit", self.audit_problem or "not made")
        return check_audit_findings(self.audit)


def _halves(name: str, value: int | None) -> dict[str, int | None]:
    last_avail_idx, used_idx = (None, None) if value is None else unpack_ring_state(value)
    return {f"{name}, last_avail_idx": last_avail_idx, f"{name}, used_idx": used_idx}


def _worse(left: Outcome, right: Outcome) -> Outcome:
    order = (Outcome.FAIL, Outcome.NOT_RUN, Outcome.PASS)
    return min(left, right, key=order.index)


def wire_values(log: Sequence[Mapping[str, Any]], message: str) -> dict[int, int]:
    """The last `num` of a vring-state message per queue index, from a recorded vhost session."""
    found: dict[int, int] = {}
    for entry in log:
        if entry["message"] == message:
            payload = entry["payload"]
            found[int(payload["index"])] = int(payload["num"])
    return found


def _not_run(name: str, why: str) -> Line:
    return Line(name, Outcome.NOT_RUN, why, "observed", (why,))


def _in_round(line: Line, number: int) -> Line:
    return Line(f"round {number}: {line.name}", line.outcome, line.measured, line.expected, line.detail)
