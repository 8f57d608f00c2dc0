# SPDX-License-Identifier: Apache-2.0
"""The claims of a verdict, as pure functions of what was observed: RAM, ring state, dirty audit, traffic.

Nothing here looks at a device. The caller collects the observations; each function turns them into one
`Line` whose detail names the page, index or sequence number that violates the claim.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field

from vdpa_net.migration.verdict import Line, Outcome

PAGE_BYTES = 4096
"""Size of the pages that the dirty log counts (vhost-user, VHOST_LOG_PAGE)."""

DETAIL_LIMIT = 16
"""Violations that one line names one by one; the rest is counted."""

_COMPARE_BYTES = 64 * PAGE_BYTES


def differing_pages(left: bytes | memoryview, right: bytes | memoryview, first_page: int = 0) -> list[int]:
    """Numbers of the pages that differ, `first_page` being the number of the first.

    Raises ValueError if the buffers are not equally long.
    """
    a, b = memoryview(left), memoryview(right)
    if a.nbytes != b.nbytes:
        raise ValueError(f"can't compare {a.nbytes} bytes with {b.nbytes} bytes")
    found: list[int] = []
    for start in range(0, a.nbytes, _COMPARE_BYTES):
        end = min(start + _COMPARE_BYTES, a.nbytes)
        if bytes(a[start:end]) == bytes(b[start:end]):
            continue
        found += [
            first_page + at // PAGE_BYTES
            for at in range(start, end, PAGE_BYTES)
            if bytes(a[at : at + PAGE_BYTES]) != bytes(b[at : at + PAGE_BYTES])
        ]
    return found


def filled_pages(memory: bytes | memoryview) -> int:
    """How many pages hold something else than zeros."""
    view, zeros = memoryview(memory), bytes(_COMPARE_BYTES)
    count = 0
    for start in range(0, view.nbytes, _COMPARE_BYTES):
        end = min(start + _COMPARE_BYTES, view.nbytes)
        if bytes(view[start:end]) == zeros[: end - start]:
            continue
        count += sum(
            bytes(view[at : at + PAGE_BYTES]) != zeros[: min(PAGE_BYTES, end - at)]
            for at in range(start, end, PAGE_BYTES)
        )
    return count


def check_ram(differing: Collection[int], total_pages: int, notes: Mapping[int, str] | None = None) -> Line:
    """Every page of guest RAM is equal on both sides; `differing` are guest page numbers, `notes` what else
    is known about some of them."""
    more = notes or {}
    return Line(
        "guest RAM",
        _pass_if(not differing) if total_pages else Outcome.NOT_RUN,
        f"{len(differing)} of {total_pages} pages differ",
        "0 pages differ",
        shortened(
            f"page {page:#x} (guest physical {page * PAGE_BYTES:#x}){more.get(page, '')}"
            for page in sorted(differing)
        ),
    )


def check_ring_state(
    queue: int,
    observed: Mapping[str, int | None],
    expected: int,
    *,
    reference: str = "used->idx in RAM",
    show: Callable[[int], str] = str,
) -> Line:
    """Every observation of a net queue's index after its stop says what RAM (the `reference`) says.

    A net queue is drained when it stops, so last_avail_idx equals used_idx. `observed` maps the name of
    an observation to its index, or to None where it could not be made, which makes the line NOT RUN. `show`
    writes an index for a person.
    """
    wrong = {name: value for name, value in observed.items() if value is not None and value != expected}
    missing = [name for name, value in observed.items() if value is None]
    outcome = Outcome.FAIL if wrong else Outcome.NOT_RUN if missing or not observed else Outcome.PASS
    detail = [f"{name} is {show(value)}, {reference} is {show(expected)}" for name, value in wrong.items()]
    detail += [f"{name} was not observed" for name in missing]
    agree = len(observed) - len(wrong) - len(missing)
    return Line(
        f"ring state vq{queue}",
        outcome,
        f"{agree} of {len(observed)} observations are {show(expected)}",
        f"all are {reference}, {show(expected)}",
        tuple(detail),
    )


@dataclass(frozen=True)
class AuditInterval:
    """Pages that the device was seen to write in an interval, and pages marked for it."""

    written: Set[int]
    marked: Set[int]


def check_audit(written_pages: Set[int], marked_pages: Set[int]) -> Line:
    """Every page that the device wrote while logging was marked at least once."""
    return check_audit_intervals([AuditInterval(written_pages, marked_pages)])


def check_audit_intervals(intervals: Sequence[AuditInterval]) -> Line:
    """In every interval, every page that the device wrote was marked for that interval."""
    written: set[int] = set().union(*(item.written for item in intervals))
    unmarked = sorted(
        (page, number)
        for number, item in enumerate(intervals)
        for page in item.written
        if page not in item.marked
    )
    return check_audit_findings(AuditFindings(written, unmarked, len(intervals)))


@dataclass(frozen=True)
class AuditFindings:
    """A finished audit: pages written, and (page, interval) for those not marked in an interval.

    `marked` and `over_marked` are pages marked, and marked without having been written, summed over the
    intervals. Over-marking is legal; it costs transfer.
    """

    written: Set[int]
    unmarked: Sequence[tuple[int, int]]
    intervals: int
    marked: int = 0
    over_marked: int = 0


def check_audit_findings(findings: AuditFindings) -> Line:
    """Every page that the device wrote in an interval was marked in it."""
    pages = {page for page, _ in findings.unmarked}
    over = f", {findings.over_marked / findings.marked:.1%} over-marked" if findings.marked else ""
    return Line(
        "dirty audit",
        _pass_if(not pages) if findings.written else Outcome.NOT_RUN,
        f"{len(pages)} of {len(findings.written)} written pages unmarked in {findings.intervals} intervals"
        + over,
        "0 pages unmarked",
        shortened(
            f"page {page:#x} written in interval {number}, not marked" for page, number in findings.unmarked
        ),
    )


@dataclass
class TrafficTally:
    """One direction of traffic: sequence numbers as sent, and as they arrived intact, in that order.

    `may_be_lost` holds those whose loss the direction allows (sent inside the gap).
    """

    sent: Collection[int] = field(default_factory=list)
    received: Sequence[int] = field(default_factory=list)
    corrupted: Sequence[str] = ()
    may_be_lost: Set[int] = frozenset()

    def lost(self) -> list[int]:
        """Sent, never received, and not allowed to be lost."""
        return sorted(set(self.sent) - set(self.received) - self.may_be_lost)

    def lost_in_gap(self) -> list[int]:
        """Sent, never received, allowed."""
        return sorted((set(self.sent) - set(self.received)) & self.may_be_lost)

    def duplicates(self) -> list[int]:
        """Received more than once."""
        return sorted(seq for seq, times in Counter(self.received).items() if times > 1)

    def unknown(self) -> list[int]:
        """Received, never sent."""
        return sorted(set(self.received) - set(self.sent))

    def reordered(self) -> list[int]:
        """First arrivals that came after a higher number."""
        late: list[int] = []
        highest = -1
        for seq in dict.fromkeys(self.received):
            if seq < highest:
                late.append(seq)
            highest = max(highest, seq)
        return late


def check_traffic(name: str, tally: TrafficTally) -> Line:
    """No packet is lost (outside the gap), duplicated, reordered, corrupted or invented."""
    faults = {
        "lost": tally.lost(),
        "duplicate": tally.duplicates(),
        "reordered": tally.reordered(),
        "unknown": tally.unknown(),
    }
    detail = [f"seq {seq} {kind}" for kind, numbers in faults.items() for seq in numbers]
    detail += [f"corrupted: {item}" for item in tally.corrupted]
    counts = ", ".join(f"{len(numbers)} {kind}" for kind, numbers in faults.items())
    gap = tally.lost_in_gap()
    return Line(
        name,
        _pass_if(not detail) if tally.sent else Outcome.NOT_RUN,
        f"{len(tally.sent)} sent, {counts}, {len(tally.corrupted)} corrupted"
        + (f"; {len(gap)} lost in the gap" if gap else ""),
        "0 of each" + (" outside the gap" if tally.may_be_lost else ""),
        shortened(detail),
    )


def check_round_counts(
    pages_after_first_pass: int,
    minimum_pages: int,
    in_flight: Mapping[str, int],
    also: Mapping[str, int] | None = None,
) -> Line:
    """The round is worth something: the device wrote pages late, and every ring was busy at the stop.

    `also` is told beside it, whatever it is.
    """
    idle = [name for name, count in in_flight.items() if count <= 0]
    enough = pages_after_first_pass >= minimum_pages
    detail = [f"{name}: nothing at the stop" for name in idle]
    if not enough:
        detail.insert(0, f"the device wrote {pages_after_first_pass} pages after the first pass")
    busy = ", ".join(f"{name}: {count}" for name, count in {**in_flight, **(also or {})}.items())
    return Line(
        "load",
        Outcome.PASS if enough and in_flight and not idle else Outcome.NOT_RUN,
        f"{pages_after_first_pass} pages written after the first pass; rings at the stop: {busy or '-'}",
        f">= {minimum_pages} pages, every ring busy",
        tuple(detail),
    )


def check_violations(violations: Sequence[str]) -> Line:
    """No device recorded a violation."""
    return Line(
        "violations",
        _pass_if(not violations),
        f"{len(violations)} recorded",
        "0 recorded",
        shortened(violations),
    )


def _pass_if(holds: bool) -> Outcome:
    return Outcome.PASS if holds else Outcome.FAIL


def shortened(items: Iterable[str]) -> tuple[str, ...]:
    """The first DETAIL_LIMIT items, and how many more there are."""
    every = list(items)
    if len(every) <= DETAIL_LIMIT:
        return tuple(every)
    return (*every[:DETAIL_LIMIT], f"... and {len(every) - DETAIL_LIMIT} more")
