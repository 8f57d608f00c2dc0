# SPDX-License-Identifier: Apache-2.0
"""Each fault makes exactly the lines of the log test fail that docs/faults.md names, and fires."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from integration.test_log_test import migrate, report
from vdpa_net.migration.faults import FAULTS
from vdpa_net.migration.verdict import Outcome
from vdpa_net.testing.front_end import F_EVENT_IDX, WANTED_FEATURES

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "faults.md"
MARKS = {"guest RAM", "dirty audit", "dirty audit by the kernel"}
RING = "ring state vq1"
SENT, RECEIVED = "frames from the guest", "frames to the guest"

EXPECTED = {
    "drop-dirty-mark=0.5": MARKS,
    "skip-used-ring-mark": MARKS,
    "log-bit-order": MARKS,
    "log-end=-1page": MARKS,
    "ring-state=vq1:-1": {RING, SENT},
    "ring-state=vq1:-30": {RING, SENT, RECEIVED},
    "late-ring-state=60000": {"ring state vq0", RING, SENT, RECEIVED},
    "duplicate-used": {RING, SENT},
    "lost-kick": {SENT},
    "lost-irq": {RECEIVED, "announcement"},
    "no-announce": {"announcement"},
}
"""Lines that fail with split rings."""

MAY_FAIL = {"late-ring-state=60000": {"announcement"}}
"""Lines that fail as well where the guest reads num_buffers from a buffer that was completed twice: of the
10,000s of buffers that it then waits for each frame behind is one, the announcement included."""

EXPECTED_PACKED = {
    **{fault: lines for fault, lines in EXPECTED.items() if not fault.startswith("ring-state")},
    "late-ring-state=60000": {"ring state vq0", RING, SENT, "announcement"},
}

MAY_FAIL_PACKED = {"late-ring-state=60000": {"violations"}}
"""The ring itself says that the place to go on at was used before, unless it lies within a chain: the device
writes one used descriptor for a chain, over its first, and the others look as available as they were."""


def fired(verdict_context: dict[str, object]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for where in ("faults_fired", "faults_fired_at_destination"):
        counts |= verdict_context[where]  # type: ignore[arg-type]
    return counts


@pytest.mark.parametrize("fault", EXPECTED)
def test_fault_fires_and_fails_its_lines(tmp_path: Path, fault: str) -> None:
    verdict = migrate(tmp_path, faults=(fault,))
    failed = set(verdict.failed())
    assert EXPECTED[fault] <= failed <= EXPECTED[fault] | MAY_FAIL.get(fault, set()), report(verdict)
    assert fired(verdict.context)[fault] >= 1
    assert verdict.exit_code == 1


@pytest.mark.exhaustive
@pytest.mark.parametrize("fault", EXPECTED_PACKED)
def test_fault_fires_and_fails_its_lines_on_packed_rings(tmp_path: Path, fault: str) -> None:
    verdict = migrate(tmp_path, faults=(fault,), packed=True)
    may_fail = MAY_FAIL_PACKED.get(fault, set())
    assert EXPECTED_PACKED[fault] <= set(verdict.failed()) <= EXPECTED_PACKED[fault] | may_fail, report(
        verdict
    )
    assert fired(verdict.context)[fault] >= 1


def test_transmit_index_ahead_of_the_ring_fails_its_line(tmp_path: Path) -> None:
    """The destination says so and goes on where the ring stands, unless the driver has caught up."""
    verdict = migrate(tmp_path, faults=("ring-state=vq1:+3",))
    assert set(verdict.failed()) in ({RING, "violations"}, {RING, SENT}), report(verdict)


@pytest.mark.parametrize("delta", ["+1", pytest.param("-2", marks=pytest.mark.exhaustive)])
def test_wrong_receive_ring_state_fails_its_line(tmp_path: Path, delta: str) -> None:
    verdict = migrate(tmp_path, faults=(f"ring-state=vq0:{delta}",))
    assert "ring state vq0" in verdict.failed(), report(verdict)
    assert not (MARKS | {RING}) & set(verdict.failed()), report(verdict)


def test_a_few_dropped_marks_fail_the_audits(tmp_path: Path) -> None:
    verdict = migrate(tmp_path, faults=("drop-dirty-mark=0.1",))
    assert MARKS - {"guest RAM"} <= set(verdict.failed()) <= MARKS, report(verdict)


def test_a_fault_of_one_queue_pair_fails_the_lines_of_that_pair(tmp_path: Path) -> None:
    verdict = migrate(tmp_path, faults=("duplicate-used=vq3",), queue_pairs=2)
    assert set(verdict.failed()) == {"ring state vq3", "frames from the guest, pair 1"}, report(verdict)


def test_driver_behind_a_vfio_user_socket_sees_a_fault_as_well(tmp_path: Path) -> None:
    verdict = migrate(tmp_path, faults=("drop-dirty-mark=0.5",), over_vfio_user=True)
    assert set(verdict.failed()) == MARKS, report(verdict)


def test_every_fault_is_expected_to_fail_something() -> None:
    assert {fault.partition("=")[0] for fault in EXPECTED} == {fault.name for fault in FAULTS}


# --- harmless ones ------------------------------------------------------------------------------


def test_a_lost_kick_is_harmless_without_event_idx(tmp_path: Path) -> None:
    """The driver kicks for each buffer then, and the second kick is heard."""
    verdict = migrate(tmp_path, faults=("lost-kick",), features=WANTED_FEATURES & ~F_EVENT_IDX)
    assert verdict.outcome is Outcome.PASS, report(verdict)
    assert fired(verdict.context)["lost-kick"] >= 1


def test_lost_interrupts_are_harmless_without_event_idx(tmp_path: Path) -> None:
    """The device interrupts for each batch then, and the third interrupt arrives."""
    verdict = migrate(tmp_path, faults=("lost-irq",), features=WANTED_FEATURES & ~F_EVENT_IDX)
    assert verdict.outcome is Outcome.PASS, report(verdict)
    assert fired(verdict.context)["lost-irq"] >= 2


def test_a_short_delay_is_harmless_to_a_driver_that_looks_later(tmp_path: Path) -> None:
    """One millisecond is over, on the whole, when the driver has stopped both queues and reads the state."""
    verdict = migrate(tmp_path, faults=("late-ring-state=1",))
    late = fired(verdict.context)["late-ring-state=1"]
    assert bool(verdict.failed()) == bool(late), report(verdict)


# --- the document -------------------------------------------------------------------------------


def test_the_document_names_the_lines_that_fail() -> None:
    section = DOCUMENT.read_text().partition("## What has to fail")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `([^`]+)` \| (.+?) \|$", section, re.M)
    documented = {fault: set(re.findall(r"`([^`]+)`", cell)) for fault, cell in rows}
    assert documented == EXPECTED
