# SPDX-License-Identifier: Apache-2.0
"""The queues at the switch-over: where they stop at the source, how the guest goes on at the destination."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from vdpa_net.errors import LabError
from vdpa_net.lab.migrate.evidence import queue_record, ring_name
from vdpa_net.lab.migrate.observe import QueueObservations, wire_values
from vdpa_net.lab.migrate.pace import Pace
from vdpa_net.lab.migrate.ring_memory import GuestProgress, PackedMemory, RingMemory, SplitMemory
from vdpa_net.lab.migrate.rings_at_stop import RingsAtStop
from vdpa_net.lab.migrate.topology import HostedGuest
from vdpa_net.wire.lm import unpack_ring_state


class QueueWatch:
    """Looks at the queues of one migration, whose source is watched."""

    def __init__(self, source: HostedGuest, queue_pairs: int, pace: Pace) -> None:
        self._source = source
        self._pairs = queue_pairs
        self._pace = pace
        self._packed = self._mergeable = False
        self._since = ""
        self._before: list[dict[str, int]] = []

    def note(self, moment: str, *, expects_packed: bool) -> None:
        """Note where the queues stand at a moment before their stop. Raises LabError for the wrong rings."""
        self._since = moment
        snapshot = self._source.side.device("inspect")
        self._packed = "RING_PACKED" in snapshot["features"]
        self._mergeable = "MRG_RXBUF" in snapshot["features"]
        if expects_packed and not self._packed:
            raise LabError("the guest's driver has not negotiated RING_PACKED: its rings are split ones")
        self._before = snapshot["queues"]

    def note_while_busy(self, window_s: float, within_s: float, *, expects_packed: bool) -> bool:
        """Return once every ring has completed a buffer since a moment noted at most `window_s` ago.

        A guest that is slower than the switch-over (one of a guest, emulated) completes nothing in it; so the
        release waits for an instant at which all rings move. False if there was none `within_s`: then
        `at_stop` tells which ring stood still.
        """
        deadline = time.monotonic() + within_s
        pause_s = min(self._pace.sample_s, window_s / 10)
        moment = f"{window_s:g} s before the release"
        while (noted_s := time.monotonic()) < deadline:
            self.note(moment, expects_packed=expects_packed)
            while time.monotonic() - noted_s < window_s:
                if self._all_have_moved():
                    return True
                # How far a queue has come is a register of the device: nobody announces it.
                time.sleep(pause_s)
        return False

    def _all_have_moved(self) -> bool:
        now = self._source.side.device("inspect")["queues"]
        before = self._before
        return all(now[queue]["used_idx"] != before[queue]["used_idx"] for queue in range(2 * self._pairs))

    def at_stop(self) -> RingsAtStop:
        """How each ring stood when it was stopped, while the guest stands still."""
        rings = RingsAtStop(mergeable=self._mergeable)
        for queue in range(2 * self._pairs):
            record = queue_record(self._source.side, queue)
            state, name = record.get("ring_state_after_stop"), ring_name(queue, self._pairs)
            if state is None or not record.get("driver"):
                continue
            last_avail_idx, used_idx = unpack_ring_state(int(state))
            ring = self._ring(self._source, record)
            done = ring.completed_since(used_idx, self._before[queue]["used_idx"])
            posted = ring.posted_since(last_avail_idx)
            if queue % 2 == 0:
                rings.done[f"{name} done since {self._since}"] = done
                rings.posted[f"{name} posted"] = posted
            else:
                # A transmit ring is drained when it stops, unless it waits for a translation.
                rings.done[f"{name} done since {self._since}, or waiting"] = done + posted
        return rings

    def at_source(self) -> list[QueueObservations]:
        """What can be seen of each queue once the source has stopped."""
        wire = wire_values(self._source.side.driver("wire_log"), "GET_VRING_BASE")
        found: list[QueueObservations] = []
        for queue in range(2 * self._pairs):
            record = queue_record(self._source.side, queue)
            if record.get("device") is None:
                continue
            state = record.get("ring_state_after_stop")
            reported = None if state is None else unpack_ring_state(int(state))[1]
            found.append(
                QueueObservations(
                    queue,
                    self._ring(self._source, record).used(reported),
                    register_after_stop=state,
                    wire_get=wire.get(queue),
                    packed=self._packed,
                )
            )
        return found

    def at_destination(self, queues: list[QueueObservations], destination: HostedGuest) -> None:
        """Add what can be seen there, once the guest has gone on or time is up."""
        for observed in queues:
            observed.guest = self._await_progress(observed, destination)
        wire = wire_values(destination.side.driver("wire_log"), "SET_VRING_BASE")
        for observed in queues:
            observed.wire_set = wire.get(observed.queue)
            record = queue_record(destination.side, observed.queue)
            observed.register_before_enable = record.get("ring_state_before_enable")

    def _ring(self, hosted: HostedGuest, record: Mapping[str, Any]) -> RingMemory:
        return (PackedMemory if self._packed else SplitMemory)(hosted.ram, record)

    def _await_progress(self, observed: QueueObservations, destination: HostedGuest) -> GuestProgress:
        """Wait until the guest has posted more buffers than the ring holds: it had to reap in between."""
        deadline = time.monotonic() + self._pace.progress_s
        progress = GuestProgress(0, 0, 0)
        start = observed.used_in_ram
        while start is not None and time.monotonic() < deadline and not progress.is_beyond_the_ring:
            record = queue_record(destination.side, observed.queue)
            if record.get("driver") is not None and record.get("size"):
                progress = self._ring(destination, record).look(start, progress)
            # The guest's own index is a word in its memory: nobody announces a change of it.
            time.sleep(self._pace.sample_s)
        return progress
