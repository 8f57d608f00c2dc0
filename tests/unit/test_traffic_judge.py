# SPDX-License-Identifier: Apache-2.0
"""What the verdict makes of traffic, from receptions made up here."""

from __future__ import annotations

from dataclasses import replace

import pytest

from vdpa_net.lab.traffic.format import StreamPhase
from vdpa_net.lab.traffic.judge import CHANGE_MARGIN_NS, Gap, lost_in_gap, lost_in_gap_ns, traffic_lines
from vdpa_net.lab.traffic.reception import (
    Direction,
    FlowReport,
    Reception,
    StreamReport,
    TrafficReport,
    Unattributed,
)
from vdpa_net.migration.verdict import Line, Outcome

MS = 1_000_000
SENT_NS = tuple(number * MS for number in range(100))
"""Towards the guest one packet is sent each millisecond; the stop begins after the fortieth."""
GAP = Gap(stop_request_ns=40 * MS)
TO_GUEST = Direction(sent=100, received=100, sent_ns=SENT_NS)
FROM_GUEST = Direction(sent=100, received=100)
STREAM = StreamReport(1000, 1000, 2000, 2000)


def report(to_guest: Direction = TO_GUEST, from_guest: Direction = FROM_GUEST) -> TrafficReport:
    arrivals = (0, 1 * MS, 51 * MS, 52 * MS)
    return TrafficReport(1, (FlowReport(0, to_guest, from_guest, arrivals),), stream=STREAM)


def lines(given: TrafficReport, gap: Gap | None = GAP) -> dict[str, Line]:
    return {line.name: line for line in traffic_lines(given, gap)}


def violated(given: TrafficReport, gap: Gap | None = GAP) -> set[str]:
    return {name for name, line in lines(given, gap).items() if line.outcome is Outcome.FAIL}


def lost(*numbers: int) -> TrafficReport:
    return report(to_guest=replace(TO_GUEST, lost=numbers, received=100 - len(numbers)))


def test_traffic_that_arrived_whole_passes_in_every_line() -> None:
    found = lines(report())
    assert set(found) == {"traffic to the bridge", "traffic to the guest", "TCP stream"}
    assert {line.outcome for line in found.values()} == {Outcome.PASS}


def test_loss_inside_the_gap_is_allowed_towards_the_guest() -> None:
    given = lost(40, 41, 42)
    assert not violated(given)
    assert lost_in_gap(given, GAP) == 3
    assert lost_in_gap_ns(given, GAP) == [40 * MS, 41 * MS, 42 * MS]
    assert "3 lost in the gap" in lines(given)["traffic to the guest"].measured


def test_without_a_gap_nothing_may_be_lost() -> None:
    assert violated(lost(40), gap=None) == {"traffic to the guest"}


@pytest.mark.parametrize(
    ("numbers", "named"),
    [((39, 40), "seq 39 lost, sent 1.0 ms before"), ((40, 41, 43), "seq 43 lost, sent 3.0 ms after")],
)
def test_loss_outside_the_gap_is_named_with_its_time(numbers: tuple[int, ...], named: str) -> None:
    line = lines(lost(*numbers))["traffic to the guest"]
    assert line.outcome is Outcome.FAIL
    assert len(line.detail) == 1
    assert line.detail[0].startswith(named)


def test_what_waits_in_the_tap_may_be_lost_where_a_stop_delivers_nothing() -> None:
    gap = replace(GAP, waiting_since_ns=37 * MS)
    assert not violated(lost(37, 38, 39, 40, 41), gap)
    assert lost_in_gap(lost(37, 38, 39, 40, 41), gap) == 5
    assert not violated(lost(38, 39), gap)
    for others in ((37, 39, 40), (37, 38)):
        line = lines(lost(*others), gap)["traffic to the guest"]
        assert line.outcome is Outcome.FAIL
        assert line.detail[0].startswith("seq 37 lost")
    assert violated(lost(36, 37, 38, 39, 40), gap) == {"traffic to the guest"}


def test_any_loss_towards_the_bridge_fails() -> None:
    assert violated(report(from_guest=replace(FROM_GUEST, lost=(40,)))) == {"traffic to the bridge"}


@pytest.mark.parametrize("way", ["to_guest", "from_guest"])
@pytest.mark.parametrize(
    ("field", "value", "named"),
    [("duplicated", {7: 2}, "seq 7 came 2 times too often"), ("overtaken", {7: 9}, "seq 7 came after 9")],
)
def test_each_kind_of_damage_fails_where_it_is(way: str, field: str, value: object, named: str) -> None:
    normal = TO_GUEST if way == "to_guest" else FROM_GUEST
    found = lines(report(**{way: replace(normal, **{field: value})}))
    name = {"to_guest": "traffic to the guest", "from_guest": "traffic to the bridge"}[way]
    assert {key for key, line in found.items() if line.outcome is Outcome.FAIL} == {name}
    assert named in found[name].detail


