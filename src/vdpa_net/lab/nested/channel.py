# SPDX-License-Identifier: Apache-2.0
"""The control channel between the lab and its agent in a level-1 guest: calls and byte streams in JSON lines.

    -> {"id": 1, "method": "modprobe", "params": {"names": ["vfio-pci"]}}
    <- {"id": 1, "result": null}      or      {"id": 1, "error": {"type": "OSError", "message": "..."}}
    <> {"stream": 3, "data": "<base64>"}        {"stream": 3, "end": true}

Both ends are a `Channel`; calls may overlap. A stream joins a socket here with one there: whoever calls for
something that brings streams chooses their numbers and adds its own ends first, so that nothing gets lost.
The package runs in the guest, too: what is imported here is there.
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import os
import queue
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from vdpa_net.errors import PeerError, PeerGone

CHUNK_BYTES = 1 << 16
CALL_SECONDS = 120.0
Method = Callable[..., Any]


class Channel:
    """One end, on a file descriptor that it owns. Methods are called in a thread per request."""

    def __init__(self, fd: int, name: str, methods: Mapping[str, Method] | None = None) -> None:
        self.name = name
        self._fd = fd
        self._methods = dict(methods or {})
        self._write_lock = threading.Lock()
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._waiting: dict[int, queue.SimpleQueue[Mapping[str, Any] | None]] = {}
        self._streams: dict[int, socket.socket] = {}
        self._half_ended: set[int] = set()
        self._gone = False
        self._reader = threading.Thread(target=self._read, name=f"channel {name}", daemon=True)

    def start(self) -> None:
        """Begin to listen."""
        self._reader.start()

    def next_number(self) -> int:
        """A number for a stream that this end asks for."""
        return next(self._numbers)

    def call(self, method: str, /, *, within_s: float = CALL_SECONDS, **params: Any) -> Any:
        """Call a method of the other end. Raises PeerError with its exception, PeerGone without it."""
        number = next(self._numbers)
        answers: queue.SimpleQueue[Mapping[str, Any] | None] = queue.SimpleQueue()
        with self._lock:
            if self._gone:
                raise PeerGone(f"{self.name} is gone")
            self._waiting[number] = answers
        try:
            self._send({"id": number, "method": method, "params": params})
            answer = answers.get(timeout=within_s)
        except queue.Empty:
            raise PeerError(f"{self.name} did not answer {method} within {within_s:g} s") from None
        finally:
            with self._lock:
                self._waiting.pop(number, None)
        if answer is None:
            raise PeerGone(f"{self.name} went away during {method}")
        if (error := answer.get("error")) is not None:
            raise PeerError(f"{self.name}: {method}: {error['type']}: {error['message']}")
        return answer.get("result")

    def add_stream(self, number: int, end: socket.socket) -> None:
        """Join this socket, which it owns from now on, with the other end's stream of that number."""
        with self._lock:
            if self._gone:
                end.close()
                raise PeerGone(f"{self.name} is gone")
            self._streams[number] = end
        name = f"stream {number} of {self.name}"
        threading.Thread(target=self._pump, args=(number, end), name=name, daemon=True).start()

    def join(self) -> None:
        """Return when the other end has gone."""
        self._reader.join()

    def _send(self, message: Mapping[str, Any]) -> None:
        data = memoryview(json.dumps(message).encode() + b"\n")
        with self._write_lock:
            try:
                while data:
                    data = data[os.write(self._fd, data) :]
            except OSError as error:
                raise PeerGone(f"{self.name} is gone: {error.strerror}") from error

    def _pump(self, number: int, end: socket.socket) -> None:
        try:
            while chunk := end.recv(CHUNK_BYTES):
                self._send({"stream": number, "data": base64.b64encode(chunk).decode()})
            self._send({"stream": number, "end": True})
        except (OSError, PeerGone):
            return
        self._half_end(number)

    def _half_end(self, number: int) -> None:
        """One direction of a stream has ended; with the other one it is closed."""
        with self._lock:
            if number not in self._streams:
                # The channel has ended meanwhile, and its streams with it.
                return
            if number in self._half_ended:
                self._half_ended.discard(number)
                self._streams.pop(number).close()
            else:
                self._half_ended.add(number)

    def _read(self) -> None:
        for line in self._lines():
            message = json.loads(line)
            if "stream" in message:
                self._feed_stream(message)
            elif "method" in message:
                threading.Thread(target=self._serve, args=(message,), daemon=True).start()
            else:
                with self._lock:
                    waiting = self._waiting.get(message["id"])
                if waiting is not None:
                    waiting.put(message)
        self._end()

    def _lines(self) -> Iterator[bytes]:
        rest = b""
        while chunk := self._chunk():
            *complete, rest = (rest + chunk).split(b"\n")
            yield from complete

    def _chunk(self) -> bytes:
        try:
            return os.read(self._fd, CHUNK_BYTES)
        except OSError:
            return b""

    def _feed_stream(self, message: Mapping[str, Any]) -> None:
        with self._lock:
            end = self._streams.get(message["stream"])
        if end is None:
            return
        # Whoever has the socket's other end may have closed it, and misses nothing.
        with contextlib.suppress(OSError):
            if message.get("end"):
                end.shutdown(socket.SHUT_WR)
            else:
                end.sendall(base64.b64decode(message["data"]))
        if message.get("end"):
            self._half_end(message["stream"])

    def _serve(self, request: Mapping[str, Any]) -> None:
        answer: dict[str, Any] = {"id": request["id"]}
        try:
            method = self._methods.get(request["method"])
            if method is None:
                raise PeerError(f"no method {request['method']!r}")
            answer["result"] = method(**request.get("params", {}))
        except Exception as error:
            answer["error"] = {"type": type(error).__name__, "message": str(error)}
        try:
            self._send(answer)
        except PeerGone:
            return

    def _end(self) -> None:
        with self._lock:
            self._gone = True
            waiting, streams = list(self._waiting.values()), list(self._streams.values())
            self._streams.clear()
        for answers in waiting:
            answers.put(None)
        for end in streams:
            # A thread that waits for it would keep a socket open that is only closed.
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        with self._write_lock:
            os.close(self._fd)
            self._fd = -1
