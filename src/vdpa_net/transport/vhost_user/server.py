# SPDX-License-Identifier: Apache-2.0
"""The thread that serves one front end after the other, whoever of the two had to connect.

`VhostUserServer` listens, `VhostUserClient` connects and connects again ("Communication" in QEMU's
docs/interop/vhost-user: front end and back end can be either).
"""

from __future__ import annotations

import collections
import contextlib
import os
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path

from vdpa_net.closing import Closing
from vdpa_net.errors import FramingError, PeerGone, ProtocolError, VdpaNetError
from vdpa_net.transport.fdsocket import FdSocket, Listener, close_fds
from vdpa_net.transport.vhost_user.dispatch import Backend, Values, handle
from vdpa_net.transport.vhost_user.session import Header, Request, Session
from vdpa_net.wire.vhost_user import HEADER, ReplyRule

__all__ = ["Backend", "VhostUserClient", "VhostUserPeer", "VhostUserServer"]

_KEPT_ERRORS = 64
_KEPT_MESSAGES = 4096
_NOT_KEPT = ("IOTLB_MSG",)
_MAY_COME_BEFORE_STOPS_ARE_FINISHED = ("GET_VRING_BASE", "SET_STATUS")
_LEAST_PAUSE_S = 0.1
_MOST_PAUSE_S = 1.0


class VhostUserPeer(ABC, Closing):
    """Serves a back end from `start` until `close`.

    One front end is served at a time. When it leaves, however it does, `backend.disconnected()` runs before
    the next one is served. A message that is refused is answered with a non-zero u64 where the front end
    waits for one, or with an empty reply where that is how it learns of it; where it waits for nothing, the
    connection is closed, since the front end would go on believing that it was heard. Errors are kept in
    `errors` (the last 64).
    """

    def __init__(
        self, path: Path, backend: Backend, on_error: Callable[[BaseException], None] | None
    ) -> None:
        self.path = path
        self.errors: collections.deque[BaseException] = collections.deque(maxlen=_KEPT_ERRORS)
        self._backend = backend
        self._on_error = on_error
        self._messages: collections.deque[dict[str, object]] = collections.deque(maxlen=_KEPT_MESSAGES)
        self._lock = threading.Lock()
        self._stopping = False
        self._client: FdSocket | None = None
        self._thread = threading.Thread(target=self._serve, name=f"vhost-user {path.name}", daemon=True)

    @abstractmethod
    def _next_connection(self) -> FdSocket | None:
        """Wait for a front end; None once the peer is closed."""

    @abstractmethod
    def _stop_waiting(self) -> None:
        """Let `_next_connection` return None from now on."""

    def wire_log(self) -> list[dict[str, object]]:
        """The last 4096 messages as they crossed the socket: `monotonic_ns` of their arrival, `message`,
        `payload` (of the answer, where the message has one of its own). Translations, of which there may be
        thousands in a second, are left out."""
        with self._lock:
            return list(self._messages)

    def close(self) -> None:
        """Disconnect the front end and end the thread. Idempotent."""
        with self._lock:
            self._stopping = True
            if self._client is not None:
                self._client.shutdown()
        self._stop_waiting()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _serve(self) -> None:
        while (sock := self._next_connection()) is not None:
            with sock:
                if not self._adopt(sock):
                    return
                try:
                    self._serve_client(sock)
                finally:
                    self._release()

    def _adopt(self, sock: FdSocket) -> bool:
        with self._lock:
            if not self._stopping:
                self._client = sock
            return not self._stopping

    def _release(self) -> None:
        with self._lock:
            self._client = None
        try:
            self._backend.disconnected()
        except BaseException as error:
            self._fail(error)

    def _serve_client(self, sock: FdSocket) -> None:
        session = Session()
        try:
            while True:
                quiet_s = self._backend.quiet_s
                if quiet_s is not None and sock.is_quiet(quiet_s):
                    self._backend.finish_stops()
                self._serve_message(sock, session)
        except PeerGone:
            pass
        except BaseException as error:
            # The stream, or what the front end believes, can't be followed any more.
            self._fail(error)

    def _serve_message(self, sock: FdSocket, session: Session) -> None:
        fds: list[int] = []
        try:
            header = session.header(sock.recv_exact(HEADER.size, fds))
            payload = sock.recv_exact(header.size_bytes, fds) if header.size_bytes else b""
            arrived_ns = time.monotonic_ns()
            if header.name not in _MAY_COME_BEFORE_STOPS_ARE_FINISHED:
                self._backend.finish_stops()
            answer = self._answer(session, header, payload, fds, arrived_ns)
        finally:
            # Whoever keeps a descriptor has duplicated it.
            close_fds(fds)
        if answer is not None:
            sock.send(answer)

    def _answer(
        self, session: Session, header: Header, payload: bytes, fds: Sequence[int], arrived_ns: int
    ) -> bytes | None:
        try:
            request = session.request(header, payload, tuple(fds))
            values = handle(self._backend, session, request)
        except FramingError:
            raise
        except (VdpaNetError, OSError) as error:
            refusal = ProtocolError(f"{header.name}: {error}")
            answer = session.empty_answer(header)
            if answer is None and session.wants_ack(header):
                answer = session.ack(header, success=False)
            if answer is None:
                raise refusal from error
            self._note(arrived_ns, header.name, {"refused": str(error)})
            self._fail(refusal)
            return answer
        self._note(arrived_ns, header.name, {**request.describe(), **_as_json(values or {})})
        return self._reply(session, header, request, values or {})

    @staticmethod
    def _reply(session: Session, header: Header, request: Request, values: Values) -> bytes | None:
        if request.message.reply in (ReplyRule.VALUE, ReplyRule.VALUE_OR_EMPTY):
            return session.answer(request, values)
        return session.ack(header, success=True) if session.wants_ack(header) else None

    def _note(self, arrived_ns: int, name: str, payload: dict[str, object]) -> None:
        if name in _NOT_KEPT:
            return
        with self._lock:
            self._messages.append({"monotonic_ns": arrived_ns, "message": name, "payload": payload})

    def _fail(self, error: BaseException) -> None:
        self.errors.append(error)
        if self._on_error is not None:
            with contextlib.suppress(Exception):
                self._on_error(error)


