# SPDX-License-Identifier: Apache-2.0
"""Pre-copy that lasts as long as the lab wants: the switch-over is the lab's decision, not chance's.

A round is worth something if the device writes pages that QEMU has sent already: these are the ones that only
the dirty log can save. There are three ways to wait for that:

- many passes: no downtime is allowed (downtime-limit 0) and the passes behind the first one crawl, so the
  migration goes round and round. Whatever the device writes then has been sent before.
- one pass: most of the RAM is sent at full speed and the rest at a crawl. What the device writes below the
  point that the pass has reached has been sent before. Where the guest's receive buffers lie is the guest's
  decision: if none lie below that point, it moves on. This is for QEMUs whose TCG loses guest writes when
  dirty bits are cleared more than once (`quirks.loses_writes_after_second_pass`): a second pass would fail
  the comparison of RAM for a reason that is not the device's.
- on a wire (`hold`) that stops within the first pass, where nearly all pages are sent. This is for a guest
  of a guest, which may dirty nothing at all between two passes.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from vdpa_net.errors import LabError, PeerError
from vdpa_net.lab.migrate.hold import Wire
from vdpa_net.lab.migrate.live import LiveFigures
from vdpa_net.lab.migrate.pace import FLAT, Pace
from vdpa_net.lab.migrate.topology import HostedGuest
from vdpa_net.lab.qmp import Event
from vdpa_net.lab.traffic.endpoint import TrafficEndpoint
from vdpa_net.migration.checks import PAGE_BYTES

WATCH_SECONDS = 0.1
MIB = 1 << 20
# Pages that hold nothing but zeros cost a few bytes: the rest of the RAM has to last for a minute.
CRAWL_BYTES_PER_S = 8 << 10
FULL_SPEED_BYTES_PER_S = 4096 * MIB
SENT_SHARE = 0.75
LAST_SHARE = 0.992
STEP_SHARE = 0.03
# A hold without any buffer behind it moves on soon, one with too few of them later.
EMPTY_STEP_SECONDS = 0.5
STEP_SECONDS = 5.0
# More than what the sockets on both sides of a wire hold: so much of the RAM QEMU has still to send.
UNSENT_PAGES = 1024


def is_final(event: Event) -> bool:
    """Whether a MIGRATION event is the last one."""
    return event.name == "MIGRATION" and event.data["status"] in ("completed", "failed", "cancelled")


@dataclass(frozen=True)
class PrecopyOptions:
    """How to hold. `bandwidth_bytes_per_s` limits every phase; `downtime_limit_ms` is QEMU's, at the end.

    Where the driver marks pages in place of the device (`device_logs` is false), the receive buffers count
    that the device has filled: each is a page or more. `audits_by_file`: the device's audit numbers pages by
    the file behind them (`device.audit_pages`), as a page has now one IOVA and then another.
    """

    wanted_pages: int
    one_pass: bool
    downtime_limit_ms: int = 300
    bandwidth_bytes_per_s: int = FULL_SPEED_BYTES_PER_S
    pace: Pace = FLAT
    device_logs: bool = True
    audits_by_file: bool = False

    def limits(self, bytes_per_s: int, downtime_ms: int | None = None) -> dict[str, int]:
        """QEMU's migration parameters."""
        limits = {"max-bandwidth": min(bytes_per_s, self.bandwidth_bytes_per_s)}
        return limits if downtime_ms is None else {**limits, "downtime-limit": downtime_ms}


@dataclass
class Load:
    """What was achieved: `pages` that the device wrote after QEMU had sent them, below page `sent_pages`."""

    pages: int = 0
    sent_pages: int | None = None
    problem: str = ""


@dataclass(frozen=True)
class Sample:
    """QEMU's own account of a migration at an instant (CLOCK_MONOTONIC)."""

    at_ns: int
    transferred_bytes: int
    remaining_bytes: int
    dirty_pages_per_s: int
    passes: int


