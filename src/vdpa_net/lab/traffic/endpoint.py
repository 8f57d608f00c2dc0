# SPDX-License-Identifier: Apache-2.0
"""The lab's end of the traffic: numbered flows and a TCP stream, in the network of its maker.

    with TrafficEndpoint(("10.87.0.1", 7000), ("10.87.0.2", 7000), TrafficOptions(seed=1)) as endpoint:
        endpoint.start(timeout_s=60)
        endpoint.wait_received(100, timeout_s=10)
        ...                                       # migrate
        report = endpoint.finish(timeout_s=30)

`start` may be called again after `finish`: each run counts from 0.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

from vdpa_net.closing import Closing
from vdpa_net.errors import LabError, StateError
from vdpa_net.lab.traffic.agent import AgentClient
from vdpa_net.lab.traffic.flows import LOOKS, Flow, FlowEngine, TrafficOptions
from vdpa_net.lab.traffic.format import (
    CONTROL_PORT_OFFSET,
    NOTHING,
    QUERY_BODY,
    START_BODY,
    STREAM_PORT_OFFSET,
    Operation,
    StreamPhase,
)
from vdpa_net.lab.traffic.reception import (
    Direction,
    FlowReport,
    StreamReport,
    TrafficReport,
    Unattributed,
    intervals_to_numbers,
)
from vdpa_net.lab.traffic.sockets import open_udp
from vdpa_net.lab.traffic.stream import TcpStream

SETTLE_SECONDS = 0.5


class TrafficEndpoint(Closing):
    """Sends to the guest, receives from it, and asks its agent what arrived there.

    `local` and `agent` are addresses with the port that the other ports lie behind (`traffic.format`).
    """

    def __init__(
        self, local: tuple[str, int], agent: tuple[str, int], options: TrafficOptions | None = None
    ) -> None:
        self.options = options or TrafficOptions()
        self._agent_address = agent
        self._stream: TcpStream | None = None
        self._run_id = 0
        self._engine = FlowEngine(local, agent, self.options)
        control_peer = (agent[0], agent[1] + CONTROL_PORT_OFFSET)
        try:
            self._agent = AgentClient(open_udp((local[0], 0)), control_peer, self._engine.check)
        except LabError:
            self._engine.close()
            raise

    def start(self, timeout_s: float = 60) -> int:
        """Begin a run: the agent's flows, ours, and the stream. Returns the run id.

        Raises LabError if the agent does not answer, StateError if a run is going on.
        """
        if self._engine.is_running:
            raise StateError("a run of traffic is going on, expected finish() before the next start()")
        self._run_id = int.from_bytes(os.urandom(7), "little") + 1
        # Our thread counts from before the request on, so that nothing of the agent's flows is missed.
        self._engine.start(self._run_id)
        try:
            self._begin(time.monotonic() + timeout_s)
        except BaseException:
            self.abandon()
            raise
        return self._run_id

    def _begin(self, deadline: float) -> None:
        low, high = self.options.lengths
        body = START_BODY.pack(
            rate_pps=self.options.rate_pps,
            min_length=low,
            max_length=high,
            flows=self.options.flows,
            seed=self.options.seed,
        )
        self._agent.ask(Operation.START, self._run_id, body, deadline - time.monotonic())
        # A tap with several queues sends a flow to the queue on which the guest sent it last: before the
        # first packet has come it would choose another one, and the change would reorder packets.
        self._engine.wait(
            lambda: all(flow.reception.order for flow in self._engine.flows),
            deadline - time.monotonic(),
            lambda: f"a datagram of each of {self.options.flows} flows from the guest",
        )
        if self.options.stream_bytes_per_s:
            peer = (self._agent_address[0], self._agent_address[1] + STREAM_PORT_OFFSET)
            rate, left_s = self.options.stream_bytes_per_s, max(1.0, deadline - time.monotonic())
            self._stream = TcpStream(peer, self._run_id, self.options.seed, rate, left_s)
        self._engine.send(True)

    def finish(self, timeout_s: float = 30) -> TrafficReport:
        """End all of it, wait for what is on its way, ask for what arrived. Raises LabError."""
        if not self._engine.is_running:
            raise StateError("no run of traffic is going on, expected start() before finish()")
        deadline = time.monotonic() + timeout_s
        try:
            self._engine.send(False)
            self._agent.ask(Operation.STOP, self._run_id, b"", timeout_s)
            if self._stream is not None:
                self._stream.finish(max(1.0, deadline - time.monotonic()))
            states = [self._settle(flow, deadline) for flow in self._engine.flows]
            pairs = zip(self._engine.flows, states, strict=True)
            reports = [self._flow_report(flow, state, deadline) for flow, state in pairs]
            self._engine.check()
            return self._report(reports, states, deadline)
        finally:
            self.abandon()

    def abandon(self) -> None:
        """End a run without asking the agent, as after its machine's death. Safe to call again."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None
        self._engine.end()

    def wait_received(self, count: int, timeout_s: float) -> None:
        """Return when this many datagrams of the guest have arrived in this run, and a byte of the stream if
        there is one. Raises LabError."""
        self._engine.wait(
            lambda: self.received >= count,
            timeout_s,
            lambda: f"{count} datagrams from the guest, got {self.received}",
        )
        if self._stream is not None:
            self._stream.wait_received(1, timeout_s)

    def wait_arrival_after(self, instant_ns: int, timeout_s: float) -> None:
        """Return when a datagram has arrived after an instant (CLOCK_MONOTONIC). Raises LabError."""
        self._engine.wait(
            lambda: self._engine.last_arrival_ns > instant_ns,
            timeout_s,
            lambda: "a datagram from the guest, got none",
        )

    @property
    def received(self) -> int:
        """Datagrams of the guest so far in this run."""
        return sum(len(flow.reception.order) for flow in self._engine.flows)

    @property
    def sent(self) -> int:
        """Datagrams to the guest so far in this run."""
        return sum(len(flow.sent_ns) for flow in self._engine.flows)

    @property
    def silence_ms(self) -> float:
        """How long ago the guest's last datagram came; 0 before the first."""
        last_ns = self._engine.last_arrival_ns
        return (time.monotonic_ns() - last_ns) / 1e6 if last_ns else 0.0

    def guest_state(self, flow: int = 0, timeout_s: float = 10) -> dict[str, int]:
        """What the agent has received and sent so far (the fields of STATE_BODY)."""
        return self._agent.ask(Operation.MISSING, self._run_id, QUERY_BODY.pack(), timeout_s, flow=flow)[0]

    # --- the end of a run ---------------------------------------------------------------------------

    def _settle(self, flow: Flow, deadline: float) -> dict[str, int]:
        state = self.guest_state(flow.number, deadline - time.monotonic())
        self._engine.wait_for_rest(flow, state["sent"], SETTLE_SECONDS, deadline)
        looks = 0
        while state["received"] < len(flow.sent_ns) and looks < LOOKS and time.monotonic() < deadline:
            before = state["received"]
            # There is no event to wait for: what is lost never comes.
            time.sleep(SETTLE_SECONDS / LOOKS)
            state = self.guest_state(flow.number, deadline - time.monotonic())
            looks = looks + 1 if state["received"] == before else 0
        return state

    def _flow_report(self, flow: Flow, state: dict[str, int], deadline: float) -> FlowReport:
        def collected(operation: Operation) -> list[tuple[int, int]]:
            return self._agent.collect(operation, self._run_id, flow.number, len(flow.sent_ns), deadline)

        seen = flow.reception
        to_guest = Direction(
            sent=len(flow.sent_ns),
            received=state["received"],
            lost=tuple(intervals_to_numbers(collected(Operation.MISSING))),
            duplicated=dict(collected(Operation.DUPLICATES)) if state["duplicates"] else {},
            overtaken=dict(collected(Operation.REORDERED)) if state["reordered"] else {},
            sent_ns=tuple(flow.sent_ns),
        )
        from_guest = Direction(
            sent=state["sent"],
            received=len(seen.order),
            lost=tuple(seen.missing(state["sent"])),
            duplicated=seen.duplicated,
            overtaken=seen.overtaken,
        )
        return FlowReport(flow.number, to_guest, from_guest, tuple(sorted(seen.times_ns)))

    def _report(
        self, flows: Sequence[FlowReport], states: Sequence[dict[str, int]], deadline: float
    ) -> TrafficReport:
        engine, last = self._engine, states[-1]
        return TrafficReport(
            self._run_id,
            tuple(flows),
            to_guest=Unattributed(last["corrupted"], last["foreign"], engine.send_errors),
            from_guest=Unattributed(engine.corrupted, engine.foreign, last["send_errors"]),
            round_trips=tuple(engine.round_trips),
            stream=self._stream_report(deadline),
        )

    def _stream_report(self, deadline: float) -> StreamReport | None:
        stream = self._stream
        if stream is None:
            return None
        state = self.guest_state()
        while (
            state["stream_phase"] == StreamPhase.OPEN and not stream.problem and time.monotonic() < deadline
        ):
            # Its end has crossed the network, but the agent's thread may not have come round to it.
            time.sleep(SETTLE_SECONDS / 10)
            state = self.guest_state()
        mismatch_at = state["stream_mismatch_at"]
        return StreamReport(
            to_guest_sent=stream.sent,
            to_guest_received=state["stream_received"],
            from_guest_sent=state["stream_sent"],
            from_guest_received=stream.received,
            to_guest_mismatch_at=None if mismatch_at == NOTHING else mismatch_at,
            from_guest_mismatch_at=stream.mismatch_at,
            phase=StreamPhase(state["stream_phase"]),
            problem=stream.problem,
        )

    def close(self) -> None:
        """End everything and give the sockets back."""
        self.abandon()
        self._engine.close()
        self._agent.close()
