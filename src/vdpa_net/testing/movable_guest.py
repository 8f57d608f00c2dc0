# SPDX-License-Identifier: Apache-2.0
"""A guest with one virtual CPU per queue pair that can be moved from one memory to another: what migrates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from vdpa_net.closing import Closing
from vdpa_net.testing.front_end import F_EVENT_IDX, F_INDIRECT_DESC, F_MRG_RXBUF, VhostFrontEnd
from vdpa_net.testing.guest_cpu import RX, TX, GuestCpu, Ledger, Wires
from vdpa_net.testing.guest_memory import GuestMemory
from vdpa_net.testing.net_queues import SLOT_BYTES, NetQueues, Shapes
from vdpa_net.testing.ring import DriverRing
from vdpa_net.testing.ring_formats import allocate_ring

HIGH_BASE = 1 << 32
RING_SIZE = 256
_LOW_BYTES = 1 << 20
_HIGH_BYTES, _HIGH_BYTES_PER_PAIR = 1 << 20, 3 << 20
_RX_SLOTS, _TX_SLOTS = 192, 64
_HIGH = 1
_TRIES = 3
_INDEX_BEFORE_WRAP = 0xFFC0


@dataclass(frozen=True)
class Mark:
    """A place in the history of one CPU."""

    sent: int
    completed: int
    received: int
    corrupted: int
    announced: int
    rx_damaged: int
    tx_damaged: int


class MovableGuest(Closing):
    """Guest memory, rings and CPUs. `memory` is where the guest lives, `other` an equal one to move to."""

    def __init__(self, *, seed: int, queue_pairs: int = 1, packed: bool = False) -> None:
        layout = ((0, _LOW_BYTES), (HIGH_BASE, _HIGH_BYTES + queue_pairs * _HIGH_BYTES_PER_PAIR))
        self.end = HIGH_BASE + layout[1][1]
        self._stack = ExitStack()
        with self._stack as building:
            self.memory, self.other = (building.enter_context(GuestMemory(layout)) for _ in range(2))
            # The indices of split rings wrap in the course of a test.
            self.rings: list[DriverRing] = [
                allocate_ring(
                    self.memory,
                    RING_SIZE,
                    packed=packed,
                    first_index=_INDEX_BEFORE_WRAP + (seed + queue) % 32,
                    region=_HIGH,
                )
                for queue in range(2 * queue_pairs)
            ]
            self.cpus = [
                GuestCpu(queues, seed=seed + pair)
                for pair, queues in enumerate(self._make_queues(seed, queue_pairs))
            ]
            for cpu in self.cpus:
                building.callback(cpu.close)
            self._stack = building.pop_all()

    def _make_queues(self, seed: int, queue_pairs: int) -> list[NetQueues]:
        # The slots of the pairs take turns, so that a byte of the log stands for pages of several pairs: a
        # back end that does not set bits atomically loses marks there.
        taken = [
            [
                [self.memory.allocate(SLOT_BYTES, region=_HIGH) for _ in range(queue_pairs)]
                for _ in range(count)
            ]
            for count in (_RX_SLOTS, _TX_SLOTS)
        ]
        return [
            NetQueues(
                self.memory,
                self.rings[2 * pair + RX],
                self.rings[2 * pair + TX],
                seed=seed + pair,
                slots=([row[pair] for row in taken[0]], [row[pair] for row in taken[1]]),
            )
            for pair in range(queue_pairs)
        ]

    def adapt(self, features: int) -> None:
        """Behave as the negotiated features ask; before anything is in the rings."""
        shapes = Shapes(mergeable=bool(features & F_MRG_RXBUF), indirect=bool(features & F_INDIRECT_DESC))
        for cpu in self.cpus:
            cpu.queues.shapes = shapes
        for ring in self.rings:
            ring.event_idx = bool(features & F_EVENT_IDX)
            ring.arm()

    def run(self, front_end: VhostFrontEnd) -> None:
        """Run on this front end's device."""
        for pair, cpu in enumerate(self.cpus):
            first = 2 * pair

            def kick(queue: int, first: int = first) -> None:
                front_end.kick(first + queue)

            cpu.run(Wires(kick, front_end.call_fds[first : first + 2]))

    def pause(self) -> None:
        """Stop the CPUs."""
        for cpu in self.cpus:
            cpu.pause()

    def leave_unsent(self, count: int) -> None:
        """Make `count` more frames available on each pair, as if their kick were still under way.

        A device that is awake may be done with them before anyone can look: then once more, as often as there
        is room for more beside a window of frames that are under way.
        """
        for pair, cpu in enumerate(self.cpus):
            for _ in range(_TRIES):
                cpu.leave_unsent(count)
                if self.rings[2 * pair + TX].in_flight:
                    break

    def in_flight(self) -> dict[str, int]:
        """How many chains the device has, by queue."""
        return {f"vq{queue}": ring.in_flight for queue, ring in enumerate(self.rings)}

    def offer_to_idle(self, count: int) -> dict[str, int]:
        """Make `count` more frames available where the transmit queue is empty; how many are, by queue."""
        offered: dict[str, int] = {}
        for pair, cpu in enumerate(self.cpus):
            ring = self.rings[2 * pair + TX]
            if not ring.in_flight:
                cpu.leave_unsent(count)
                offered[f"vq{2 * pair + TX}"] = ring.in_flight
        return offered

    def stop_sending(self) -> None:
        """Send no new frames; go on receiving."""
        for cpu in self.cpus:
            cpu.stop_sending()

    def wait_for_frames(self, count: int, timeout_s: float, idle_s: float) -> bool:
        """Wait until `count` more frames have come back on each pair; whether they have."""
        goals = [len(cpu.ledger.received) + count for cpu in self.cpus]
        reached = [
            cpu.wait_for(_has_received(goal), timeout_s, idle_s)
            for cpu, goal in zip(self.cpus, goals, strict=True)
        ]
        return all(reached)

    def move(self) -> None:
        """Go over to the other memory, which holds the same bytes."""
        self.memory, self.other = self.other, self.memory
        for cpu in self.cpus:
            cpu.queues.move_to(self.memory)

    def marks(self) -> list[Mark]:
        """The place in history of each CPU, while it is paused."""
        return [
            Mark(
                len(cpu.ledger.sent),
                len(cpu.ledger.completed),
                len(cpu.ledger.received),
                len(cpu.ledger.corrupted),
                len(cpu.ledger.announced),
                len(cpu.queues.rx_damaged),
                len(cpu.queues.tx_damaged),
            )
            for cpu in self.cpus
        ]

    def close(self) -> None:
        """Pause for good and free the memory."""
        self._stack.close()


def _has_received(goal: int) -> Callable[[Ledger], bool]:
    return lambda ledger: len(ledger.received) >= goal


def since(cpu: GuestCpu, mark: Mark) -> tuple[Ledger, Sequence[str], Sequence[str]]:
    """What came after the mark: the ledger, damage seen in receive buffers, and in transmit completions."""
    ledger, queues = cpu.ledger, cpu.queues
    later = Ledger(
        ledger.sent[mark.sent :],
        ledger.completed[mark.completed :],
        ledger.received[mark.received :],
        ledger.corrupted[mark.corrupted :],
        ledger.announced[mark.announced :],
    )
    return later, queues.rx_damaged[mark.rx_damaged :], queues.tx_damaged[mark.tx_damaged :]
