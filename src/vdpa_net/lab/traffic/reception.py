# SPDX-License-Identifier: Apache-2.0
"""What became of a stream: which packets arrived, when, how often, and in which order."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field


@dataclass
class Reception:
    """What of a stream has arrived, by sequence number. `times_ns` are those of the first copies."""

    order: list[int] = field(default_factory=list)
    times_ns: list[int] = field(default_factory=list)
    copies: dict[int, int] = field(default_factory=dict)
    duplicates: int = 0
    reordered: int = 0
    corrupted: int = 0
    foreign: int = 0
    next_expected: int = 0

    def accept(self, sequence: int, time_ns: int) -> None:
        """One datagram arrived intact."""
        known = self.copies.get(sequence, 0)
        self.copies[sequence] = known + 1
        if known:
            self.duplicates += 1
            return
        self.order.append(sequence)
        self.times_ns.append(time_ns)
        if sequence < self.next_expected:
            self.reordered += 1
        else:
            self.next_expected = sequence + 1

    @property
    def duplicated(self) -> dict[int, int]:
        """Sequence numbers that arrived more than once, with the number of copies too many."""
        return {sequence: copies - 1 for sequence, copies in self.copies.items() if copies > 1}

    def missing(self, sent: int) -> list[int]:
        """Sequence numbers below `sent` that did not arrive."""
        return [sequence for sequence in range(sent) if sequence not in self.copies]

    def summary(self) -> dict[str, int]:
        """The fields of SUMMARY."""
        return {
            "received": len(self.order),
            "next_expected": self.next_expected,
            "duplicates": self.duplicates,
            "reordered": self.reordered,
            "corrupted": self.corrupted,
            "foreign": self.foreign,
        }


@dataclass(frozen=True)
class Direction:
    """One stream, judged by its receiver. `lost` and `duplicated` hold sequence numbers.

    `lost_sent_ns` says when the lost ones were sent (CLOCK_MONOTONIC of the lab; towards the guest only).
    `send_errors` counts datagrams that the sender's own kernel did not take: they are among the lost.
    """

    sent: int
    received: int
    lost: tuple[int, ...]
    duplicated: Mapping[int, int]
    reordered: int
    corrupted: int
    foreign: int
    send_errors: int
    lost_sent_ns: tuple[int, ...] = ()

    @property
    def is_clean(self) -> bool:
        """Everything arrived once, whole and in order."""
        return not (self.lost or self.duplicated or self.reordered or self.corrupted)


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
    """A run of traffic, both ways. `arrivals_ns` are the times of the guest's datagrams (CLOCK_MONOTONIC)."""

    run_id: int
    to_guest: Direction
    from_guest: Direction
    arrivals_ns: tuple[int, ...]

    def silence_around(self, instant_ns: int, window_ns: int = 5_000_000_000) -> Silence | None:
        """The longest silence that comes nearer to the instant than `window_ns`."""
        return longest_silence(self.arrivals_ns, instant_ns - window_ns, instant_ns + window_ns)

    def lost_to_guest_outside(self, start_ns: int, end_ns: int) -> list[int]:
        """Sequence numbers lost towards the guest that were sent before `start_ns` or after `end_ns`."""
        pairs = zip(self.to_guest.lost, self.to_guest.lost_sent_ns, strict=True)
        return [sequence for sequence, sent_ns in pairs if not start_ns <= sent_ns <= end_ns]

    def to_json(self) -> dict[str, object]:
        """All of it but the arrivals, for reports."""
        return {
            "run_id": self.run_id,
            "to_guest": asdict(self.to_guest),
            "from_guest": asdict(self.from_guest),
            "arrivals": len(self.arrivals_ns),
        }


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
