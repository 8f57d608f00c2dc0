# SPDX-License-Identifier: Apache-2.0
"""The control channel: JSON lines over a Unix socket, to look into and steer another process of ours.

    -> {"id": 1, "method": "snapshot", "params": {"queue": 0}}
    <- {"id": 1, "result": ...}     or     {"id": 1, "error": {"type": "StateError", "message": "..."}}

One line is one request, UTF-8, at most 1 MiB; answers may be longer. Each client is answered in the order of
its requests. Whatever is wrong with a request is told in an error object, and the connection lives on.
"""

from __future__ import annotations

import errno
import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping

from vdpa_net.closing import Closing
from vdpa_net.errors import PeerError, PeerGone, ProtocolError
from vdpa_net.transport.fdsocket import FdSocket, Listener

MAX_REQUEST_BYTES = 1 << 20
MAX_ANSWER_BYTES = 1 << 30
_PIECE_BYTES = 1 << 16


class ControlServer(Closing):
    """Offers methods on a Unix socket from construction until `close`; one thread per client.

    A method is called with the request's params as keywords, from several threads when there are several
    clients, and returns something that JSON can express. Its exceptions are answered, not raised.
    """

    def __init__(
        self, path: str | os.PathLike[str], methods: Mapping[str, Callable[..., object]], *, mode: int = 0o600
    ) -> None:
        """Raises StateError when somebody else serves the path, OptionError when it can't be a socket."""
        self._methods = dict(methods)
        self._lock = threading.Lock()
        self._stopping = False
        self._clients: dict[FdSocket, threading.Thread] = {}
        self._listener = Listener(path, mode)
        self.path = self._listener.path
        self._thread = threading.Thread(target=self._accept, name=f"control {self.path.name}", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Disconnect all clients, end the threads, remove the socket file. Idempotent.

        A method that calls this does not wait for itself.
        """
        with self._lock:
            self._stopping = True
            clients = dict(self._clients)
            for sock in clients:
                sock.shutdown()
        self._listener.shutdown()
        for thread in (self._thread, *clients.values()):
            if thread is not threading.current_thread():
                thread.join()
        self._listener.close()

    def _accept(self) -> None:
        while (sock := self._listener.accept()) is not None:
            with self._lock:
                if self._stopping:
                    sock.close()
                    return
                name = f"control client {sock.fileno()}"
                thread = threading.Thread(target=self._serve, args=(sock,), name=name, daemon=True)
                self._clients[sock] = thread
                thread.start()

    def _serve(self, sock: FdSocket) -> None:
        try:
            for line in _lines(sock, MAX_REQUEST_BYTES):
                sock.send(self._answer(line) + b"\n")
        except PeerGone:
            pass
        finally:
            with self._lock:
                self._clients.pop(sock, None)
                sock.close()

    def _answer(self, line: bytes | None) -> bytes:
        """The answer to a line; None stands for a line that was too long."""
        number: object = None
        try:
            request = _parse_request(line)
            number = request.get("id")
            answer: dict[str, object] = {"id": number, "result": self._call(request)}
            return json.dumps(answer).encode()
        except Exception as error:
            described = {"type": type(error).__name__, "message": str(error)}
            return json.dumps({"id": number, "error": described}).encode()

    def _call(self, request: Mapping[str, object]) -> object:
        name = request.get("method")
        params = request.get("params", {})
        method = self._methods.get(name) if isinstance(name, str) else None
        if method is None:
            raise ProtocolError(f"method {name!r}: expected one of {', '.join(sorted(self._methods))}")
        if not isinstance(params, dict):
            raise ProtocolError(f"params of {name}: expected an object, got {type(params).__name__}")
        return method(**params)


def _parse_request(line: bytes | None) -> dict[str, object]:
    if line is None:
        raise ProtocolError(f"a request of more than {MAX_REQUEST_BYTES} bytes: it was dropped")
    try:
        request = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"not JSON: {error}") from error
    if not isinstance(request, dict):
        raise ProtocolError(f"a request is a JSON object, got {type(request).__name__}")
    return request


def _lines(sock: FdSocket, limit: int) -> Iterator[bytes | None]:
    """Lines without their newline; None for each that is longer than `limit`. Raises PeerGone at the end."""
    line = bytearray()
    too_long = False
    while True:
        *ended, rest = sock.recv_some(_PIECE_BYTES).split(b"\n")
        for piece in ended:
            line += piece
            yield None if too_long or len(line) > limit else bytes(line)
            line.clear()
            too_long = False
        line += rest
        if len(line) > limit:
            line.clear()
            too_long = True


class ControlClient(Closing):
    """Calls the methods of a ControlServer. Thread-safe: one call at a time."""

    def __init__(self, path: str | os.PathLike[str], *, timeout_s: float = 60.0) -> None:
        """Raises PeerGone when nobody listens. `timeout_s` bounds how long a call may make no progress."""
        self._lock = threading.Lock()
        self._sock = FdSocket.connect(path)
        self._sock.set_timeout(timeout_s)
        self._answers = _lines(self._sock, MAX_ANSWER_BYTES)
        self._last_id = 0

    def call(self, method: str, **params: object) -> object:
        """Call a method and return its result.

        Raises PeerError with the type and message of the method's exception, PeerGone when the server is gone
        or does not answer in time, ProtocolError when its answer makes no sense.
        """
        with self._lock:
            self._last_id += 1
            request = {"id": self._last_id, "method": method, "params": params}
            try:
                self._sock.send(json.dumps(request).encode() + b"\n")
                return _result(next(self._answers, None), self._last_id)
            except (PeerGone, ProtocolError):
                # A late answer must not be taken for that of the next call.
                self._sock.close()
                raise

    def close(self) -> None:
        """Disconnect. Idempotent."""
        self._sock.shutdown()
        with self._lock:
            self._sock.close()


def _result(line: bytes | None, number: int) -> object:
    if line is None:
        raise PeerGone("the control server is gone", errno=errno.ECONNRESET)
    try:
        answer = json.loads(line)
    except ValueError as error:
        raise ProtocolError(f"the control server's answer is not JSON: {error}") from error
    if not isinstance(answer, dict) or answer.get("id") != number:
        raise ProtocolError(f"the control server's answer is not that to request {number}: {line[:80]!r}")
    refused = answer.get("error")
    if refused is None:
        return answer.get("result")
    if not isinstance(refused, dict):
        raise ProtocolError(f"the control server's error is not an object: {refused!r}")
    raise PeerError(f"{refused.get('type')}: {refused.get('message')}")
