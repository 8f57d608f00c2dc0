# SPDX-License-Identifier: Apache-2.0
"""The lab's end of the numbered flows: a socket per flow, and one thread that sends and receives on all."""

from __future__ import annotations

import os
import select
import threading
import time
from array import array
from collections.abc import Callable
from dataclasses import dataclass

from vdpa_net.errors import LabError
from vdpa_net.lab.traffic.format import (
    ECHO,
    FLOW_PORT_OFFSET,
    HEADER,
    MAX_FLOWS,
    NOTHING,
    Filler,
    Kind,
    pack_datagram,
    unpack_datagram,
)
from vdpa_net.lab.traffic.reception import Reception
from vdpa_net.lab.traffic.sockets import drain, open_udp

MAX_BURST = 64
WINDOW = 1024
"""As many are in a guest's sockets at most before it loses some."""

LOOKS = 5
"""So often in a row nothing new is seen before what has not come counts as lost: a machine that stands
still for as long as they take together is seen to do so once."""

TRICKLE = 20
"""Then one of so many is sent, so that a guest that comes back is noticed."""


@dataclass(frozen=True)
class TrafficOptions:
    """How much of what. `rate_pps` is that of each direction, all flows together; `lengths` is the range of
    UDP payloads in bytes, both ways; `stream_bytes_per_s` is the TCP stream's pace each way, 0 for none.
    `window` is how many packets, all flows together, may be on their way to the guest before the pace drops
    to that of a guest which is slower (on a busy host, under emulation)."""

    rate_pps: int = 1000
    lengths: tuple[int, int] = (80, 1400)
    flows: int = 1
    stream_bytes_per_s: int = 128 << 10
    seed: int = 0
    window: int = WINDOW


class Flow:
    """One flow of the run: its socket, what it sent and what it got."""

    def __init__(self, number: int, local: tuple[str, int], peer: tuple[str, int]) -> None:
        self.number = number
        self.peer = (peer[0], peer[1] + FLOW_PORT_OFFSET + number)
        self.socket = open_udp((local[0], local[1] + FLOW_PORT_OFFSET + number))
        self.reset(0, (0, 0))

    def reset(self, seed: int, lengths: tuple[int, int]) -> None:
        """A new run begins."""
        self.filler = Filler(seed, lengths) if lengths[1] else None
        self.sent_ns = array("q")
        self.reception = Reception()
        self.echo: tuple[int, int] | None = None
        self.acknowledged = 0
        self.held_back = 0

    def may_send(self, window: int) -> bool:
        """Whether the guest keeps up, or it is time for one of the trickle."""
        if len(self.sent_ns) - self.acknowledged <= window:
            return True
        self.held_back += 1
        return self.held_back % TRICKLE == 0


