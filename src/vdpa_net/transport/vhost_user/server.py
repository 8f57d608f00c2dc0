# SPDX-License-Identifier: Apache-2.0
"""The vhost-user server: a socket, a thread, one front end at a time."""

from __future__ import annotations

import collections
import contextlib
import os
import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from vdpa_net.errors import FramingError, PeerGone, ProtocolError, VdpaNetError
from vdpa_net.transport.fdsocket import FdSocket, Listener, close_fds
from vdpa_net.transport.vhost_user.dispatch import Backend, handle
from vdpa_net.transport.vhost_user.session import Header, Request, Session
from vdpa_net.wire.vhost_user import HEADER, ReplyRule

__all__ = ["Backend", "VhostUserServer"]

_KEPT_ERRORS = 64
_KEPT_MESSAGES = 4096


class VhostUserServer:
    """Serves a back end on a Unix socket from construction until `close`.

    One front end is served at a time; others wait in the socket's backlog. When it leaves, however it does,
    `backend.disconnected()` runs before the next one is served. A message that is refused is answered with a
    non-zero u64 where the front end waits for one; where it does not, the connection is closed, since the
    front end would go on believing that it was heard. Errors are kept in `errors` (the last 64).
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
        self.errors: collections.deque[BaseException] = collections.deque(maxlen=_KEPT_ERRORS)
        self._backend = backend
        self._on_error = on_error
        self._messages: collections.deque[dict[str, object]] = collections.deque(maxlen=_KEPT_MESSAGES)
        self._lock = threading.Lock()
        self._stopping = False
        self._client: FdSocket | None = None
        self._listener = Listener(path, mode)
        self.path = self._listener.path
        self._thread = threading.Thread(target=self._serve, name=f"vhost-user {self.path.name}", daemon=True)
        self._thread.start()

    def wire_log(self) -> list[dict[str, object]]:
        """The last 4096 messages as they crossed the socket: `monotonic_ns` of their arrival, `message`,
        `payload` (of the answer, where the message has one of its own)."""
        with self._lock:
            return list(self._messages)

    def close(self) -> None:
        """Disconnect the front end, end the thread, remove the socket file. Idempotent."""
        with self._lock:
            self._stopping = True
            if self._client is not None:
                self._client.shutdown()
        self._listener.shutdown()
        if threading.current_thread() is not self._thread:
            self._thread.join()
        self._listener.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _serve(self) -> None:
        while (sock := self._listener.accept()) is not None:
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
            answer = self._answer(session, header, payload, fds)
        finally:
            # Whoever keeps a descriptor has duplicated it.
            close_fds(fds)
        if answer is not None:
            sock.send(answer)

    def _answer(self, session: Session, header: Header, payload: bytes, fds: Sequence[int]) -> bytes | None:
        arrived_ns = time.monotonic_ns()
        try:
            request = session.request(header, payload, tuple(fds))
            values = handle(self._backend, session, request)
        except FramingError:
            raise
        except (VdpaNetError, OSError) as error:
            refusal = ProtocolError(f"{header.name}: {error}")
            if not session.wants_ack(header):
                raise refusal from error
            self._note(arrived_ns, header.name, {"refused": str(error)})
            self._fail(refusal)
            return session.ack(header, success=False)
        self._note(arrived_ns, header.name, {**request.describe(), **(values or {})})
        return self._reply(session, header, request, dict(values or {}))

    @staticmethod
    def _reply(session: Session, header: Header, request: Request, values: dict[str, int]) -> bytes | None:
        if request.message.reply is ReplyRule.VALUE:
            return session.answer(request, **values)
        return session.ack(header, success=True) if session.wants_ack(header) else None

    def _note(self, arrived_ns: int, name: str, payload: dict[str, object]) -> None:
        with self._lock:
            self._messages.append({"monotonic_ns": arrived_ns, "message": name, "payload": payload})

    def _fail(self, error: BaseException) -> None:
        self.errors.append(error)
        if self._on_error is not None:
            with contextlib.suppress(Exception):
                self._on_error(error)