@dataclass
class Precopy:
    """Holds one migration in pre-copy until the device has rewritten enough pages.

    `endpoint` stands in for the device's own account where there is none (a foreign back end). With a
    `wire` it is that which holds.
    """

    source: HostedGuest
    options: PrecopyOptions
    endpoint: TrafficEndpoint
    say: Callable[[str, float | None], None]
    live: LiveFigures
    samples: list[Sample] = field(default_factory=list)
    wire: Wire | None = None
    _start: int = 0
    _share: float = SENT_SHARE

    def prepare(self) -> None:
        """Before `migrate`: the limits, and the position in the source's events to look from."""
        self._start = self.source.machine.session.position
        self._set(self.options.pace.first_pass_bytes_per_s, 0)
        if self.wire is not None:
            # A page that holds nothing but zeros is a few bytes; the others are more than their content.
            pages = self.source.ram.filled_pages() - UNSENT_PAGES
            self.wire.hold_after(max(0, pages) * PAGE_BYTES)

    def wait_logging(self) -> None:
        """Return when the device logs. Raises LabError, with its violations, if it does not come to that."""
        side = self.source.side
        if not (side.is_watched and self.options.device_logs):
            return
        deadline = time.monotonic() + self.options.pace.logging_s
        while time.monotonic() < deadline and not self.has_ended():
            snapshot = side.device("inspect")
            refused = [kind for kind in snapshot["violation_kinds"] if kind.startswith("log_start")]
            if snapshot["logging"]:
                return
            if refused:
                break
            # Logging is a register of the device: nobody announces it over the control socket.
            time.sleep(self.options.pace.sample_s)
        recent = side.device("inspect")["violations"][-3:]
        raise LabError(f"the source's device does not log although the migration has begun: {recent}")

    def enter(self, load: Load, share: float | None = None) -> None:
        """Come as far as the hold: behind most of the first pass (or this share), or behind all of it."""
        self.say("first pass", None)
        if self.wire is not None:
            load.sent_pages = self._wait_wire(self.wire)
        elif share is not None:
            self._advance(share, CRAWL_BYTES_PER_S)
        elif self.options.one_pass:
            load.sent_pages = self._advance(self._share, CRAWL_BYTES_PER_S)
        else:
            self._advance(self._share, self.options.pace.end_of_first_pass_bytes_per_s)
            self._wait_second_pass()
            self._set(self.options.pace.later_passes_bytes_per_s)

    def wait_for_load(self, load: Load) -> None:
        """Return when the device has rewritten enough, or can't any more; the migration is held on."""
        try:
            if self.source.side.is_watched:
                self._wait_for_pages(load)
            else:
                self._wait_for_packets()
        except PeerError as error:
            load.problem = str(error)

    def release(self, stopped: Callable[[], None]) -> Event:
        """Let it switch over; the event that ends the migration.

        `stopped` is called when the source's machine has stopped, if it comes to that.
        """
        self.say("switch-over", None)
        start = self.source.machine.session.position
        self.let_go()
        event = self._wait(start, lambda event: event.name == "STOP" or is_final(event))
        if event.name == "STOP":
            stopped()
        return self._wait(self._start, is_final)

    def _wait(self, start: int, where: Callable[[Event], bool]) -> Event:
        return self.source.machine.wait_event(None, self.options.pace.phase_s, start=start, where=where)

    def let_go(self) -> None:
        """No more holding: full speed, and downtime is allowed."""
        # With downtime allowed QEMU would look for dirty pages before the end of the only pass.
        downtime_ms = None if self.options.one_pass else self.options.downtime_limit_ms
        self._set(FULL_SPEED_BYTES_PER_S, downtime_ms)
        if self.wire is not None:
            self.wire.go_on()

    def wait_status(self, status: str) -> None:
        """Return when the migration has this status, or is over. Raises LabError in time."""
        self.source.machine.wait_event(
            "MIGRATION",
            self.options.pace.phase_s,
            start=self._start,
            where=lambda event: event.data["status"] == status or is_final(event),
        )

    def wait_final(self) -> Event:
        """The event that ends the migration."""
        machine = self.source.machine
        return machine.wait_event("MIGRATION", self.options.pace.phase_s, start=self._start, where=is_final)

    def passes(self) -> list[tuple[int, int]]:
        """Number of each pass over RAM and when it began (CLOCK_MONOTONIC)."""
        events = self.source.machine.session.events(self._start)
        return [(event.data["pass"], event.seen_ns) for event in events if event.name == "MIGRATION_PASS"]

    def sample(self) -> Mapping[str, int]:
        """Note QEMU's account of now; its part on RAM, empty before there is one."""
        info = self.source.machine.qmp("query-migrate")
        self.live.take(info)
        ram: Mapping[str, int] = info.get("ram", {})
        if ram:
            now_ns = time.monotonic_ns()
            passes = int(ram.get("dirty-sync-count", 0))
            rate = int(ram.get("dirty-pages-rate", 0))
            self.samples.append(Sample(now_ns, int(ram["transferred"]), int(ram["remaining"]), rate, passes))
        return ram

    def has_ended(self) -> bool:
        """Whether the migration is over, however."""
        return any(is_final(event) for event in self.source.machine.session.events(self._start))

    def _wait_wire(self, wire: Wire) -> int:
        """Return how many pages have been sent where the wire holds the first pass."""
        held = wire.wait_held(self.options.pace.phase_s)
        total = self.source.ram.size_bytes
        remaining = int(self._watch().get("remaining", 0))
        if not held or self.has_ended():
            raise LabError(f"the first pass over RAM did not come to its hold: {remaining} bytes remain")
        return (total - min(total, remaining)) // PAGE_BYTES

    def _wait_second_pass(self) -> None:
        # Pass 2 begins when the first one is complete.
        deadline = time.monotonic() + self.options.pace.phase_s
        while not any(number >= 2 for number, _ in self.passes()):
            if self.has_ended() or time.monotonic() >= deadline:
                raise LabError("the first pass over RAM did not come to its end")
            self._glide(int(self._watch().get("remaining", 0)))
            time.sleep(WATCH_SECONDS)

    def _glide(self, remaining_bytes: int) -> None:
        """Become slower with what remains of the first pass: later passes must not run at its speed."""
        pace = self.options.pace
        wanted = int(remaining_bytes / pace.glide_s)
        least, most = pace.later_passes_bytes_per_s, pace.end_of_first_pass_bytes_per_s
        self._set(max(least, min(most, wanted)))

    def _watch(self) -> Mapping[str, int]:
        """Note what QEMU and the device have done so far."""
        if self.source.side.is_watched:
            with contextlib.suppress(PeerError):
                self.source.side.device("audit_end_interval")
        return self.sample()

    def _set(self, bytes_per_s: int, downtime_ms: int | None = None) -> None:
        limits = self.options.limits(bytes_per_s, downtime_ms)
        self.source.machine.qmp("migrate-set-parameters", limits)

    def _advance(self, share: float, then_bytes_per_s: int) -> int:
        """Once the pass has sent this share of the RAM, slow down; returns how many pages it has sent."""
        total = self.source.ram.size_bytes
        deadline = time.monotonic() + self.options.pace.phase_s
        while time.monotonic() < deadline and not self.has_ended():
            sent = total - min(total, int(self._watch().get("remaining", total)))
            if sent >= share * total:
                self._set(then_bytes_per_s)
                return sent // PAGE_BYTES
            # QEMU announces passes, not how far one has come.
            near = sent >= share * total / 2
            time.sleep(self.options.pace.sample_s if near else WATCH_SECONDS)
        return 0

    def _wait_for_pages(self, load: Load) -> None:
        wanted, count = self.options.wanted_pages, self._page_count(load)
        deadline = time.monotonic() + self.options.pace.load_s
        step_at = time.monotonic() + EMPTY_STEP_SECONDS
        while time.monotonic() < deadline and not self.has_ended():
            load.pages = count()
            self.say("pre-copy, waiting for the device to write pages anew", min(1.0, load.pages / wanted))
            self.sample()
            if load.pages >= wanted:
                return
            steps = self.options.one_pass and self.wire is None and self._share < LAST_SHARE
            if steps and time.monotonic() >= step_at:
                load.sent_pages = self._step()
                pause = STEP_SECONDS if load.pages > wanted // 4 else EMPTY_STEP_SECONDS
                step_at = time.monotonic() + pause
            # The number of written pages is a sample, nobody announces it.
            time.sleep(self.options.pace.sample_s)

    def _page_count(self, load: Load) -> Callable[[], int]:
        """How many pages the device writes from now on."""
        device = self.source.side.device
        if not self.options.device_logs:
            return self._filled_buffers()
        device("audit_end_interval", anew=True)
        return lambda: int(device("audit_end_interval", within=self._sent(load)))

    def _sent(self, load: Load) -> list[tuple[int, int]] | None:
        """The pages that have been sent, by the numbers of the device's audit; None: all."""
        if load.sent_pages is None:
            return None
        if self.options.audits_by_file:
            return self.source.ram.file_pages(0, load.sent_pages)
        return [(0, load.sent_pages)]

    def _filled_buffers(self) -> Callable[[], int]:
        def completed() -> list[int]:
            queues = self.source.side.device("inspect")["queues"]
            return [int(queue["used_idx"]) for queue in queues[::2]]

        before = completed()
        # The rings that DPDK's driver logs for are split ones: the index is one of 16 bits.
        return lambda: sum((now - then) & 0xFFFF for now, then in zip(completed(), before, strict=True))

    def _step(self) -> int:
        """Let the only pass go on a little."""
        self._share = min(LAST_SHARE, self._share + STEP_SHARE)
        self._set(self.options.pace.end_of_first_pass_bytes_per_s)
        return self._advance(self._share, CRAWL_BYTES_PER_S)

    def _wait_for_packets(self) -> None:
        self.say("pre-copy, waiting for traffic", None)
        self.sample()
        self.endpoint.wait_received(
            self.endpoint.received + 4 * self.options.wanted_pages, self.options.pace.load_s
        )
