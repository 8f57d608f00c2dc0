# SPDX-License-Identifier: Apache-2.0
"""The lab's end of the traffic: a thread with two UDP sockets in the network of its maker.

    with TrafficEndpoint(("10.87.0.1", 7000), "10.87.0.2", rate_pps=1000, seed=1) as endpoint:
        endpoint.start(timeout_s=60)
        endpoint.wait_received(100, timeout_s=10)
        ...                                       # migrate
        report = endpoint.finish(timeout_s=30)

`start` may be called again after `finish`: each run counts from 0.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import threading
import time
from array import array
from collections.abc import Iterator
from types import TracebackType
from typing import Self

from vdpa_net.errors import LabError, StateError
from vdpa_net.lab.traffic.format import (
    BODY_OFFSET,
    PAIR,
    QUERY_BODY,
    START_BODY,
    STATE_BODY,
    SUMMARY,
    Filler,
    Kind,
    Operation,
    pack_datagram,
    unpack_datagram,
)
from vdpa_net.lab.traffic.reception import Direction, Reception, TrafficReport, intervals_to_numbers

SOCKET_BUFFER_BYTES = 8 << 20
RETRY_SECONDS = 0.25
SETTLE_SECONDS = 0.5
MAX_BURST = 64
_SO_RCVBUFFORCE = 33
_SO_TIMESTAMPNS = 35
_TIMESPEC = struct.Struct("qq")


class TrafficEndpoint:
    """Sends to the guest, receives from it, and asks its agent what arrived there.

    `local` is where the guest's stream arrives; the agent's data port is the same, its control port the next.
    `lengths` is the range of payload lengths in bytes, both ways; `guest_rate_pps` is that of the guest's
    stream (None: the same).
    """

    def __init__(
        self,
        local: tuple[str, int],
        guest_address: str,
        *,
        rate_pps: int = 1000,
        guest_rate_pps: int | None = None,
        lengths: tuple[int, int] = (80, 1400),
        seed: int = 0,
        guest_port: int | None = None,
    ) -> None:
        port = guest_port or local[1]
        self._rate_pps = rate_pps
        self._guest_rate_pps = rate_pps if guest_rate_pps is None else guest_rate_pps
        self._lengths = lengths
        self._seed = seed
        self._data_peer = (guest_address, port)
        self._control_peer = (guest_address, port + 1)
        self._data = _open_socket(local)
        self._control = _open_socket((local[0], 0))
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._wake_read, self._wake_write = os.pipe()
        self._request = 0
        self._reset(0)

    def _reset(self, run_id: int) -> None:
        self._run_id = run_id
        self._sent_ns = array("q")
        self._send_errors = 0
        self._reception = Reception()
        self._sending = False
        self._failure: Exception | None = None

    @property
    def local_port(self) -> int:
        """The UDP port of the data socket."""
        return int(self._data.getsockname()[1])

    def start(self, timeout_s: float = 60) -> int:
        """Begin a run: the agent's stream and ours. Returns the run id.

        Raises LabError if the agent does not answer, StateError if a run is going on.
        """
        if self._thread is not None:
            raise StateError("a run of traffic is going on, expected finish() before the next start()")
        self._reset(int.from_bytes(os.urandom(7), "little") + 1)
        self._thread = threading.Thread(target=self._guarded_loop, name="traffic", daemon=True)
        low, high = self._lengths
        body = START_BODY.pack(
            rate_pps=self._guest_rate_pps, min_length=low, max_length=high, seed=self._seed
        )
        # Our thread counts from before the request on, so that nothing of the agent's stream is missed.
        self._thread.start()
        try:
            self._ask(Operation.START, body, timeout_s)
        except LabError:
            self._end_thread()
            raise
        self._sending = True
        self._wake()
        return self._run_id

    def wait_received(self, count: int, timeout_s: float) -> None:
        """Return when this many datagrams of the guest have arrived in this run. Raises LabError."""
        with self._changed:
            arrived = self._changed.wait_for(
                lambda: len(self._reception.order) >= count or self._failure is not None, timeout_s
            )
            self._check()
            if not arrived:
                got = len(self._reception.order)
                raise LabError(f"expected {count} datagrams from the guest, got {got} within {timeout_s:g} s")

    def wait_arrival_after(self, instant_ns: int, timeout_s: float) -> int:
        """When the first datagram after an instant (CLOCK_MONOTONIC) arrived, as soon as one has."""

        def found() -> bool:
            times = self._reception.times_ns
            return bool(times and times[-1] > instant_ns) or self._failure is not None

        with self._changed:
            arrived = self._changed.wait_for(found, timeout_s)
            self._check()
            if not arrived:
                raise LabError(f"expected a datagram from the guest, none within {timeout_s:g} s")
            return next(time_ns for time_ns in self._reception.times_ns if time_ns > instant_ns)

    @property
    def received(self) -> int:
        """Datagrams of the guest so far in this run."""
        return len(self._reception.order)

    @property
    def sent(self) -> int:
        """Datagrams to the guest so far in this run."""
        return len(self._sent_ns)

    def guest_summary(self, timeout_s: float = 10) -> dict[str, int]:
        """What the agent has received and sent so far."""
        return self._ask(Operation.MISSING, QUERY_BODY.pack(), timeout_s)[0]

    def finish(self, timeout_s: float = 30) -> TrafficReport:
        """End both streams, wait for what is on its way, ask for what arrived. Raises LabError."""
        if self._thread is None:
            raise StateError("no run of traffic is going on, expected start() before finish()")
        deadline = time.monotonic() + timeout_s
        try:
            self._sending = False
            state, _ = self._ask(Operation.STOP, b"", timeout_s)
            self._wait_for_rest(state["sent"], deadline)
            state = self._wait_for_guest(deadline)
            lost = intervals_to_numbers(self._collect(Operation.MISSING, deadline))
            duplicated = dict(self._collect(Operation.DUPLICATES, deadline))
        finally:
            self._end_thread()
        self._check()
        return self._report(state, lost, duplicated)

    def _report(self, state: dict[str, int], lost: list[int], duplicated: dict[int, int]) -> TrafficReport:
        seen = self._reception
        to_guest = Direction(
            sent=len(self._sent_ns),
            received=state["received"],
            lost=tuple(lost),
            duplicated=duplicated,
            reordered=state["reordered"],
            corrupted=state["corrupted"],
            foreign=state["foreign"],
            send_errors=self._send_errors,
            lost_sent_ns=tuple(self._sent_ns[sequence] for sequence in lost),
        )
        from_guest = Direction(
            sent=state["sent"],
            received=len(seen.order),
            lost=tuple(seen.missing(state["sent"])),
            duplicated=seen.duplicated,
            reordered=seen.reordered,
            corrupted=seen.corrupted,
            foreign=seen.foreign,
            send_errors=state["send_errors"],
        )
        return TrafficReport(self._run_id, to_guest, from_guest, tuple(sorted(seen.times_ns)))

    def _wait_for_rest(self, sent: int, deadline: float) -> None:
        # What has not come when nothing has come for a while is lost.
        with self._changed:
            while len(self._reception.order) < sent and time.monotonic() < deadline:
                before = len(self._reception.order)
                self._changed.wait_for(lambda: len(self._reception.order) >= sent, SETTLE_SECONDS)
                if len(self._reception.order) == before:
                    return

    def _wait_for_guest(self, deadline: float) -> dict[str, int]:
        state, _ = self._ask(Operation.MISSING, QUERY_BODY.pack(), deadline - time.monotonic())
        while state["received"] < len(self._sent_ns) and time.monotonic() < deadline:
            before = state["received"]
            # There is no event to wait for: what is lost never comes.
            time.sleep(SETTLE_SECONDS)
            state, _ = self._ask(Operation.MISSING, QUERY_BODY.pack(), deadline - time.monotonic())
            if state["received"] == before:
                break
        return state

    def _collect(self, operation: Operation, deadline: float) -> list[tuple[int, int]]:
        found: list[tuple[int, int]] = []
        start, more = 0, True
        while more:
            body = QUERY_BODY.pack(from_sequence=start, to_sequence=len(self._sent_ns))
            state, pairs = self._ask(operation, body, deadline - time.monotonic())
            found.extend(pairs)
            more = bool(state["more"]) and bool(pairs)
            if more:
                start = 1 + (pairs[-1][1] if operation is Operation.MISSING else pairs[-1][0])
        return found

    def _ask(
        self, operation: Operation, body: bytes, timeout_s: float
    ) -> tuple[dict[str, int], list[tuple[int, int]]]:
        self._request += 1
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            self._check()
            request = pack_datagram(
                Kind.REQUEST, self._run_id, self._request, time.monotonic_ns(), body, operation=operation
            )
            # The guest's network may not be up yet; the request is repeated anyway.
            with contextlib.suppress(OSError):
                self._control.sendto(request, self._control_peer)
            if (reply := self._await_reply(RETRY_SECONDS)) is not None:
                return reply
        host, port = self._control_peer
        raise LabError(
            f"the guest's agent at {host}:{port} did not answer {operation.name} in {timeout_s:g} s"
        )

    def _await_reply(self, timeout_s: float) -> tuple[dict[str, int], list[tuple[int, int]]] | None:
        deadline = time.monotonic() + timeout_s
        while (left := deadline - time.monotonic()) > 0:
            if not select.select([self._control], [], [], left)[0]:
                break
            with contextlib.suppress(OSError, ValueError):
                data = self._control.recv(2048)
                header = unpack_datagram(data)
                if header and (header["kind"], header["sequence"]) == (Kind.REPLY, self._request):
                    return parse_reply(data)
        return None

    def _guarded_loop(self) -> None:
        try:
            self._loop()
        except Exception as error:
            with self._changed:
                self._failure = error
                self._changed.notify_all()

    def _loop(self) -> None:
        filler = Filler(self._seed, self._lengths)
        interval_ns = 1_000_000_000 // self._rate_pps
        due_ns = 0
        while True:
            now_ns = time.monotonic_ns()
            wait_s = max(0.0, (due_ns - now_ns) / 1e9) if self._sending else None
            readable = select.select([self._data.fileno(), self._wake_read], [], [], wait_s)[0]
            if self._data.fileno() in readable:
                self._receive()
            if self._wake_read in readable and os.read(self._wake_read, 1) == b"x":
                return
            if not self._sending:
                continue
            now_ns = time.monotonic_ns()
            # After a pause of this thread only the latest packets are made up for.
            due_ns = max(due_ns or now_ns, now_ns - MAX_BURST * interval_ns)
            while due_ns <= now_ns:
                self._send(filler.body())
                due_ns += interval_ns

    def _send(self, body: bytes) -> None:
        now_ns = time.monotonic_ns()
        sequence = len(self._sent_ns)
        packet = pack_datagram(
            Kind.DATA, self._run_id, sequence, now_ns, body, summary=self._reception.summary()
        )
        try:
            self._data.sendto(packet, self._data_peer)
        except OSError:
            self._send_errors += 1
        # When it is in the receiver's queue for certain: what was sent before a stop has to arrive.
        self._sent_ns.append(time.monotonic_ns())

    def _receive(self) -> None:
        offset_ns = time.monotonic_ns() - time.time_ns()
        with self._changed:
            for data, stamp_ns in _drain(self._data):
                header = unpack_datagram(data)
                if header is None:
                    self._reception.corrupted += 1
                elif (header["kind"], header["run_id"]) != (Kind.DATA, self._run_id):
                    self._reception.foreign += 1
                else:
                    self._reception.accept(header["sequence"], stamp_ns + offset_ns)
            self._changed.notify_all()

    def _check(self) -> None:
        if self._failure is not None:
            raise LabError(f"the traffic's thread failed: {self._failure!r}") from self._failure

    def _wake(self, word: bytes = b"w") -> None:
        os.write(self._wake_write, word)

    def _end_thread(self) -> None:
        if self._thread is not None:
            self._wake(b"x")
            self._thread.join()
            self._thread = None

    def close(self) -> None:
        """End the thread and give the sockets back."""
        self._end_thread()
        self._data.close()
        self._control.close()
        os.close(self._wake_read)
        os.close(self._wake_write)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def parse_reply(data: bytes) -> tuple[dict[str, int], list[tuple[int, int]]]:
    """State (fields of SUMMARY and STATE_BODY) and pairs of a reply. Raises ValueError if it is cut short."""
    state = {**SUMMARY.unpack(data, BODY_OFFSET - SUMMARY.size), **STATE_BODY.unpack(data, BODY_OFFSET)}
    start = BODY_OFFSET + STATE_BODY.size
    unpacked = (PAIR.unpack(data, start + index * PAIR.size) for index in range(state["pairs"]))
    return state, [(pair["first"], pair["second"]) for pair in unpacked]


def _open_socket(address: tuple[str, int]) -> socket.socket:
    opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    try:
        opened.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, SOCKET_BUFFER_BYTES)
    except PermissionError:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BUFFER_BYTES)
    # The kernel's time of arrival: what this process was busy with meanwhile does not show in it.
    opened.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
    try:
        opened.bind(address)
    except OSError as error:
        opened.close()
        raise LabError(
            f"the traffic's socket can't be bound to {address[0]}:{address[1]}: {error}"
        ) from error
    return opened


def _drain(opened: socket.socket) -> Iterator[tuple[bytes, int]]:
    """What has arrived, with the time of its arrival (CLOCK_REALTIME, ns)."""
    while True:
        try:
            data, ancillary, _, _ = opened.recvmsg(2048, 64)
        except BlockingIOError:
            return
        stamp = next((value for _, kind, value in ancillary if kind == _SO_TIMESTAMPNS), None)
        if stamp is None:
            yield data, time.time_ns()
        else:
            seconds, nanoseconds = _TIMESPEC.unpack(stamp[: _TIMESPEC.size])
            yield data, seconds * 1_000_000_000 + nanoseconds
