# SPDX-License-Identifier: Apache-2.0
"""Asks the guest's agent, and goes on asking until it answers."""

from __future__ import annotations

import contextlib
import select
import socket
import time
from collections.abc import Callable

from vdpa_net.errors import LabError
from vdpa_net.lab.traffic.format import (
    QUERY_BODY,
    Kind,
    Operation,
    pack_datagram,
    unpack_datagram,
    unpack_reply,
)

RETRY_SECONDS = 0.25
PATIENT_SHARE = 1 / 8
"""The longer it has not answered, the rarer it is asked: each wait is this share of the time so far. A guest
of a guest takes a second for a packet: requests that pile up before it would be all that it has to do."""

Pairs = list[tuple[int, int]]


class AgentClient:
    """The lab's end of the agent's control port. It owns the socket.

    `check` is called before each try; what it raises ends the asking.
    """

    def __init__(self, opened: socket.socket, peer: tuple[str, int], check: Callable[[], None]) -> None:
        self._socket = opened
        self._peer = peer
        self._check = check
        self._request = 0

    def ask(
        self, operation: Operation, run_id: int, body: bytes, timeout_s: float, *, flow: int = 0
    ) -> tuple[dict[str, int], Pairs]:
        """State and pairs of the answer. Raises LabError if there is none in time."""
        self._request += 1
        begun = time.monotonic()
        while (waited_s := time.monotonic() - begun) < timeout_s:
            self._check()
            request = pack_datagram(
                Kind.REQUEST,
                run_id,
                self._request,
                time.monotonic_ns(),
                body,
                operation=operation,
                flow=flow,
            )
            # The guest's network may not be up yet; the request is repeated anyway.
            with contextlib.suppress(OSError):
                self._socket.sendto(request, self._peer)
            pause_s = max(RETRY_SECONDS, waited_s * PATIENT_SHARE)
            if (reply := self._await_reply(min(pause_s, timeout_s - waited_s))) is not None:
                return reply
        host, port = self._peer
        raise LabError(
            f"the guest's agent at {host}:{port} did not answer {operation.name} in {timeout_s:.3g} s"
        )

    def collect(self, operation: Operation, run_id: int, flow: int, sent: int, deadline: float) -> Pairs:
        """All pairs of a flow, in as many requests as it takes; `deadline` is of time.monotonic()."""
        found: Pairs = []
        start, more = 0, True
        while more:
            body = QUERY_BODY.pack(from_sequence=start, to_sequence=sent)
            state, pairs = self.ask(operation, run_id, body, deadline - time.monotonic(), flow=flow)
            found.extend(pairs)
            more = bool(state["more"]) and bool(pairs)
            if more:
                start = 1 + pairs[-1][1 if operation is Operation.MISSING else 0]
        return found

    def close(self) -> None:
        """Give the socket back."""
        self._socket.close()

    def _await_reply(self, timeout_s: float) -> tuple[dict[str, int], Pairs] | None:
        deadline = time.monotonic() + timeout_s
        while (left := deadline - time.monotonic()) > 0:
            if not select.select([self._socket], [], [], left)[0]:
                break
            with contextlib.suppress(OSError, ValueError):
                data = self._socket.recv(2048)
                header = unpack_datagram(data)
                if header and (header["kind"], header["sequence"]) == (Kind.REPLY, self._request):
                    return unpack_reply(data)
        return None
