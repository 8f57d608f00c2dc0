# SPDX-License-Identifier: Apache-2.0
"""Who kept the dirty log: the device in its registers, or DPDK's driver in their place. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vdpa_net.migration.verdict import Line, Outcome


def log_line(figures: Mapping[str, Any], *, device_logs: bool, at: int | None = None) -> Line:
    """The line on a round's log, of `LogWatch.figures`; `at` is the IOVA that the driver is known to use.

    With DPDK's `sw-live-migration=1` the device has to stay out of it altogether.
    """
    registers, started, marked = figures["registers"], figures["started"], figures["pages_marked"]
    if not registers:
        why = "the migration ended before it could be held"
        return Line("log", Outcome.NOT_RUN, why, "looked at in pre-copy", (why,))
    control = registers["LM_LOGGING_CTRL"]
    base = registers["LM_BASE_ADDR_HIGH"] << 32 | registers["LM_BASE_ADDR_LOW"]
    detail: list[str] = []
    if device_logs:
        if control == 0:
            detail.append("LM_LOGGING_CTRL is 0 before the release, expected it to be on")
        places = [base, *(entry["base"] for entry in started)]
        if at is not None:
            detail += [f"LM_BASE_ADDR {place:#x}, expected {at:#x}" for place in places if place != at]
        if not marked:
            detail.append("the device marked no page")
        expected = f"the device logs{'' if at is None else f' at {at:#x}'}, and marks pages"
    else:
        if control or started:
            detail.append(f"LM_LOGGING_CTRL is {control}, logging was started {len(started)} times")
        if marked:
            detail.append(f"the device marked {marked} pages")
        expected = "LM_LOGGING_CTRL 0 all the while: the driver logs"
    measured = f"LM_LOGGING_CTRL {control}, LM_BASE_ADDR {base:#x}, {marked} pages marked by the device"
    return Line("log", Outcome.FAIL if detail else Outcome.PASS, measured, expected, tuple(detail))
