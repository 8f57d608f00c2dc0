# SPDX-License-Identifier: Apache-2.0
"""The verdict and the claims it is made of."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from vdpa_net.migration.checks import (
    DETAIL_LIMIT,
    AuditInterval,
    TrafficTally,
    check_audit,
    check_audit_intervals,
    check_ram,
    check_ring_state,
    check_round_counts,
    check_traffic,
    check_violations,
    differing_pages,
    filled_pages,
)
from vdpa_net.migration.verdict import Line, Outcome, Verdict

PAGE = 4096


def line(outcome: Outcome, name: str = "a line", detail: tuple[str, ...] = ()) -> Line:
    return Line(name, outcome, "measured", "expected", detail)


@pytest.mark.parametrize(
    ("outcomes", "expected", "code"),
    [
        ([], Outcome.NOT_RUN, 3),
        ([Outcome.PASS], Outcome.PASS, 0),
        ([Outcome.PASS, Outcome.NOT_RUN], Outcome.NOT_RUN, 3),
        ([Outcome.NOT_RUN, Outcome.FAIL, Outcome.PASS], Outcome.FAIL, 1),
    ],
)
def test_verdict_passes_only_when_every_line_was_run_and_holds(
    outcomes: list[Outcome], expected: Outcome, code: int
) -> None:
    verdict = Verdict([line(outcome) for outcome in outcomes])
    assert (verdict.outcome, verdict.exit_code) == (expected, code)


def test_verdict_ends_with_its_outcome_and_names_what_is_violated() -> None:
    out = io.StringIO()
    verdict = Verdict([line(Outcome.PASS), line(Outcome.FAIL, "guest RAM", ("page 0x12 [odd]",))])
    verdict.render(Console(file=out, width=100))
    text = out.getvalue()
    assert text.rstrip().endswith("verdict: FAIL")
    assert "guest RAM: page 0x12 [odd]" in text


def test_verdict_survives_json() -> None:
    verdict = Verdict([line(Outcome.NOT_RUN)], {"seed": 7})
    loaded = json.loads(json.dumps(verdict.to_json()))
    assert loaded["verdict"] == "NOT RUN"
    assert loaded["context"] == {"seed": 7}
    assert loaded["lines"][0]["measured"] == "measured"


def test_filled_pages_are_those_with_any_byte_that_is_not_zero() -> None:
    memory = bytearray(100 * 4096)
    assert filled_pages(memory) == 0
    for page in (3, 64, 99):
        memory[page * 4096 + 4095] = 1
    assert filled_pages(memoryview(memory)) == 3


def test_differing_pages_are_named_by_number() -> None:
    left, right = bytearray(100 * PAGE), bytearray(100 * PAGE)
    right[3 * PAGE + 5] = right[64 * PAGE] = right[100 * PAGE - 1] = 1
    assert differing_pages(left, memoryview(right)) == [3, 64, 99]
    assert differing_pages(left, memoryview(right), first_page=16) == [19, 80, 115]
    with pytest.raises(ValueError, match="can't compare"):
        differing_pages(left, right[1:])


def test_ram_line_names_each_page_and_counts_beyond_a_limit() -> None:
    assert check_ram([], 10).outcome is Outcome.PASS
    assert check_ram([], 0).outcome is Outcome.NOT_RUN
    failed = check_ram(range(DETAIL_LIMIT + 3), 100)
    assert failed.outcome is Outcome.FAIL
    assert "page 0x1 (guest physical 0x1000)" in failed.detail
    assert failed.detail[-1] == "... and 3 more"


def test_ring_state_fails_on_one_observation_that_differs() -> None:
    assert check_ring_state(0, {"a": 5, "b": 5}, 5).outcome is Outcome.PASS
    failed = check_ring_state(1, {"a": 5, "GET_VRING_BASE": 8}, 5)
    assert (failed.name, failed.outcome) == ("ring state vq1", Outcome.FAIL)
    assert failed.detail == ("GET_VRING_BASE is 8, used->idx in RAM is 5",)
    assert check_ring_state(0, {"a": 5, "b": None}, 5).outcome is Outcome.NOT_RUN
    assert check_ring_state(0, {"a": 6, "b": None}, 5).outcome is Outcome.FAIL
    assert check_ring_state(0, {}, 5).outcome is Outcome.NOT_RUN


def test_audit_allows_over_marking_and_no_under_marking() -> None:
    assert check_audit({1, 2}, {1, 2, 3}).outcome is Outcome.PASS
    failed = check_audit({1, 2}, {1})
    assert failed.outcome is Outcome.FAIL
    assert failed.detail == ("page 0x2 written in interval 0, not marked",)
    assert check_audit(set(), {1}).outcome is Outcome.NOT_RUN


def test_audit_by_interval_does_not_accept_a_mark_of_another_interval() -> None:
    intervals = [AuditInterval({7}, {7}), AuditInterval({7}, set())]
    failed = check_audit_intervals(intervals)
    assert failed.outcome is Outcome.FAIL
    assert failed.detail == ("page 0x7 written in interval 1, not marked",)


@pytest.mark.parametrize(
    ("received", "named"),
    [
        ([0, 1, 3], "seq 2 lost"),
        ([0, 1, 2, 2, 3], "seq 2 duplicate"),
        ([0, 2, 1, 3], "seq 1 reordered"),
        ([0, 1, 2, 3, 9], "seq 9 unknown"),
    ],
)
def test_traffic_line_names_the_frame_and_what_became_of_it(received: list[int], named: str) -> None:
    failed = check_traffic("frames", TrafficTally(range(4), received))
    assert failed.outcome is Outcome.FAIL
    assert failed.detail == (named,)


def test_traffic_may_lose_only_what_was_sent_in_the_gap() -> None:
    tally = TrafficTally(range(6), [0, 1, 4, 5], may_be_lost={2, 3})
    assert check_traffic("frames", tally).outcome is Outcome.PASS
    assert tally.lost_in_gap() == [2, 3]
    assert check_traffic("frames", TrafficTally(range(6), [0, 4, 5], may_be_lost={2, 3})).detail == (
        "seq 1 lost",
    )


def test_corrupted_traffic_fails_and_no_traffic_is_not_run() -> None:
    assert check_traffic("frames", TrafficTally([0], [0], ["frame"])).outcome is Outcome.FAIL
    assert check_traffic("frames", TrafficTally()).outcome is Outcome.NOT_RUN


def test_round_without_load_is_not_run() -> None:
    assert check_round_counts(64, 64, {"vq0": 3, "vq1": 1}).outcome is Outcome.PASS
    assert check_round_counts(63, 64, {"vq0": 3}).outcome is Outcome.NOT_RUN
    assert check_round_counts(64, 64, {"vq0": 3, "vq1": 0}).outcome is Outcome.NOT_RUN
    assert check_round_counts(64, 64, {}).outcome is Outcome.NOT_RUN


def test_what_is_told_beside_the_counts_of_a_round_decides_nothing() -> None:
    line = check_round_counts(64, 64, {"rx done": 3}, {"rx posted": 0})
    assert line.outcome is Outcome.PASS
    assert "rx posted: 0" in line.measured
    assert check_round_counts(64, 64, {}, {"rx posted": 3}).outcome is Outcome.NOT_RUN


def test_any_violation_fails() -> None:
    assert check_violations([]).outcome is Outcome.PASS
    assert check_violations(["log_overflow"]).detail == ("log_overflow",)
