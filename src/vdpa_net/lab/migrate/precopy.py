# SPDX-License-Identifier: Apache-2.0
"""Pre-copy that lasts as long as the lab wants: the switch-over is the lab's decision, not chance's.

A round is worth something if the device writes pages that QEMU has sent already: these are the ones that only
the dirty log can save. There are two ways to wait for that:

- many passes: no downtime is allowed (downtime-limit 0) and the passes behind the first one crawl, so the
  migration goes round and round. Whatever the device writes then has been sent before.
- one pass: most of the RAM is sent at full speed and the rest at a crawl. What the device writes below the
  point that the pass has reached has been sent before. This is for QEMUs whose TCG loses guest writes when
  dirty bits are cleared more than once (`quirks.loses_writes_after_second_pass`): a second pass would fail
  the comparison of RAM for a reason that is not the device's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from vdpa_net.errors import PeerError
from vdpa_net.lab.migrate.topology import HostedGuest
from vdpa_net.lab.qmp import Event
from vdpa_net.migration.checks import PAGE_BYTES

PHASE_SECONDS = 120
LOAD_SECONDS = 20
SAMPLE_SECONDS = 0.02
FIRST_PASS = {"max-bandwidth": 96 << 20, "downtime-limit": 0}
# The end of the first pass is slow enough to be noticed: later passes at full speed take a millisecond.
END_OF_FIRST_PASS = {"max-bandwidth": 8 << 20}
# Less than what the traffic dirties, more than nothing: passes end, and never find nothing to send.
LATER_PASSES = {"max-bandwidth": 1 << 20}
# Pages that hold nothing but zeros cost a few bytes: the rest of the RAM has to last for seconds.
REST_OF_FIRST_PASS = {"max-bandwidth": 64 << 10}
SENT_SHARE = 0.75
FULL_SPEED = {"max-bandwidth": 4 << 30}
DOWNTIME = {"downtime-limit": 300}


def is_final(event: Event) -> bool:
    """Whether a MIGRATION event is the last one."""
    return event.name == "MIGRATION" and event.data["status"] in ("completed", "failed", "cancelled")


@dataclass
class Load:
    """What was achieved: `pages` that the device wrote after QEMU had sent them, below page `sent_pages`."""

    pages: int = 0
    sent_pages: int | None = None
    problem: str = ""


class Precopy:
    """Holds one migration in pre-copy until the device has rewritten `wanted_pages`.

    `start` is the position in the source's events from which the migration is looked at.
    """

    def __init__(
        self,
        source: HostedGuest,
        wanted_pages: int,
        *,
        one_pass: bool,
        say: Callable[[str, float | None], None],
    ) -> None:
        self._source = source
        self._machine = source.machine
        self._wanted = wanted_pages
        self._one_pass = one_pass
        self._say = say
        self._start = self._machine.session.position

    def prepare(self) -> None:
        """Before `migrate`: the limits."""
        self._machine.qmp("migrate-set-parameters", FIRST_PASS)

    def hold(self) -> Load:
        """Return when the device has rewritten enough, or can't any more; the migration is held on."""
        load = Load()
        self._say("first pass", None)
        if self._one_pass:
            load.sent_pages = self._slow_down(REST_OF_FIRST_PASS)
        else:
            self._slow_down(END_OF_FIRST_PASS)
            # Pass 2 begins when the first one is complete.
            self._machine.wait_event(
                "MIGRATION_PASS",
                PHASE_SECONDS,
                start=self._start,
                where=lambda event: event.data["pass"] >= 2,
            )
            self._machine.qmp("migrate-set-parameters", LATER_PASSES)
        try:
            self._wait_for_load(load)
        except PeerError as error:
            load.problem = str(error)
        return load

    def release(self) -> Event:
        """Let it switch over; the event that ends the migration."""
        self._say("switch-over", None)
        # With downtime allowed QEMU would look for dirty pages before the end of the only pass.
        limits = FULL_SPEED if self._one_pass else FULL_SPEED | DOWNTIME
        self._machine.qmp("migrate-set-parameters", limits)
        return self._machine.wait_event("MIGRATION", PHASE_SECONDS, start=self._start, where=is_final)

    def _slow_down(self, limits: Mapping[str, int]) -> int:
        """Set these limits once the pass has sent most of the RAM; returns how many pages it has sent."""
        total = self._source.ram.size_bytes
        deadline = time.monotonic() + PHASE_SECONDS
        while time.monotonic() < deadline and not self._has_ended():
            ram = self._machine.qmp("query-migrate").get("ram", {})
            sent = total - min(total, int(ram.get("remaining", total)))
            if sent >= SENT_SHARE * total:
                self._machine.qmp("migrate-set-parameters", limits)
                return sent // PAGE_BYTES
            # QEMU announces passes, not how far one has come.
            time.sleep(SAMPLE_SECONDS)
        return 0

    def _wait_for_load(self, load: Load) -> None:
        device = self._source.side.device
        device("audit_end_interval", anew=True)
        deadline = time.monotonic() + LOAD_SECONDS
        while time.monotonic() < deadline and not self._has_ended():
            load.pages = int(device("audit_end_interval", below_page=load.sent_pages))
            share = min(1.0, load.pages / self._wanted)
            self._say(f"pre-copy, the device wrote {load.pages} of {self._wanted} pages anew", share)
            if load.pages >= self._wanted:
                return
            # The number of written pages is a sample, nobody announces it.
            time.sleep(SAMPLE_SECONDS)

    def _has_ended(self) -> bool:
        return any(is_final(event) for event in self._machine.session.events(self._start))
