# SPDX-License-Identifier: Apache-2.0
"""What became of the traffic: which packets arrived, when, how often, and in which order."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

from vdpa_net.lab.traffic.format import StreamPhase


@dataclass
class Reception:
    """What of a flow has arrived, by sequence number. `times_ns` are those of the first copies.

    `overtaken` maps a number to the highest one that had arrived before it.
    """

    order: list[int] = field(default_factory=list)
    times_ns: list[int] = field(default_factory=list)
    copies: dict[int, int] = field(default_factory=dict)
    overtaken: dict[int, int] = field(default_factory=dict)
    next_expected: int = 0

    def accept(self, sequence: int, time_ns: int) -> None:
        """One datagram arrived intact."""
        known = self.copies.get(sequence, 0)
        self.copies[sequence] = known + 1
        if known:
            return
        self.order.append(sequence)
        self.times_ns.append(time_ns)
        if sequence < self.next_expected:
            self.overtaken[sequence] = self.next_expected - 1
        else:
            self.next_expected = sequence + 1

    @property
    def duplicated(self) -> dict[int, int]:
        """Sequence numbers that arrived more than once, with the number of copies too many."""
        return {sequence: copies - 1 for sequence, copies in self.copies.items() if copies > 1}

    def missing(self, sent: int) -> list[int]:
        """Sequence numbers below `sent` that did not arrive."""
        return [sequence for sequence in range(sent) if sequence not in self.copies]


@dataclass(frozen=True)
class Direction:
    """One flow in one direction, judged by its receiver. `lost` and `duplicated` hold sequence numbers.

    `sent_ns` says when each was sent (CLOCK_MONOTONIC of the lab; towards the guest only). `overtaken` maps a
    number to the highest one that had arrived before it.
    """

    sent: int
    received: int
    lost: tuple[int, ...] = ()
    duplicated: Mapping[int, int] = field(default_factory=dict)
    overtaken: Mapping[int, int] = field(default_factory=dict)
    sent_ns: Sequence[int] = ()


@dataclass(frozen=True)
class FlowReport:
    """One flow both ways. `arrivals_ns` are the times of the guest's datagrams (CLOCK_MONOTONIC)."""

    flow: int
    to_guest: Direction
    from_guest: Direction
    arrivals_ns: tuple[int, ...] = ()


@dataclass(frozen=True)
class Unattributed:
    """Per direction, what belongs to no flow: damaged and foreign datagrams, and those that the sender's own
    kernel did not take (these are among the lost, too)."""

    corrupted: int = 0
    foreign: int = 0
    send_errors: int = 0


@dataclass(frozen=True)
class StreamReport:
    """The TCP stream, both ways, in bytes; a mismatch is the position of the first wrong byte."""

    to_guest_sent: int
    to_guest_received: int
    from_guest_sent: int
    from_guest_received: int
    to_guest_mismatch_at: int | None = None
    from_guest_mismatch_at: int | None = None
    phase: StreamPhase = StreamPhase.ENDED
    problem: str = ""


@dataclass(frozen=True)
class Silence:
    """A time without any datagram from the guest: from the last one before to the first one after, in ns."""

    start_ns: int
    end_ns: int

    @property
    def duration_ms(self) -> float:
        """Its length."""
        return (self.end_ns - self.start_ns) / 1e6


@dataclass(frozen=True)
class TrafficReport:
    """A run of traffic, both ways.

    `round_trips` are pairs: when a datagram was sent to the guest, and how long it and its echo were on their
    way (without the time that it lay at the agent), in ns.
    """

    run_id: int
    flows: tuple[FlowReport, ...]
    to_guest: Unattributed = Unattributed()
    from_guest: Unattributed = Unattributed()
    round_trips: tuple[tuple[int, int], ...] = ()
    stream: StreamReport | None = None

    def arrivals_ns(self) -> list[int]:
        """When the guest's datagrams arrived, all flows together, ascending."""
        return sorted(time_ns for flow in self.flows for time_ns in flow.arrivals_ns)

    def longest_silence(self, from_ns: int, to_ns: int) -> Silence | None:
        """The longest silence that overlaps a time (CLOCK_MONOTONIC), None if nothing arrived around it."""
        return longest_silence(self.arrivals_ns(), from_ns, to_ns)

    def to_json(self) -> dict[str, object]:
        """All of it but what is there once per datagram, for reports."""
        return {
            "run_id": self.run_id,
            "flows": [
                {
                    "flow": item.flow,
                    "to_guest": _without_times(item.to_guest),
                    "from_guest": _without_times(item.from_guest),
                }
                for item in self.flows
            ],
            "to_guest": asdict(self.to_guest),
            "from_guest": asdict(self.from_guest),
            "stream": asdict(self.stream) if self.stream else None,
        }


def _without_times(direction: Direction) -> dict[str, object]:
    return {name: value for name, value in asdict(direction).items() if name != "sent_ns"}


def longest_silence(times_ns: Sequence[int], from_ns: int, to_ns: int) -> Silence | None:
    """The longest time between neighbours of an ascending list that overlaps [from_ns, to_ns], None if there
    is none."""
    first = max(1, bisect_left(times_ns, from_ns))
    last = min(len(times_ns) - 1, bisect_left(times_ns, to_ns))
    best: Silence | None = None
    for index in range(first, last + 1):
        candidate = Silence(times_ns[index - 1], times_ns[index])
        if best is None or candidate.duration_ms > best.duration_ms:
            best = candidate
    return best


def intervals_to_numbers(intervals: Sequence[tuple[int, int]]) -> list[int]:
    """All numbers of intervals (first, last)."""
    return [number for first, last in intervals for number in range(first, last + 1)]
