# SPDX-License-Identifier: Apache-2.0
"""What became of the traffic, turned into lines of the verdict. Pure: no process, no socket.

Towards the lab nothing may be lost. Towards the guest packets may be lost that were sent inside the gap: from
the moment at which the source begins to stop its receive queues (what was sent before is in the tap, and the
stop delivers it) up to the first packet that the guest received after them.

Order is that of each flow, because each flow has one queue; between flows there is none. With several queue
pairs a flow can change its receive queue: at the switch-over, because the destination's tap knows nothing of
the source's choice and makes one of its own, until all of its queues run; and when the guest has sent the
first packet of the flow there, from which that tap learns. Packets on different sides of a change were on
different queues, and may overtake each other.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from vdpa_net.lab.traffic.format import StreamPhase
from vdpa_net.lab.traffic.reception import Direction, FlowReport, StreamReport, TrafficReport, Unattributed
from vdpa_net.migration.checks import shortened
from vdpa_net.migration.verdict import Line, Outcome

CHANGE_MARGIN_NS = 20_000_000
"""How far the lab's clock readings of a change of queues may lie from the change itself."""


@dataclass(frozen=True)
class Gap:
    """When the source began to stop its first receive queue, and when the destination's first and last queue
    ran, if it is known (CLOCK_MONOTONIC, ns); and whether a flow can change its receive queue.

    The stop delivers what is in the tap, unless `waiting_since_ns` says that packets sent since then may wait
    there in vain, right up to the stop: because the guest had no buffers posted any more; behind a vIOMMU,
    because the front end, which waits for the stop, gives no translations meanwhile; and where only the time
    at which a stop was over is known.
    """

    stop_request_ns: int
    several_queues: bool = False
    started_ns: tuple[int, int] | None = None
    waiting_since_ns: int | None = None

    def changes_ns(self, arrivals_ns: Sequence[int]) -> list[tuple[int, int]]:
        """Periods in which a flow, whose packets from the guest arrived then, may have changed its queue."""
        if not self.several_queues:
            return []
        first, last = self.started_ns or (self.stop_request_ns, self.stop_request_ns)
        # Before that the source still sends what it had taken.
        learned = next((at for at in arrivals_ns if at > first), last)
        return [(self.stop_request_ns, last), (learned, learned)]


@dataclass
class _Findings:
    """One direction, all flows: what violates the claim, by kind, and what the gap excuses."""

    sent: int = 0
    lost: list[str] = field(default_factory=list)
    duplicate: list[str] = field(default_factory=list)
    reordered: list[str] = field(default_factory=list)
    lost_in_gap: int = 0


def traffic_lines(report: TrafficReport, gap: Gap | None) -> list[Line]:
    """The lines of both directions and of the TCP stream; `gap` is None if nothing may be lost."""
    lines = [
        _direction_line("traffic to the bridge", _findings(report, _from_guest), report.from_guest),
        _direction_line("traffic to the guest", _findings(report, _to_guest, gap), report.to_guest),
    ]
    if report.stream is not None:
        lines.append(_stream_line(report.stream))
    return lines


def lost_in_gap(report: TrafficReport, gap: Gap) -> int:
    """How many packets to the guest were lost that may be lost."""
    return _findings(report, _to_guest, gap).lost_in_gap


def lost_in_gap_ns(report: TrafficReport, gap: Gap) -> list[int]:
    """When those were sent (CLOCK_MONOTONIC), ascending."""
    times = (
        flow.to_guest.sent_ns[sequence]
        for flow in report.flows
        for sequence in _losses(flow.to_guest, gap)[1]
    )
    return sorted(times)


def _from_guest(flow: FlowReport) -> Direction:
    return flow.from_guest


def _to_guest(flow: FlowReport) -> Direction:
    return flow.to_guest


def _findings(
    report: TrafficReport, direction_of: Callable[[FlowReport], Direction], gap: Gap | None = None
) -> _Findings:
    found = _Findings()
    for flow in report.flows:
        direction = direction_of(flow)
        name = f"flow {flow.flow} seq" if len(report.flows) > 1 else "seq"
        found.sent += direction.sent
        lost, inside = list(direction.lost), list[int]()
        if gap is not None:
            lost, inside = _losses(direction, gap)
        found.lost_in_gap += len(inside)
        found.lost += [f"{name} {sequence} lost{_when(direction, sequence, gap)}" for sequence in lost]
        found.duplicate += [
            f"{name} {sequence} came {copies} times too often"
            for sequence, copies in direction.duplicated.items()
        ]
        found.reordered += [
            f"{name} {late} came after {early}" for late, early in _disorder(flow, direction, gap)
        ]
    return found


