# SPDX-License-Identifier: Apache-2.0
"""What the verdict says of a migration that was broken off."""

from __future__ import annotations

import pytest

from vdpa_net.lab.migrate.cancel import BrokenOff
from vdpa_net.migration.verdict import Outcome

WHAT = "l2-dst killed"
ENDINGS = ("failed", "cancelled")


def test_a_source_that_runs_and_logs_no_more_has_gone_on() -> None:
    line = BrokenOff(WHAT, ENDINGS, "failed", "running", False).line()
    assert (line.outcome, line.detail) == (Outcome.PASS, ())
    assert line.measured == "the migration failed, the source is running, the device logs no more"


@pytest.mark.parametrize("control", [0, 1])
def test_a_device_that_logs_on_fails_where_the_driver_stops_logs(control: int) -> None:
    line = BrokenOff(WHAT, ENDINGS, "failed", "running", True, control).line()
    assert line.outcome is Outcome.FAIL
    assert line.detail == (f"the source's device still logs (LM_LOGGING_CTRL is {control})",)


def test_a_driver_that_stops_no_log_is_told_of_and_its_device_goes_on_as_told() -> None:
    line = BrokenOff(WHAT, ENDINGS, "failed", "running", True, 1, driver_stops_log=False).line()
    assert (line.outcome, line.detail) == (Outcome.PASS, ())
    assert "the device logs on: its driver has left LM_LOGGING_CTRL at 1" in line.measured


def test_a_device_that_logs_without_being_told_fails_with_any_driver() -> None:
    line = BrokenOff(WHAT, ENDINGS, "failed", "running", True, 0, driver_stops_log=False).line()
    assert line.outcome is Outcome.FAIL


def test_a_source_that_does_not_run_and_a_wrong_ending_fail() -> None:
    line = BrokenOff(WHAT, ENDINGS, "completed", "paused", None).line()
    assert line.outcome is Outcome.FAIL
    assert line.detail == (
        "the migration completed, expected failed or cancelled",
        "the source's machine is paused, expected running",
    )
