# SPDX-License-Identifier: Apache-2.0
"""`vdpa-net log-test`: a live migration between two devices without a virtual machine, and its verdict.

Two devices on loopback back ends, each behind a vDPA driver and a vhost-user socket; a front end that acts
like a migrating VMM; a guest that keeps sending. Needs no root, no QEMU and no /dev/net/tun.

    guest CPU --- rings in memory A ------.        .------ the same rings in memory B
                                          |  copy  |
    front end A -> vhost-user -> driver -> device A | front end B -> ... -> device B
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from vdpa_net.errors import PeerError
from vdpa_net.migration.checks import (
    TrafficTally,
    check_audit_intervals,
    check_ram,
    check_ring_state,
    check_round_counts,
    check_traffic,
    check_violations,
)
from vdpa_net.migration.faults import parse_fault
from vdpa_net.migration.verdict import Line, Verdict
from vdpa_net.testing.dirty_log import DirtyLog
from vdpa_net.testing.front_end import Manners, VhostFrontEnd
from vdpa_net.testing.guest_cpu import RX, TX, GuestCpu, Ledger, Wires
from vdpa_net.testing.guest_memory import GuestMemory
from vdpa_net.testing.net_queues import NetQueues
from vdpa_net.testing.precopy import PreCopy
from vdpa_net.testing.ring_formats import allocate_ring
from vdpa_net.testing.vhost_side import VhostSide

if TYPE_CHECKING:
    from rich.console import Console

MINIMUM_PAGES = 64
"""Pages that the device must have written after the first pass for the run to count."""

_LOW_BYTES = 1 << 20
_HIGH_BASE = 1 << 32
_HIGH_BYTES = 4 << 20
_LAYOUT = ((0, _LOW_BYTES), (_HIGH_BASE, _HIGH_BYTES))
_LOG_OFFSET_BYTES = 3 * 4096
_RING_SIZE = 256
_MAC = "52:54:00:00:00:01"
_FRAMES_BEFORE = 100
_FRAMES_PER_PASS = 250
_PASSES = 6
_UNSENT_AT_STOP = 12
_PATIENCE_S = 30.0
_IDLE_S = 2.0


@dataclass
class Observations:
    """What was seen, each value from a place of its own. Ring values are by queue."""

    in_flight: dict[str, int] = field(default_factory=dict)
    used_idx_in_ram: list[int] = field(default_factory=list)
    wire_bases: list[int] = field(default_factory=list)
    register_after_stop: dict[int, tuple[int, int]] = field(default_factory=dict)
    register_before_enable: dict[int, tuple[int, int]] = field(default_factory=dict)
    differing: list[int] = field(default_factory=list)
    sent_in_gap: frozenset[int] = frozenset()
    refusals: list[str] = field(default_factory=list)
    switch_over_ms: float = 0.0
    frames_before_stop: int = 0


class LogTest:
    """One migration. `run` does it; `verdict` judges it."""

    def __init__(
        self,
        seed: int,
        faults: Sequence[str],
        manners: Manners | None = None,
        *,
        over_vfio_user: bool = False,
        packed: bool = False,
    ) -> None:
        """Raises OptionError for a fault that does not exist."""
        self.packed = packed
        self._over_vfio_user = over_vfio_user
        self.seed = seed
        self.faults = [parse_fault(text, seed=seed) for text in faults]
        self.seen = Observations()
        self._manners = manners
        self._stack = ExitStack()

    def run(self, directory: Path) -> Verdict:
        """Migrate once; sockets go to `directory`. Raises what the parts raise when they can't be set up."""
        with self._stack:
            self._set_up(directory)
            self._run_on_source()
            self._pre_copy()
            self._stop_source()
            self._compare()
            self._run_on_destination()
            return self._judge()

    # --- the migration --------------------------------------------------------------------------

    def _set_up(self, directory: Path) -> None:
        enter = self._stack.enter_context
        self.memory_a, self.memory_b = (enter(GuestMemory(_LAYOUT)) for _ in range(2))
        self.source, self.destination = (
            enter(
                VhostSide(
                    directory / f"{name}.vhost",
                    _MAC,
                    faults,
                    over_vfio_user=self._over_vfio_user,
                    packed=self.packed,
                )
            )
            for name, faults in (("source", self.faults), ("destination", []))
        )
        # Both indices wrap in the course of the test.
        rings = [
            allocate_ring(
                self.memory_a,
                _RING_SIZE,
                packed=self.packed,
                first_index=0xFFC0 + self.seed % 32,
                region=1,
            )
            for _ in (RX, TX)
        ]
        queues = NetQueues(self.memory_a, rings[RX], rings[TX], seed=self.seed, region=1)
        self.guest = GuestCpu(queues, seed=self.seed)
        self._stack.callback(self.guest.close)
        self.log = DirtyLog.for_memory_end(_HIGH_BASE + _HIGH_BYTES, _LOG_OFFSET_BYTES)
        self._stack.callback(self.log.close)
        self.front_a = enter(VhostFrontEnd(self.source.path, self.memory_a, rings, manners=self._manners))
        self.copy = PreCopy(self.memory_a, self.memory_b, self.log)

    def _run_on_source(self) -> None:
        self.front_a.connect()
        self.guest.run(Wires(self.front_a.kick, self.front_a.call_fds))
        self.guest.wait_for_frames(_FRAMES_BEFORE, _PATIENCE_S, _IDLE_S)

    def _pre_copy(self) -> None:
        self.copy.prepare()
        self.front_a.start_logging(self.log)
        self.copy.first_pass()
        for _ in range(_PASSES):
            self.guest.wait_for_frames(_FRAMES_PER_PASS, _PATIENCE_S, _IDLE_S)
            self.copy.next_pass()
        self.guest.wait_for_frames(_FRAMES_PER_PASS, _PATIENCE_S, _IDLE_S)

    def _stop_source(self) -> None:
        self.guest.pause(leave_unsent=_UNSENT_AT_STOP)
        self._paused_at = time.monotonic()
        rings, ledger = self.front_a.rings, self.guest.ledger
        # Frames complete in the order in which they were sent. Those that the device has already taken when
        # the stop begins lie in the loopback or in receive buffers, and the stop has to deliver them.
        taken = len(ledger.completed) + rings[TX].completed
        self.seen.in_flight = {f"vq{queue}": ring.in_flight for queue, ring in enumerate(rings)}
        self.seen.sent_in_gap = frozenset(ledger.sent[taken:])
        self.seen.frames_before_stop = len(ledger.sent)
        self.seen.wire_bases = self.front_a.stop()
        self.copy.next_pass()
        self.seen.used_idx_in_ram = [ring.used_idx for ring in rings]
        self.seen.register_after_stop = self.source.registers_after_stop()

    def _compare(self) -> None:
        self.seen.differing = self.copy.differing()
        # The guest goes on in repaired memory, so that each line of the verdict tells of its own subject
        # only: a page that was lost is the RAM line's, not a ring state or a frame that went wrong after it.
        self.memory_b.load_pages(self.memory_a.snapshot(), set(self.seen.differing))

    def _run_on_destination(self) -> None:
        self.guest.queues.move_to(self.memory_b)
        for queue in (RX, TX):
            self.guest.watch_completion(queue, self.seen.used_idx_in_ram[queue])
        front_b = self._stack.enter_context(
            VhostFrontEnd(self.destination.path, self.memory_b, self.front_a.rings, manners=self._manners)
        )
        try:
            front_b.connect(self.seen.wire_bases)
            self.seen.switch_over_ms = 1000 * (time.monotonic() - self._paused_at)
            self.seen.register_before_enable = self.destination.registers_before_enable()
            self._go_on(front_b)
            front_b.stop()
        except PeerError as error:
            self.seen.refusals.append(f"destination: {error}")

    def _go_on(self, front_b: VhostFrontEnd) -> None:
        self.guest.run(Wires(front_b.kick, front_b.call_fds))
        alive = self.guest.wait_for_frames(_FRAMES_PER_PASS, _PATIENCE_S, _IDLE_S)
        self.guest.stop_sending()
        self.guest.wait_for(self._all_accounted, _PATIENCE_S, _IDLE_S if alive else 0.2)
        self.guest.pause()

    def _all_accounted(self, ledger: Ledger) -> bool:
        missing = set(ledger.sent).difference(ledger.received, self.seen.sent_in_gap)
        return not missing and len(ledger.completed) >= len(ledger.sent)

    # --- the verdict ----------------------------------------------------------------------------

    def _judge(self) -> Verdict:
        seen = self.seen
        lines = [
            check_round_counts(len(self.copy.written_by_device()), MINIMUM_PAGES, seen.in_flight),
            check_ram(seen.differing, len(self.memory_a.page_numbers())),
            check_audit_intervals(self.copy.audit_intervals()),
            *(self._ring_line(queue) for queue in (RX, TX)),
            *self._traffic_lines(),
            check_violations(self._violations()),
        ]
        return Verdict(lines, self._context())

    def _ring_line(self, queue: int) -> Line:
        seen = self.seen
        after = seen.register_after_stop.get(queue, (None, None))
        before = seen.register_before_enable.get(queue, (None, None))
        observed: dict[str, int | None] = {
            "LM_RING_STATE after the stop, last_avail_idx": after[0],
            "LM_RING_STATE after the stop, used_idx": after[1],
            **self._wire_base(queue),
            "LM_RING_STATE at the destination before queue_enable, last_avail_idx": before[0],
            "LM_RING_STATE at the destination before queue_enable, used_idx": before[1],
            "place in the available ring of the destination's first completion": (
                self.guest.first_completion.get(queue)
            ),
        }
        return check_ring_state(queue, observed, seen.used_idx_in_ram[queue])

    def _wire_base(self, queue: int) -> dict[str, int | None]:
        base = self.seen.wire_bases[queue]
        if not self.packed:
            return {"GET_VRING_BASE": base}
        return {"GET_VRING_BASE, avail": base & 0xFFFF, "GET_VRING_BASE, used": base >> 16}

    def _traffic_lines(self) -> list[Line]:
        ledger, queues = self.guest.ledger, self.guest.queues
        sent = TrafficTally(ledger.sent, ledger.completed, queues.tx_damaged)
        arrived = TrafficTally(
            ledger.completed, ledger.received, ledger.corrupted + queues.rx_damaged, self.seen.sent_in_gap
        )
        return [check_traffic("frames from the guest", sent), check_traffic("frames to the guest", arrived)]

    def _violations(self) -> list[str]:
        found = list(self.seen.refusals)
        found += [f"source: {text}" for text in self.source.violations()]
        found += [f"destination: {text}" for text in self.destination.violations()]
        found += [
            f"log: page {page:#x} is outside of guest memory" for page in self.copy.marks_outside_memory
        ]
        if stray := self.log.stray_bytes():
            found.append(f"log: {stray} bytes around it were written")
        return found

    def _context(self) -> dict[str, object]:
        counters = self.source.device.space.log_counters()
        ledger = self.guest.ledger
        written, marked = self.copy.written_by_device(), self.copy.marked_by_device()
        return {
            "seed": self.seed,
            "packed": self.packed,
            "faults": [str(fault) for fault in self.faults],
            "pages_per_pass": self.copy.pages_copied,
            "pages_written_by_device": len(written),
            "pages_marked": len(marked),
            "log_counters": counters,
            "frames_sent": len(ledger.sent),
            "frames_received": len(ledger.received),
            "frames_sent_on_source": self.seen.frames_before_stop,
            "frames_sent_in_gap": len(self.seen.sent_in_gap),
            "ring_used_idx_at_stop": self.seen.used_idx_in_ram,
            "switch_over_ms": round(self.seen.switch_over_ms, 1),
        }


def run_log_test(
    *,
    seed: int,
    faults: list[str],
    json_path: Path | None,
    console: Console,
    manners: Manners | None = None,
    packed: bool = False,
) -> int:
    """Migrate once, print the verdict, write it to `json_path`; returns the exit code of the verdict.

    Raises OptionError for a fault that does not exist.
    """
    test = LogTest(seed, faults, manners, packed=packed)
    with tempfile.TemporaryDirectory(prefix="vdpa-net-") as directory:
        verdict = test.run(Path(directory))
    faults_text = ", ".join(str(fault) for fault in test.faults) or "none"
    rings = "packed" if packed else "split"
    console.print(
        f"log-test: two devices, loopback, {rings} rings, seed {seed}, faults: {faults_text}", highlight=False
    )
    verdict.render(console)
    if json_path is not None:
        json_path.write_text(json.dumps(verdict.to_json(), indent=2) + "\n")
    return verdict.exit_code
