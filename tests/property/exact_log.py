# SPDX-License-Identifier: Apache-2.0
"""Holds a device's dirty log to what the memory management unit saw it write."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from vdpa_net.device.audit import DeviceAudit
from vdpa_net.testing.loopback_guest import LoopbackGuest


@contextmanager
def exact_log(guest: LoopbackGuest) -> Iterator[set[int]]:
    """Log what is done inside, which has to end with a stop; the log must be exact. Gets the marked pages."""
    marked: set[int] = set()
    audit = DeviceAudit(guest.device)
    audit.arm()
    try:
        assert guest.start_logging()
        # What a worker writes between the start of the log and that of the audit, only the log has.
        guest.device.space.barrier()
        early = guest.log.harvest()
        yield marked
        # Nobody waits for the thread that looks at the control queue after its start: it may come this late.
        guest.stop((guest.driver.ctrl,))
        result = audit.result()
    finally:
        audit.close()
    written = set(result["written"])  # type: ignore[call-overload]
    marked |= guest.log.harvest()
    assert result["unmarked"] == []
    assert written - marked - early == set(), "written and not marked"
    assert marked - written == set(), "marked and not written"
