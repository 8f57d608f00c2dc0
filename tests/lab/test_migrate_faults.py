# SPDX-License-Identifier: Apache-2.0
"""Each fault makes exactly the lines of `vdpa-net migrate` fail that docs/faults.md names, and fires.

Without a fault the same seed passes: `test_migrate` holds it to that.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from lab.migrate_command import RUN_SECONDS, failed, migrate
from vdpa_net.migration.faults import FAULTS

pytestmark = [pytest.mark.vm, pytest.mark.timeout(RUN_SECONDS + 100)]
AUDIT, RAM, TRAFFIC, ARRIVAL = {"dirty audit"}, {"guest RAM"}, {"traffic"}, {"migration"}

EXPECTED: dict[str, tuple[set[str], set[str]]] = {
    "drop-dirty-mark=0.5": (AUDIT, RAM),
    "skip-used-ring-mark": (AUDIT, set()),
    "log-bit-order": (AUDIT, RAM),
    "log-end=-1page": (AUDIT, RAM),
    "ring-state=vq0:+3": ({"ring state vq0"}, set()),
    "late-ring-state=60000": (ARRIVAL, set()),
    "duplicate-used": (ARRIVAL, set()),
    "lost-kick=vq1:9": ({"ring state vq1"} | TRAFFIC, set()),
    "lost-irq=vq0:9": (TRAFFIC, {"ring state vq0"}),
    "no-announce": ({"announcement"}, set()),
}
"""Lines that have to fail, and lines whose failing is up to the guest: its own writes save most of the pages
that a device did not mark, and how far it comes before an interrupt is lost is chance."""

MORE: dict[str, tuple[str, ...]] = {"log-end=-1page": ("--memory", "1024")}
"""A page of log is 128 MiB of RAM: where that is half of it, a guest can do with the other half."""

IN_EVERY_RUN = ("drop-dirty-mark=0.5", "ring-state=vq0:+3", "no-announce")


def fired(verdict: dict[str, object], fault: str) -> int:
    context = verdict["context"]
    assert isinstance(context, dict)
    return int(context["rounds"][0]["faults_fired"][fault])


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(fault, marks=() if fault in IN_EVERY_RUN else pytest.mark.exhaustive)
        for fault in EXPECTED
    ],
)
def test_fault_fires_and_fails_its_lines(tmp_path: Path, fault: str) -> None:
    words = ("--rounds", "1", "--qemu", "image", "--report", str(tmp_path / "report"))
    code, verdict, printed = migrate(tmp_path, *words, "--fault", fault, *MORE.get(fault, ()))
    must, may = EXPECTED[fault]
    assert code == 1, printed
    assert "verdict: FAIL" in printed
    assert "FAIL" in (tmp_path / "report" / "index.html").read_text()
    assert must <= failed(verdict) <= must | may, printed
    assert fired(verdict, fault) >= 1
    for line in verdict["lines"]:
        assert line["outcome"] != "FAIL" or line["detail"], line


@pytest.mark.exhaustive
def test_marks_that_are_dropped_fail_the_audit_with_an_old_qemu(tmp_path: Path) -> None:
    words = ("--rounds", "1", "--qemu", "host", "--fault", "drop-dirty-mark=0.5")
    code, verdict, printed = migrate(tmp_path, *words)
    assert code == 1, printed
    assert AUDIT <= failed(verdict) <= AUDIT | RAM, printed


@pytest.mark.exhaustive
def test_marks_that_are_dropped_behind_an_iommu_fail_the_audit(tmp_path: Path) -> None:
    words = ("--rounds", "1", "--qemu", "image", "--iommu", "--fault", "drop-dirty-mark=0.5")
    code, verdict, printed = migrate(tmp_path, *words)
    assert code == 1, printed
    assert AUDIT <= failed(verdict) <= AUDIT | RAM, printed


@pytest.mark.exhaustive
def test_a_single_lost_kick_is_harmless_with_qemu(tmp_path: Path) -> None:
    """QEMU kicks each queue itself when it starts it: that one is lost, the guest's first one is heard."""
    code, verdict, printed = migrate(tmp_path, "--rounds", "1", "--qemu", "image", "--fault", "lost-kick")
    assert code == 0, printed
    assert fired(verdict, "lost-kick") >= 1


def test_every_fault_is_expected_to_fail_something() -> None:
    assert {fault.partition("=")[0] for fault in EXPECTED} == {fault.name for fault in FAULTS}
