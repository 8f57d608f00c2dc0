# SPDX-License-Identifier: Apache-2.0
"""The lines of a round's verdict, from observations made up here."""

from __future__ import annotations

from dataclasses import replace

import pytest

from vdpa_net.lab.migrate.arrival import Arrival
from vdpa_net.lab.migrate.observe import QueueObservations, Round, wire_values
from vdpa_net.lab.migrate.ring_memory import GuestProgress
from vdpa_net.lab.migrate.rings_at_stop import RingsAtStop
from vdpa_net.lab.migrate.run import condensed
from vdpa_net.migration.checks import AuditFindings
from vdpa_net.migration.verdict import Line, Outcome

WENT_ON = GuestProgress(ring_size=256, posted=300, completed=280)
GOOD_QUEUE = QueueObservations(
    queue=1,
    used_in_ram=1000,
    register_after_stop=1000 | 1000 << 16,
    wire_get=1000,
    wire_set=1000,
    register_before_enable=1000 | 1000 << 16,
    guest=WENT_ON,
)


def test_agreeing_observations_pass() -> None:
    assert GOOD_QUEUE.line().outcome is Outcome.PASS


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("register_after_stop", 1003 | 1000 << 16),
        ("register_after_stop", 1000 | 1003 << 16),
        ("wire_get", 1003),
        ("wire_set", 999),
        ("register_before_enable", 1000 | 1001 << 16),
        ("guest", GuestProgress(ring_size=256, posted=3, completed=0)),
        ("guest", GuestProgress(ring_size=256, posted=300, completed=301)),
    ],
)
def test_each_single_disagreement_fails(field: str, value: object) -> None:
    line = replace(GOOD_QUEUE, **{field: value}).line()
    assert line.outcome is Outcome.FAIL
    assert line.detail


@pytest.mark.parametrize(
    "field", ["register_after_stop", "wire_get", "wire_set", "register_before_enable", "guest"]
)
def test_each_missing_observation_is_not_run(field: str) -> None:
    assert replace(GOOD_QUEUE, **{field: None}).line().outcome is Outcome.NOT_RUN


def full_round() -> Round:
    return Round(
        number=1,
        compares_ram=True,
        source_name="A",
        differing=[],
        total_pages=10,
        queues=[GOOD_QUEUE],
        audit=AuditFindings({1, 2}, [], 2),
        pages_after_first_pass=5,
        rings=RingsAtStop({"rx completed": 3}, {"rx posted": 0}),
        arrival=Arrival("completed", "completed"),
        traffic=[Line("traffic", Outcome.PASS, "", "")],
    )


def outcomes(item: Round) -> dict[str, Outcome]:
    return {line.name.removeprefix("round 1: "): line.outcome for line in item.lines(minimum_pages=5)}


def test_a_sound_round_passes_in_every_line() -> None:
    assert set(outcomes(full_round()).values()) == {Outcome.PASS}


@pytest.mark.parametrize(
    ("field", "value", "name", "outcome"),
    [
        ("differing", [3], "guest RAM", Outcome.FAIL),
        ("differing", None, "guest RAM", Outcome.NOT_RUN),
        ("queues", [], "ring state", Outcome.NOT_RUN),
        ("audit", AuditFindings({1, 2}, [(1, 0)], 2), "dirty audit", Outcome.FAIL),
        ("audit", None, "dirty audit", Outcome.NOT_RUN),
        ("pages_after_first_pass", 4, "load", Outcome.NOT_RUN),
        ("rings", RingsAtStop({"rx completed": 0}), "load", Outcome.NOT_RUN),
        ("traffic", [], "traffic", Outcome.NOT_RUN),
        ("violations", ["side A: x"], "violations", Outcome.FAIL),
    ],
)
def test_each_observation_decides_its_own_line(
    field: str, value: object, name: str, outcome: Outcome
) -> None:
    wrong = outcomes(replace(full_round(), **{field: value}))
    assert wrong[name] is outcome
    assert {key for key, value in wrong.items() if value is not Outcome.PASS} == {name}


@pytest.mark.parametrize(
    "arrival",
    [Arrival("completed", "failed", ("VQ 1 is wrong",)), Arrival("failed", "failed", ("VQ 1 is wrong",))],
)
def test_a_guest_that_did_not_arrive_fails_that_line_and_nothing_else(arrival: Arrival) -> None:
    queue = replace(
        GOOD_QUEUE, register_after_stop=1003 | 1000 << 16, register_before_enable=None, guest=None
    )
    item = replace(full_round(), arrival=arrival, queues=[queue], traffic=[])
    assert outcomes(item) == {"migration": Outcome.FAIL, "everything else": Outcome.NOT_RUN}
    line = item.lines(5)[0]
    assert line.detail[0] == "VQ 1 is wrong"
    assert any("ring state vq1: LM_RING_STATE after the stop" in text for text in line.detail)
    assert not any("observed" in text for text in line.detail)


def test_a_guest_that_stands_still_fails_the_traffic_as_a_whole() -> None:
    item = replace(full_round(), traffic=[], standstill="no datagram")
    assert outcomes(item)["traffic"] is Outcome.FAIL
    assert not item.goes_on
    stuck = replace(GOOD_QUEUE, guest=GuestProgress(ring_size=256, posted=3, completed=0))
    assert not replace(full_round(), queues=[stuck]).goes_on
    assert full_round().goes_on


def test_the_last_message_of_a_queue_counts() -> None:
    log = [
        {"message": "SET_VRING_BASE", "payload": {"index": 0, "num": 1}},
        {"message": "SET_VRING_BASE", "payload": {"index": 0, "num": 2}},
        {"message": "GET_VRING_BASE", "payload": {"index": 0, "num": 3}},
    ]
    assert wire_values(log, "SET_VRING_BASE") == {0: 2}


def test_claims_that_hold_in_every_round_become_one_line_and_others_stay() -> None:
    good = [Line(f"round {number}: guest RAM", Outcome.PASS, "0", "0 pages differ") for number in (1, 2, 3)]
    mixed = [
        Line("round 1: dirty audit", Outcome.PASS, "0", "0 pages unmarked"),
        Line("round 2: dirty audit", Outcome.FAIL, "1", "0 pages unmarked", ("page 0x1",)),
    ]
    total = Line("rounds", Outcome.PASS, "3 of 3", "3 of 3")
    shown = condensed([*good, *mixed, total])
    assert [line.name for line in shown] == [
        "guest RAM",
        "round 1: dirty audit",
        "round 2: dirty audit",
        "rounds",
    ]
    assert shown[0].measured == "holds in 3 rounds"
    assert shown[2].detail == ("page 0x1",)
