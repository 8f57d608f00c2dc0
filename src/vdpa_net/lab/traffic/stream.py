# SPDX-License-Identifier: Apache-2.0
"""The lab's end of the TCP stream: known bytes both ways, each checked where they arrive."""

from __future__ import annotations

import os
import select
import socket
import threading
import time

from vdpa_net.errors import LabError
from vdpa_net.lab.traffic.format import STREAM_HELLO

PERIOD_BYTES = 65_521
"""Length of the pattern: a prime, so that no buffer's length divides it."""

CHUNK_BYTES = 16 << 10
TICK_SECONDS = 0.02
_MASK = (1 << 64) - 1


class Pattern:
    """The bytes of a direction, from a seed: position p holds byte p % PERIOD_BYTES."""

    def __init__(self, seed: int) -> None:
        words = b"".join(mix(seed + word).to_bytes(8, "little") for word in range(PERIOD_BYTES // 8 + 1))
        period = words[:PERIOD_BYTES]
        # What begins before the end of a period goes on in one piece.
        self._bytes = period + period

    def at(self, position: int, length: int) -> bytes:
        """`length` (at most PERIOD_BYTES) bytes from this position of the stream on."""
        start = position % PERIOD_BYTES
        return self._bytes[start : start + length]


def mix(value: int) -> int:
    """SplitMix64, as the agent has it."""
    z = (value + 0x9E3779B97F4A7C15) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)


class TcpStream:
    """One connection to the agent, in a thread. `bytes_per_s` is the pace of each direction."""

    def __init__(
        self, peer: tuple[str, int], run_id: int, seed: int, bytes_per_s: int, timeout_s: float
    ) -> None:
        """Connect. Raises LabError."""
        try:
            self._socket = socket.create_connection(peer, timeout_s)
        except OSError as error:
            raise LabError(
                f"no TCP connection to the guest's agent at {peer[0]}:{peer[1]}: {error}"
            ) from error
        self.sent = 0
        self.received = 0
        self.mismatch_at: int | None = None
        self.problem = ""
        self._rate = bytes_per_s
        self._out, self._in = Pattern(seed & _MASK), Pattern(~seed & _MASK)
        hello = STREAM_HELLO.pack(run_id=run_id, seed=seed & _MASK, bytes_per_s=bytes_per_s)
        self._socket.sendall(hello)
        self._socket.setblocking(False)
        self._ending = False
        self._changed = threading.Condition()
        self._wake_read, self._wake_write = os.pipe()
        self._thread = threading.Thread(target=self._guarded_loop, name="traffic stream", daemon=True)
        self._thread.start()

    def wait_received(self, count: int, timeout_s: float) -> None:
        """Return when this many bytes have come from the guest. Raises LabError."""
        with self._changed:
            if not self._changed.wait_for(lambda: self.received >= count, timeout_s):
                got = self.problem or f"got {self.received}"
                raise LabError(
                    f"expected {count} bytes of the stream from the guest within {timeout_s:.3g} s, {got}"
                )

    def finish(self, timeout_s: float) -> None:
        """End our direction and wait for the end of the other one; `problem` tells if that did not work."""
        self._ending = True
        os.write(self._wake_write, b"w")
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            self.problem = self.problem or f"the stream did not end within {timeout_s:g} s"

    def close(self) -> None:
        """Give everything back, whatever state it is in."""
        if self._socket.fileno() < 0:
            return
        self._ending = True
        os.write(self._wake_write, b"x")
        self._thread.join()
        self._socket.close()
        os.close(self._wake_read)
        os.close(self._wake_write)

    def _guarded_loop(self) -> None:
        try:
            self._loop()
        except OSError as error:
            self.problem = f"the connection broke: {error}"

    def _loop(self) -> None:
        due_bytes, last_s, shut, ended = 0.0, time.monotonic(), False, False
        while not (shut and ended):
            if self._ending and not shut:
                self._socket.shutdown(socket.SHUT_WR)
                shut = True
                continue
            writers = [self._socket] if due_bytes >= 1 and not shut else []
            pause_s = None if shut else TICK_SECONDS
            readers = [self._wake_read] if ended else [self._wake_read, self._socket.fileno()]
            readable, writable, _ = select.select(readers, writers, [], pause_s)
            if self._wake_read in readable and os.read(self._wake_read, 1) == b"x":
                return
            if self._socket.fileno() in readable:
                ended = not self._receive()
            if writable:
                due_bytes -= self._send(int(due_bytes))
            now_s = time.monotonic()
            # What was due while the guest stood still is left out.
            due_bytes = min(due_bytes + (now_s - last_s) * self._rate, 4 * CHUNK_BYTES)
            last_s = now_s

    def _send(self, length: int) -> int:
        chunk = self._out.at(self.sent, min(length, CHUNK_BYTES))
        done = self._socket.send(chunk)
        self.sent += done
        return done

    def _receive(self) -> bool:
        data = self._socket.recv(CHUNK_BYTES)
        expected = self._in.at(self.received, len(data))
        if data != expected and self.mismatch_at is None:
            pairs = enumerate(zip(data, expected, strict=True))
            wrong = next(index for index, (got, wanted) in pairs if got != wanted)
            self.mismatch_at = self.received + wrong
        with self._changed:
            self.received += len(data)
            self._changed.notify_all()
        return bool(data)