@pytest.mark.parametrize("way", ["to_guest", "from_guest"])
@pytest.mark.parametrize("field", ["corrupted", "foreign"])
def test_damaged_and_foreign_datagrams_fail_where_they_arrived(way: str, field: str) -> None:
    name = {"to_guest": "traffic to the guest", "from_guest": "traffic to the bridge"}[way]
    given = replace(report(), **{way: Unattributed(**{field: 1})})
    assert violated(given) == {name}


def test_traffic_that_never_ran_is_not_run() -> None:
    given = report(to_guest=replace(TO_GUEST, sent=0))
    assert lines(given)["traffic to the guest"].outcome is Outcome.NOT_RUN


def test_gap_is_the_longest_silence_that_overlaps_the_switch_over() -> None:
    silence = report().longest_silence(2 * MS, 40 * MS)
    assert silence is not None
    assert silence.duration_ms == 50.0
    elsewhere = report().longest_silence(52 * MS, 53 * MS)
    assert elsewhere is not None
    assert elsewhere.duration_ms == 1.0


@pytest.mark.parametrize(
    ("overtaken", "several", "allowed"),
    [
        ({50: 52}, True, True),
        ({50: 52}, False, False),
        ({39: 90}, True, True),
        ({39: 90}, False, False),
        ({80: 82}, True, False),
        ({5: 7}, True, False),
    ],
)
def test_only_a_change_of_queues_may_reorder_a_flow(
    overtaken: dict[int, int], several: bool, allowed: bool
) -> None:
    # The guest's first packet on the destination arrives at 51 ms: there the tap learns the flow's queue.
    assert CHANGE_MARGIN_NS < 29 * MS
    given = report(to_guest=replace(TO_GUEST, overtaken=overtaken))
    gap = replace(GAP, several_queues=several)
    assert violated(given, gap) == (set() if allowed else {"traffic to the guest"})


def test_what_the_source_still_sends_after_the_stop_began_changes_no_queue() -> None:
    drained = replace(report().flows[0], to_guest=replace(TO_GUEST, overtaken={70: 72}))
    given = TrafficReport(1, (replace(drained, arrivals_ns=(41 * MS, 71 * MS)),), stream=STREAM)
    gap = replace(GAP, several_queues=True)
    assert violated(given, gap) == {"traffic to the guest"}
    assert not violated(given, replace(gap, started_ns=(70 * MS, 70 * MS)))


@pytest.mark.parametrize(("last_ns", "allowed"), [(80 * MS, True), (50 * MS, False)])
def test_a_flow_may_change_its_queue_until_all_of_the_destinations_run(last_ns: int, allowed: bool) -> None:
    given = report(to_guest=replace(TO_GUEST, overtaken={79: 81}))
    gap = Gap(40 * MS, several_queues=True, started_ns=(50 * MS, last_ns))
    assert violated(given, gap) == (set() if allowed else {"traffic to the guest"})


def test_flows_are_judged_one_by_one() -> None:
    flows = (
        FlowReport(0, replace(TO_GUEST, lost=(40, 41)), FROM_GUEST, (51 * MS,)),
        FlowReport(1, replace(TO_GUEST, lost=(45, 47)), FROM_GUEST, (51 * MS,)),
    )
    line = lines(TrafficReport(1, flows, stream=STREAM))["traffic to the guest"]
    assert line.measured.startswith("200 sent, 1 lost")
    assert line.detail[0].startswith("flow 1 seq 47 lost")


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("to_guest_received", 999, "to the guest: 1000 bytes sent, 999 arrived"),
        ("from_guest_sent", 2001, "from the guest: 2001 bytes sent, 2000 arrived"),
        ("to_guest_mismatch_at", 17, "to the guest: wrong byte at position 17"),
        ("from_guest_mismatch_at", 0, "from the guest: wrong byte at position 0"),
        ("phase", StreamPhase.BROKEN, "BROKEN"),
        ("problem", "the connection broke", "the connection broke"),
    ],
)
def test_each_damage_of_the_stream_fails_its_line(field: str, value: object, named: str) -> None:
    given = replace(report(), stream=replace(STREAM, **{field: value}))
    assert violated(given) == {"TCP stream"}
    assert any(named in item for item in lines(given)["TCP stream"].detail)


def test_stream_without_bytes_is_not_run() -> None:
    given = replace(report(), stream=replace(STREAM, to_guest_sent=0, to_guest_received=0))
    assert lines(given)["TCP stream"].outcome is Outcome.NOT_RUN


def test_reception_knows_what_came_twice_late_or_never() -> None:
    reception = Reception()
    for time_ns, sequence in enumerate((0, 2, 1, 2, 2, 5)):
        reception.accept(sequence, time_ns)
    assert reception.duplicated == {2: 2}
    assert reception.overtaken == {1: 2}
    assert reception.missing(7) == [3, 4, 6]
