# SPDX-License-Identifier: Apache-2.0
"""One migration of the log test: pre-copy, switch-over, and everything that is observed on the way.

guest CPUs --- rings in its memory ---.        .------ the same rings in the other memory
                                      |  copy  |
front end A -> vhost-user -> the source side   | front end B -> the destination side
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field

from vdpa_net.device.audit import DeviceAudit
from vdpa_net.errors import PeerError, StateError
from vdpa_net.testing.dirty_log import DirtyLog
from vdpa_net.testing.front_end import VhostFrontEnd
from vdpa_net.testing.guest_cpu import TX, Ledger
from vdpa_net.testing.movable_guest import Mark, MovableGuest
from vdpa_net.testing.precopy import PreCopy
from vdpa_net.testing.vhost_side import Side

FRAMES_PER_PASS = 250
PASSES = 6
UNSENT_AT_STOP = 12
PATIENCE_S = 30.0
IDLE_S = 6.0
_IDLE_WHEN_DEAD_S = 0.2
_LOG_OFFSET_BYTES = 3 * 4096
_SECOND_LOG_OFFSET_BYTES = 5 * 4096
_GROWTH_BYTES = 1 << 30


@dataclass
class Observations:
    """What was seen, each value from a place of its own. Ring values are by queue, frames by queue pair."""

    in_flight: dict[str, int] = field(default_factory=dict)
    offered_after_stop: dict[str, int] = field(default_factory=dict)
    used_idx_in_ram: list[int] = field(default_factory=list)
    wire_bases: list[int] = field(default_factory=list)
    register_after_stop: dict[int, tuple[int, int]] = field(default_factory=dict)
    register_before_enable: dict[int, tuple[int, int]] = field(default_factory=dict)
    first_completion: dict[int, int | None] = field(default_factory=dict)
    differing: list[int] = field(default_factory=list)
    sent_in_gap: list[frozenset[int]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    kernel_audit: dict[str, object] | None = None
    kernel_audit_problem: str = ""
    switch_over_ms: float = 0.0


class LogRound:
    """Moves `guest`, which is paused and connected to `source` by `front_end`, to `destination`.

    Afterwards it is paused and connected to the destination by `front_end_after`, None if that one refused.
    """

    def __init__(
        self, guest: MovableGuest, front_end: VhostFrontEnd, source: Side, destination: Side
    ) -> None:
        self.guest, self.source, self.destination = guest, source, destination
        self.front_end = front_end
        self.front_end_after: VhostFrontEnd | None = None
        self.seen = Observations()
        self.began_at: list[Mark] = guest.marks()
        self.moved_at: list[Mark] = []
        self._is_alive = True
        self._stack = ExitStack()

    def run(self) -> None:
        """Migrate once. Raises PeerError where the source does not do as it is told."""
        with self._stack:
            self._set_up()
            self.guest.run(self.front_end)
            self._pre_copy()
            self._stop_source()
            self._compare()
            self._run_on_destination()

    # --- source ---------------------------------------------------------------------------------

    def _set_up(self) -> None:
        guest = self.guest
        # The first log ends with the guest's memory, in the middle of a page of the log; the second is
        # longer, as after memory was hot-plugged, and lies elsewhere in its file.
        self._logs = [
            DirtyLog.for_memory_end(guest.end, _LOG_OFFSET_BYTES),
            DirtyLog.for_memory_end(guest.end + _GROWTH_BYTES, _SECOND_LOG_OFFSET_BYTES),
        ]
        for log in self._logs:
            self._stack.callback(log.close)
        self.copy = PreCopy(guest.memory, guest.other, self._logs[0])
        self._audit: DeviceAudit | None = None
        if self.source.device is not None:
            self._audit = DeviceAudit(self.source.device)
            self._stack.callback(self._audit.close)

    def _pre_copy(self) -> None:
        self._wait_for_frames()
        self.copy.prepare()
        if self._audit is not None:
            self._audit.arm()
        self.front_end.start_logging(self.copy.log)
        self.copy.first_pass()
        for number in range(PASSES):
            self._wait_for_frames()
            if number == PASSES // 2:
                self._switch_log()
            self._next_pass()
        self._wait_for_frames()

    def _wait_for_frames(self) -> None:
        idle_s = IDLE_S if self._is_alive else _IDLE_WHEN_DEAD_S
        self._is_alive = self.guest.wait_for_frames(FRAMES_PER_PASS, PATIENCE_S, idle_s)

    def _switch_log(self) -> None:
        self.front_end.start_logging(self._logs[1])
        self.copy.switch_log(self._logs[1])

    def _next_pass(self) -> None:
        self.copy.next_pass()
        if self._audit is not None:
            with contextlib.suppress(StateError):  # the result says why
                self._audit.end_interval()

    def _stop_source(self) -> None:
        guest, seen = self.guest, self.seen
        guest.pause()
        self._paused_at = time.monotonic()
        guest.leave_unsent(UNSENT_AT_STOP)
        for pair, cpu in enumerate(guest.cpus):
            # Frames complete in the order in which they were sent. Those that the device has already taken
            # when the stop begins lie in the loopback or in receive buffers: the stop has to deliver them.
            taken = len(cpu.ledger.completed) + guest.rings[2 * pair + TX].completed
            seen.sent_in_gap.append(frozenset(cpu.ledger.sent[taken:]))
        self.moved_at = guest.marks()
        seen.wire_bases = self.front_end.stop()
        seen.in_flight = guest.in_flight()
        # A device that polls is done with what it gets before anyone can look. What it gets when it has
        # stopped is to its successor as if it had been slower.
        seen.offered_after_stop = guest.offer_to_idle(UNSENT_AT_STOP)
        self.copy.next_pass()
        seen.used_idx_in_ram = [ring.used_idx for ring in guest.rings]
        seen.register_after_stop = self.source.registers_after_stop()
        self._end_audit()
        self.front_end.close()

    def _end_audit(self) -> None:
        if self._audit is None:
            return
        try:
            self.seen.kernel_audit = self._audit.result()
        except StateError as error:
            self.seen.kernel_audit_problem = str(error)

    # --- destination ----------------------------------------------------------------------------

    def _compare(self) -> None:
        seen, guest = self.seen, self.guest
        seen.differing = self.copy.differing()
        stray = sum(log.stray_bytes() for log in self._logs)
        if stray:
            seen.problems.append(f"log: {stray} bytes around it were written")
        if late := self.copy.marks_after_switch():
            seen.problems.append(f"log: {len(late)} marks went to the log that SET_LOG_BASE had replaced")
        seen.problems += [
            f"log: page {page:#x} is outside of guest memory"
            for page in sorted(self.copy.marks_outside_memory)
        ]
        # The guest goes on in repaired memory, so that each line of the verdict tells of its own subject
        # only: a page that was lost is the RAM line's, not a ring state or a frame that went wrong after it.
        guest.other.load_pages(guest.memory.snapshot(), set(seen.differing))

    def _run_on_destination(self) -> None:
        guest, seen = self.guest, self.seen
        guest.move()
        for queue, index in enumerate(seen.used_idx_in_ram):
            guest.cpus[queue // 2].watch_completion(queue % 2, index)
        after = VhostFrontEnd(
            self.destination.path,
            guest.memory,
            guest.rings,
            features=self.front_end.features,
            manners=self.front_end.manners,
        )
        try:
            self._start_on_destination(after)
        except PeerError as error:
            seen.problems.append(f"destination: {error}")
            after.close()
            return
        self.front_end_after = after
        self._go_on(after)

    def _start_on_destination(self, after: VhostFrontEnd) -> None:
        after.negotiate()
        if missing := self.front_end.features & ~after.features:
            raise PeerError(f"it does not offer {missing:#x}, which the source has negotiated")
        after.start(self.seen.wire_bases)
        self.seen.switch_over_ms = 1000 * (time.monotonic() - self._paused_at)
        self.seen.register_before_enable = self.destination.registers_before_enable()

    def _go_on(self, after: VhostFrontEnd) -> None:
        guest = self.guest
        guest.run(after)
        is_alive = guest.wait_for_frames(FRAMES_PER_PASS, PATIENCE_S, IDLE_S)
        guest.stop_sending()
        for pair, cpu in enumerate(guest.cpus):
            cpu.wait_for(self._all_accounted(pair), PATIENCE_S, IDLE_S if is_alive else _IDLE_WHEN_DEAD_S)
        guest.pause()
        self.seen.first_completion = {
            2 * pair + queue: index
            for pair, cpu in enumerate(guest.cpus)
            for queue, index in cpu.first_completion.items()
        }

    def _all_accounted(self, pair: int) -> Callable[[Ledger], bool]:
        began, in_gap = self.began_at[pair], self.seen.sent_in_gap[pair]

        def holds(ledger: Ledger) -> bool:
            missing = set(ledger.sent[began.sent :]).difference(ledger.received[began.received :], in_gap)
            return not missing and len(ledger.completed) >= len(ledger.sent)

        return holds
