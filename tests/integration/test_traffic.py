# SPDX-License-Identifier: Apache-2.0
"""The lab's endpoint and the guest's agent on the loopback interface: two implementations of one format."""

from __future__ import annotations

import os
import select
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from conftest import require
from vdpa_net.errors import LabError, StateError
from vdpa_net.lab import guest
from vdpa_net.lab.traffic.endpoint import TrafficEndpoint
from vdpa_net.lab.traffic.flows import TRICKLE, WINDOW, Flow, FlowEngine, TrafficOptions
from vdpa_net.lab.traffic.format import FLOW_PORT_OFFSET, Kind, StreamPhase, pack_datagram
from vdpa_net.lab.traffic.judge import traffic_lines
from vdpa_net.migration.verdict import Outcome

LAB, GUEST = "127.0.0.1", "127.0.0.2"
SECONDS = 60
PACKETS = 200


@pytest.fixture
def port() -> int:
    """A port behind which nobody has been for a while."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind((LAB, 0))
        return min(int(probe.getsockname()[1]), 65000)


@pytest.fixture
def agent(port: int) -> Iterator[subprocess.Popen[bytes]]:
    """The guest's agent, as a process of this machine."""
    binary = guest.PARTS / f"agent-{os.uname().machine}"
    require(binary.is_file(), "the guest agent (make build)")
    words = ("traffic", "--bind", f"{GUEST}:{port}", "--peer", f"{LAB}:{port}", "--dirty-kib-per-s", "0")
    with subprocess.Popen([str(binary), *words], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert select.select([process.stdout], [], [], SECONDS)[0]
        assert process.stdout.readline() == b"LAB ready traffic\n"
        yield process
        process.kill()


def endpoint(port: int, **options: object) -> TrafficEndpoint:
    return TrafficEndpoint((LAB, port), (GUEST, port), TrafficOptions(**options))  # type: ignore[arg-type]


@pytest.mark.usefixtures("agent", "no_fd_leak")
@pytest.mark.parametrize("flows", [1, 4])
def test_sound_network_passes_in_every_line_run_after_run(port: int, flows: int) -> None:
    with endpoint(port, flows=flows, rate_pps=2000) as traffic:
        for _ in range(2):
            traffic.start(SECONDS)
            traffic.wait_received(PACKETS, SECONDS)
            report = traffic.finish(SECONDS)
            assert [line.outcome for line in traffic_lines(report, None)] == [Outcome.PASS] * 3
            assert len(report.flows) == flows
            assert all(flow.from_guest.received > PACKETS // flows // 2 for flow in report.flows)
            assert report.stream is not None
            assert report.stream.phase is StreamPhase.ENDED
            assert report.stream.from_guest_received > 0
            assert report.round_trips
            assert all(0 <= taken_ns < SECONDS * 10**9 for _, taken_ns in report.round_trips)


@pytest.mark.usefixtures("agent")
def test_agent_names_what_is_lost_doubled_and_late(port: int) -> None:
    with endpoint(port, stream_bytes_per_s=0, rate_pps=1) as traffic:
        run_id = traffic.start(SECONDS)
        traffic.wait_received(1, SECONDS)
        flow = traffic._engine.flows[0]
        # Our own packets come from the flow's socket, so that the agent's connected one takes them.
        for sequence in (1000, 1002, 1001, 1002):
            flow.socket.sendto(pack_datagram(Kind.DATA, run_id, sequence, 0, bytes(16)), flow.peer)
        flow.sent_ns.extend(0 for _ in range(1004 - len(flow.sent_ns)))
        report = traffic.finish(SECONDS).flows[0].to_guest
    assert 1003 in report.lost
    assert not {1000, 1001, 1002} & set(report.lost)
    assert report.duplicated == {1002: 1}
    # The endpoint's own first packet may come after those of the test: that is overtaken as well.
    ours = {sequence: by for sequence, by in report.overtaken.items() if sequence >= 1000}
    assert ours == {1001: 1002}


def test_flow_trickles_while_the_guest_is_behind() -> None:
    flow = Flow.__new__(Flow)
    flow.reset(1, (80, 80))
    flow.sent_ns.extend(range(WINDOW))
    assert flow.may_send(WINDOW)
    flow.sent_ns.append(0)
    assert [flow.may_send(WINDOW) for _ in range(2 * TRICKLE)].count(True) == 2
    flow.acknowledged = 1
    assert flow.may_send(WINDOW)


def test_what_comes_behind_a_look_that_saw_nothing_new_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that has stood still goes on with whoever it likes: with the one who looks, say."""
    arrivals = iter([(), (0,), (), (1, 2)])
    flow = Flow.__new__(Flow)
    flow.reset(1, (80, 80))
    flow.number = 0
    flow.sent_ns.extend(range(3))

    class Standstill(threading.Condition):
        def wait_for(self, predicate: Callable[[], bool], _timeout: float | None = None) -> bool:
            for sequence in next(arrivals, ()):
                flow.reception.accept(sequence, 0)
            return predicate()

    traffic = TrafficEndpoint.__new__(TrafficEndpoint)
    traffic._engine = FlowEngine.__new__(FlowEngine)
    traffic._engine.changed = Standstill()
    states = iter({"sent": 3, "received": received} for received in (0, 0, 1, 1, 3))
    monkeypatch.setattr(traffic, "guest_state", lambda *_: next(states))
    assert traffic._settle(flow, time.monotonic() + SECONDS)["received"] == 3
    assert flow.reception.order == [0, 1, 2]


@pytest.mark.usefixtures("agent")
def test_damaged_and_foreign_datagrams_are_counted_by_the_agent(port: int) -> None:
    with endpoint(port, stream_bytes_per_s=0) as traffic:
        run_id = traffic.start(SECONDS)
        flow = traffic._engine.flows[0]
        packet = bytearray(pack_datagram(Kind.DATA, run_id, 5, 0, bytes(60)))
        packet[70] ^= 1
        flow.socket.sendto(packet, flow.peer)
        flow.socket.sendto(pack_datagram(Kind.DATA, run_id + 1, 5, 0, bytes(60)), flow.peer)
        # The agent's answer is from another thread than its counting.
        while not traffic.guest_state()["foreign"]:
            continue
        report = traffic.finish(SECONDS)
    assert (report.to_guest.corrupted, report.to_guest.foreign) == (1, 1)


@pytest.mark.usefixtures("no_fd_leak")
def test_agent_that_is_not_there_is_an_error_in_time(port: int) -> None:
    with endpoint(port) as traffic, pytest.raises(LabError, match=r"did not answer START in 1 s"):
        traffic.start(1)


@pytest.mark.usefixtures("agent", "no_fd_leak")
def test_agent_that_dies_in_a_run_leaves_an_endpoint_that_can_be_closed(
    port: int, agent: subprocess.Popen[bytes]
) -> None:
    with endpoint(port) as traffic:
        traffic.start(SECONDS)
        with pytest.raises(StateError):
            traffic.start(SECONDS)
        agent.kill()
        agent.wait()
        with pytest.raises(LabError):
            traffic.finish(1)


def test_port_that_is_taken_is_named(port: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind((LAB, port + FLOW_PORT_OFFSET + 1))
        with pytest.raises(LabError, match=str(port + FLOW_PORT_OFFSET + 1)):
            endpoint(port, flows=2)


def test_agent_refuses_what_it_does_not_know() -> None:
    binary: Path = guest.PARTS / f"agent-{os.uname().machine}"
    require(binary.is_file(), "the guest agent (make build)")
    for words, named in ((["run"], "run"), (["traffic", "--bind", "x"], "x"), (["traffic"], "--bind")):
        done = subprocess.run([str(binary), *words], capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert named in done.stderr
