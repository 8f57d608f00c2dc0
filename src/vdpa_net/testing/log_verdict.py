# SPDX-License-Identifier: Apache-2.0
"""The verdict on a round of the log test. Pure: everything was observed before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from vdpa_net.migration.checks import (
    AuditFindings,
    TrafficTally,
    check_audit_findings,
    check_audit_intervals,
    check_ram,
    check_ring_state,
    check_round_counts,
    check_traffic,
    check_violations,
)
from vdpa_net.migration.verdict import Line, Outcome, Verdict
from vdpa_net.testing.log_round import LogRound
from vdpa_net.testing.movable_guest import since

MINIMUM_PAGES = 64
"""Pages that a device must have written after the first pass for the run to count."""

_FOREIGN = "somebody else's back end: its registers, its record and its network are its own"
_KERNEL_AUDIT = "dirty audit by the kernel"


def judge(done: LogRound, mac: str) -> Verdict:
    """The lines of one round, of a guest whose NIC has this address."""
    seen = done.seen
    verdict = Verdict(context=_context(done))
    verdict.lines = [
        _load(done),
        check_ram(seen.differing, len(done.guest.memory.page_numbers())),
        _memory_audit(done, verdict),
        *_kernel_audit(done, verdict),
        *(_ring_line(done, queue) for queue in range(len(done.guest.rings))),
        *(line for pair in range(len(done.guest.cpus)) for line in _traffic_lines(done, pair)),
        *_announcement(done, mac, verdict),
        check_violations(
            [
                *seen.problems,
                *(f"source: {text}" for text in done.source.violations()),
                *(f"destination: {text}" for text in done.destination.violations()),
            ]
        ),
    ]
    if done.source.device is None or done.destination.device is None:
        verdict.not_checked["ring state in LM_RING_STATE, violations of the device"] = _FOREIGN
    return verdict


def _load(done: LogRound) -> Line:
    seen = done.seen
    late = {f"of {name} once it had stopped": count for name, count in seen.offered_after_stop.items()}
    return check_round_counts(
        len(done.copy.written_by_device()), MINIMUM_PAGES, seen.in_flight | seen.offered_after_stop, late
    )


def _memory_audit(done: LogRound, verdict: Verdict) -> Line:
    """By images of the memory, which show what changed in somebody else's hands, too."""
    line = check_audit_intervals(done.copy.audit_intervals())
    if done.seen.kernel_audit is not None:
        return line
    return replace(line, measured=f"{line.measured}, {verdict.context['over_marking_percent']} % over-marked")


def _kernel_audit(done: LogRound, verdict: Verdict) -> list[Line]:
    result = done.seen.kernel_audit
    if result is None:
        verdict.not_checked[_KERNEL_AUDIT] = done.seen.kernel_audit_problem or _FOREIGN
        return []
    line = check_audit_findings(_findings(result))
    return [replace(line, name=_KERNEL_AUDIT)]


def _findings(result: Mapping[str, Any]) -> AuditFindings:
    unmarked = [(page, interval) for page, interval in result["unmarked"]]
    return AuditFindings(
        set(result["written"]), unmarked, result["intervals"], result["marked"], result["over_marked"]
    )


def _ring_line(done: LogRound, queue: int) -> Line:
    seen = done.seen
    observed: dict[str, int | None] = {}
    if done.source.device is not None:
        after = seen.register_after_stop.get(queue, (None, None))
        observed["LM_RING_STATE after the stop, last_avail_idx"] = after[0]
        observed["LM_RING_STATE after the stop, used_idx"] = after[1]
    observed |= _wire_base(seen.wire_bases[queue], is_packed=done.guest.rings[queue].is_packed)
    if done.destination.device is not None:
        before = seen.register_before_enable.get(queue, (None, None))
        observed["LM_RING_STATE at the destination before queue_enable, last_avail_idx"] = before[0]
        observed["LM_RING_STATE at the destination before queue_enable, used_idx"] = before[1]
    name = "place in the available ring of the destination's first completion"
    observed[name] = seen.first_completion.get(queue)
    return check_ring_state(queue, observed, seen.used_idx_in_ram[queue])


def _wire_base(base: int, *, is_packed: bool) -> dict[str, int | None]:
    if not is_packed:
        return {"GET_VRING_BASE": base}
    return {"GET_VRING_BASE, avail": base & 0xFFFF, "GET_VRING_BASE, used": base >> 16}


def _traffic_lines(done: LogRound, pair: int) -> list[Line]:
    ledger, rx_damaged, tx_damaged = since(done.guest.cpus[pair], done.began_at[pair])
    sent = TrafficTally(ledger.sent, ledger.completed, tx_damaged)
    arrived = TrafficTally(
        ledger.completed,
        ledger.received,
        [*ledger.corrupted, *rx_damaged],
        done.seen.sent_in_gap[pair],
    )
    of_pair = f", pair {pair}" if len(done.guest.cpus) > 1 else ""
    return [
        check_traffic(f"frames from the guest{of_pair}", sent),
        check_traffic(f"frames to the guest{of_pair}", arrived),
    ]


def _announcement(done: LogRound, mac: str, verdict: Verdict) -> list[Line]:
    """What the destination announces comes back to the guest on a loopback of ours."""
    if done.destination.device is None:
        verdict.not_checked["announcement"] = _FOREIGN
        return []
    announced = [
        station
        for cpu, moved in zip(done.guest.cpus, done.moved_at, strict=True)
        for station in cpu.ledger.announced[moved.announced :]
    ]
    wrong = [f"RARP for {station}, the guest is {mac}" for station in sorted(set(announced) - {mac})]
    count = announced.count(mac)
    return [
        Line(
            "announcement",
            Outcome.PASS if count and not wrong else Outcome.FAIL,
            f"{count} RARP frames for {mac} from the destination",
            "at least 1, for this station alone",
            (*(() if count else (f"the destination has not announced {mac}",)), *wrong),
        )
    ]


def _context(done: LogRound) -> dict[str, object]:
    seen, copy, guest = done.seen, done.copy, done.guest
    written, marked = copy.written_by_device(), copy.marked_by_device()
    if seen.kernel_audit is not None:
        # The kernel also sees stores that leave a page as it was, which images of the memory can't show.
        written |= _findings(seen.kernel_audit).written
    device = done.source.device
    return {
        "pages_per_pass": copy.pages_copied,
        "pages_written_by_device": len(written),
        "pages_marked": len(marked),
        "over_marking_percent": round(100 * len(marked - written) / max(1, len(marked)), 1),
        "log_counters": None if device is None else device.space.log_counters(),
        "faults_fired": {} if device is None else device.fault_counts(),
        "faults_fired_at_destination": (
            {} if done.destination.device is None else done.destination.device.fault_counts()
        ),
        "frames_sent": sum(len(cpu.ledger.sent) - m.sent for cpu, m in _with(guest.cpus, done.began_at)),
        "frames_received": sum(
            len(cpu.ledger.received) - m.received for cpu, m in _with(guest.cpus, done.began_at)
        ),
        "frames_sent_on_source": sum(
            moved.sent - began.sent for moved, began in _with(done.moved_at, done.began_at)
        ),
        "frames_sent_in_gap": sum(len(frames) for frames in seen.sent_in_gap),
        "ring_used_idx_at_stop": seen.used_idx_in_ram,
        "switch_over_ms": round(seen.switch_over_ms, 1),
    }


def _with(left: Any, right: Any) -> Any:
    return zip(left, right, strict=True)