class VhostUserServer(VhostUserPeer):
    """A `VhostUserPeer` that listens; further front ends wait in the socket's backlog.

    Raises StateError when somebody else serves the path, OptionError when the path can't be a socket.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        backend: Backend,
        *,
        mode: int = 0o600,
        on_error: Callable[[BaseException], None] | None = None,
    ) -> None:
        self._listener = Listener(path, mode)
        super().__init__(self._listener.path, backend, on_error)
        self._thread.start()

    def _next_connection(self) -> FdSocket | None:
        return self._listener.accept()

    def _stop_waiting(self) -> None:
        self._listener.shutdown()

    def close(self) -> None:
        """Disconnect the front end, end the thread, remove the socket file. Idempotent."""
        super().close()
        self._listener.close()


class VhostUserClient(VhostUserPeer):
    """A `VhostUserPeer` that connects to a front end that listens, and again whenever it is gone.

    Attempts are at least 0.1 s apart, at most 1 s where nobody listens.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        backend: Backend,
        *,
        on_error: Callable[[BaseException], None] | None = None,
    ) -> None:
        super().__init__(Path(path), backend, on_error)
        self._closed = threading.Event()
        self._pause_s = 0.0
        self._thread.start()

    def _next_connection(self) -> FdSocket | None:
        while not self._closed.wait(self._pause_s):
            try:
                sock = FdSocket.connect(self.path)
            except PeerGone:
                self._pause_s = min(max(2 * self._pause_s, _LEAST_PAUSE_S), _MOST_PAUSE_S)
                continue
            self._pause_s = _LEAST_PAUSE_S
            return sock
        return None

    def _stop_waiting(self) -> None:
        self._closed.set()


def _as_json(values: Values) -> dict[str, object]:
    return {name: value.hex() if isinstance(value, bytes) else value for name, value in values.items()}