class FlowEngine:
    """All flows of the endpoint. `start` begins a run, `end` ends it; its counts stay until the next one."""

    def __init__(self, local: tuple[str, int], agent: tuple[str, int], options: TrafficOptions) -> None:
        """Open the sockets. Raises LabError, ValueError for options that can't be."""
        if not 1 <= options.flows <= MAX_FLOWS:
            raise ValueError(f"{options.flows} flows, expected 1..{MAX_FLOWS}")
        Filler(options.seed, options.lengths)
        self._options = options
        self.flows: list[Flow] = []
        self.changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._wake_read, self._wake_write = os.pipe()
        try:
            for number in range(options.flows):
                self.flows.append(Flow(number, local, agent))
        except LabError:
            self.close()
            raise
        self._reset(0)

    def _reset(self, run_id: int) -> None:
        self._run_id = run_id
        self.corrupted = self.foreign = self.send_errors = 0
        self.round_trips: list[tuple[int, int]] = []
        self._sending = False
        self._failure: Exception | None = None
        self.last_arrival_ns = 0
        for flow in self.flows:
            flow.reset(self._options.seed + flow.number, self._options.lengths)

    @property
    def is_running(self) -> bool:
        """Between `start` and `end`."""
        return self._thread is not None

    def start(self, run_id: int) -> None:
        """Count what arrives from now on."""
        self._reset(run_id)
        self._thread = threading.Thread(target=self._guarded_loop, name="traffic", daemon=True)
        self._thread.start()

    def send(self, on: bool) -> None:
        """Send packets, or send no more."""
        self._sending = on
        self._wake()

    def end(self) -> None:
        """End the thread. Safe to call again."""
        self._sending = False
        if self._thread is not None:
            self._wake(b"x")
            self._thread.join()
            self._thread = None

    def wait(self, condition: Callable[[], object], timeout_s: float, expected: Callable[[], str]) -> None:
        """Return when a condition holds that arrivals change. Raises LabError that says what was expected."""
        with self.changed:
            arrived = self.changed.wait_for(lambda: condition() or self._failure is not None, timeout_s)
            self.check()
            if not arrived:
                raise LabError(f"expected {expected()} within {timeout_s:g} s")

    def wait_for_rest(self, flow: Flow, sent: int, settle_s: float, deadline: float) -> None:
        """Return when all of a flow has come, or nothing for `settle_s`: what has not come then is lost."""
        arrived, looks = flow.reception.order, 0
        with self.changed:
            while len(arrived) < sent and looks < LOOKS and time.monotonic() < deadline:
                before = len(arrived)
                self.changed.wait_for(lambda: len(arrived) >= sent, settle_s / LOOKS)
                looks = looks + 1 if len(arrived) == before else 0

    def check(self) -> None:
        """Raises LabError if the thread has failed."""
        if self._failure is not None:
            raise LabError(f"the traffic's thread failed: {self._failure!r}") from self._failure

    def close(self) -> None:
        """End the thread and give the sockets back."""
        self.end()
        for flow in self.flows:
            flow.socket.close()
        os.close(self._wake_read)
        os.close(self._wake_write)

    def _guarded_loop(self) -> None:
        try:
            self._loop()
        except Exception as error:
            with self.changed:
                self._failure = error
                self.changed.notify_all()

    def _loop(self) -> None:
        sockets = {flow.socket.fileno(): flow for flow in self.flows}
        interval_ns = 1_000_000_000 // self._options.rate_pps
        due_ns, turn = 0, 0
        while True:
            wait_s = max(0.0, (due_ns - time.monotonic_ns()) / 1e9) if self._sending else None
            readable = select.select([*sockets, self._wake_read], [], [], wait_s)[0]
            for fd in readable:
                if fd in sockets:
                    self._receive(sockets[fd])
            if self._wake_read in readable and os.read(self._wake_read, 1) == b"x":
                return
            if not self._sending:
                continue
            now_ns = time.monotonic_ns()
            # After a pause of this thread only the latest packets are made up for.
            due_ns = max(due_ns or now_ns, now_ns - MAX_BURST * interval_ns)
            while due_ns <= now_ns:
                if self.flows[turn].may_send(self._options.window // len(self.flows)):
                    self._send(self.flows[turn])
                turn = (turn + 1) % len(self.flows)
                due_ns += interval_ns

    def _send(self, flow: Flow) -> None:
        assert flow.filler is not None
        now_ns = time.monotonic_ns()
        sequence, age_ns = (flow.echo[0], now_ns - flow.echo[1]) if flow.echo else (NOTHING, 0)
        body = ECHO.pack(sequence=sequence, age_ns=age_ns) + flow.filler.next()
        packet = pack_datagram(Kind.DATA, self._run_id, len(flow.sent_ns), now_ns, body, flow=flow.number)
        try:
            flow.socket.sendto(packet, flow.peer)
        except OSError:
            self.send_errors += 1
        # When it is in the receiver's queue for certain: what was sent before a stop has to arrive.
        flow.sent_ns.append(time.monotonic_ns())

    def _receive(self, flow: Flow) -> None:
        offset_ns = time.monotonic_ns() - time.time_ns()
        with self.changed:
            for data, stamp_ns in drain(flow.socket):
                header = unpack_datagram(data)
                if header is None:
                    self.corrupted += 1
                elif (header["kind"], header["run_id"], header["flow"]) != (
                    Kind.DATA,
                    self._run_id,
                    flow.number,
                ):
                    self.foreign += 1
                else:
                    self._accept(flow, header, data, stamp_ns + offset_ns)
            self.changed.notify_all()

    def _accept(self, flow: Flow, header: dict[str, int], data: bytes, arrival_ns: int) -> None:
        echo = ECHO.unpack(data, HEADER.size)
        flow.reception.accept(header["sequence"], arrival_ns)
        flow.echo = (header["sequence"], arrival_ns)
        self.last_arrival_ns = max(self.last_arrival_ns, arrival_ns)
        if echo["sequence"] < len(flow.sent_ns):
            sent_ns = flow.sent_ns[echo["sequence"]]
            flow.acknowledged = max(flow.acknowledged, echo["sequence"] + 1)
            self.round_trips.append((sent_ns, max(0, arrival_ns - sent_ns - echo["age_ns"])))

    def _wake(self, word: bytes = b"w") -> None:
        os.write(self._wake_write, word)