def _losses(direction: Direction, gap: Gap) -> tuple[list[int], list[int]]:
    """Lost sequence numbers of a flow: those that may not be lost, those sent inside the gap (or waiting)."""
    early = [sequence for sequence in direction.lost if direction.sent_ns[sequence] < gap.stop_request_ns]
    rest = direction.lost[len(early) :]
    inside = [sequence for index, sequence in enumerate(rest) if sequence == rest[0] + index]
    late = [*rest[len(inside) :]]
    if gap.waiting_since_ns is not None:
        next_sent = bisect_left(direction.sent_ns, gap.stop_request_ns)
        first = bisect_left(direction.sent_ns, gap.waiting_since_ns)
        while early and early[-1] == next_sent - 1 >= first:
            next_sent = early.pop()
            inside.insert(0, next_sent)
    return [*early, *late], inside


def _when(direction: Direction, sequence: int, gap: Gap | None) -> str:
    if gap is None or not direction.sent_ns:
        return ""
    after_ms = (direction.sent_ns[sequence] - gap.stop_request_ns) / 1e6
    return f", sent {abs(after_ms):.1f} ms {'after' if after_ms >= 0 else 'before'} the stop began"


def _disorder(flow: FlowReport, direction: Direction, gap: Gap | None) -> Iterator[tuple[int, int]]:
    """Pairs of a late packet and one that overtook it; a change of queues in between excuses them."""
    changes = [] if gap is None or not direction.sent_ns else gap.changes_ns(flow.arrivals_ns)
    for late, early in direction.overtaken.items():
        if not any(
            direction.sent_ns[late] <= until + CHANGE_MARGIN_NS
            and direction.sent_ns[early] >= since - CHANGE_MARGIN_NS
            for since, until in changes
        ):
            yield late, early


def _direction_line(name: str, found: _Findings, rest: Unattributed) -> Line:
    faults = {
        "lost": len(found.lost),
        "duplicate": len(found.duplicate),
        "reordered": len(found.reordered),
        "corrupted": rest.corrupted,
        "foreign": rest.foreign,
    }
    counts = ", ".join(f"{count} {kind}" for kind, count in faults.items())
    inside = f"; {found.lost_in_gap} lost in the gap" if found.lost_in_gap else ""
    outcome = Outcome.FAIL if any(faults.values()) else Outcome.PASS
    detail = [*found.lost, *found.duplicate, *found.reordered]
    if rest.corrupted:
        detail.append(f"{rest.corrupted} datagrams with a wrong length or checksum")
    if rest.foreign:
        detail.append(f"{rest.foreign} datagrams of another run or flow")
    if rest.send_errors and found.lost:
        detail.append(f"the sender's own kernel did not take {rest.send_errors} datagrams")
    return Line(
        name,
        outcome if found.sent else Outcome.NOT_RUN,
        f"{found.sent} sent, {counts}{inside}",
        "0 of each" + (" outside the gap" if name == "traffic to the guest" else ""),
        shortened(detail),
    )


def _stream_line(stream: StreamReport) -> Line:
    """Every byte of the TCP stream arrived, in order, and the connection ended in order."""
    detail = [stream.problem] if stream.problem else []
    for way, sent, received, mismatch_at in (
        ("to the guest", stream.to_guest_sent, stream.to_guest_received, stream.to_guest_mismatch_at),
        ("from the guest", stream.from_guest_sent, stream.from_guest_received, stream.from_guest_mismatch_at),
    ):
        if mismatch_at is not None:
            detail.append(f"{way}: wrong byte at position {mismatch_at}")
        if sent != received:
            detail.append(f"{way}: {sent} bytes sent, {received} arrived")
    if stream.phase is not StreamPhase.ENDED:
        detail.append(f"the guest's end is {stream.phase.name}, expected ENDED")
    ran = stream.to_guest_sent > 0 and stream.from_guest_sent > 0
    outcome = Outcome.FAIL if detail else Outcome.PASS if ran else Outcome.NOT_RUN
    return Line(
        "TCP stream",
        outcome,
        f"{stream.to_guest_received} bytes to the guest, {stream.from_guest_received} from it",
        "every byte arrived, in order",
        tuple(detail),
    )
