# SPDX-License-Identifier: Apache-2.0
"""The vfio-user server: a socket, a thread, one client at a time."""

from __future__ import annotations

import collections
import contextlib
import errno
import os
import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from vdpa_net.errors import FramingError, PeerGone, VdpaNetError
from vdpa_net.transport.fdsocket import FdSocket, Listener, close_fds
from vdpa_net.transport.vfio_user import requests as rq
from vdpa_net.transport.vfio_user.dispatch import Dispatcher, PciFunction
from vdpa_net.transport.vfio_user.session import Outgoing, ServerSession
from vdpa_net.wire import vfio_user as wire

__all__ = ["PciFunction", "VfioUserServer"]

_KEPT_ERRORS = 64
_TRACE_CHARACTERS = 200


class VfioUserServer:
    """Serves a PCI function on a Unix socket from construction until `close`.

    One client is served at a time; others wait in the socket's backlog until it leaves. When a client leaves,
    however it does, `function.detach_client()` runs before the next one is answered. A failing request is
    answered with an errno, kept in `errors` (the last 64) and given to `on_error`; it never ends the server.
    Raises StateError when somebody else serves the path, OptionError when the path can't be a socket.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        function: PciFunction,
        *,
        mode: int = 0o600,
        on_error: Callable[[BaseException], None] | None = None,
        trace: Callable[[str], None] | None = None,
    ) -> None:
        """`mode` is that of the socket file; `trace` gets one line per message, from the server's thread."""
        self.errors: collections.deque[BaseException] = collections.deque(maxlen=_KEPT_ERRORS)
        self.trace = trace
        self._function = function
        self._on_error = on_error
        self._lock = threading.Lock()
        self._stopping = False
        self._client: FdSocket | None = None
        self._listener = Listener(path, mode)
        self.path = self._listener.path
        self._thread = threading.Thread(target=self._serve, name=f"vfio-user {self.path.name}", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Disconnect the client, end the thread, remove the socket file. Idempotent."""
        with self._lock:
            self._stopping = True
            if self._client is not None:
                self._client.shutdown()
        self._listener.shutdown()
        if threading.current_thread() is not self._thread:
            self._thread.join()
        self._listener.close()

    close = stop

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _serve(self) -> None:
        while (sock := self._listener.accept()) is not None:
            with sock:
                if not self._adopt(sock):
                    return
                session = ServerSession()
                try:
                    self._serve_client(sock, session)
                finally:
                    self._release(session)

    def _adopt(self, sock: FdSocket) -> bool:
        with self._lock:
            if not self._stopping:
                self._client = sock
            return not self._stopping

    def _release(self, session: ServerSession) -> None:
        with self._lock:
            self._client = None
        self._trace("client gone")
        if not session.negotiated:
            return
        try:
            self._function.detach_client()
        except BaseException as error:
            self._record(error)

    def _serve_client(self, sock: FdSocket, session: ServerSession) -> None:
        dispatcher = Dispatcher(session, self._function)
        self._trace("client connected")
        try:
            while not session.refused:
                self._serve_message(sock, session, dispatcher)
        except PeerGone as gone:
            self._trace(str(gone))
        except Exception as error:
            # FramingError, or a defect of ours: either way this stream can't be followed any more.
            self._record(error)
            self._trace(f"connection closed: {error}")

    def _serve_message(self, sock: FdSocket, session: ServerSession, dispatcher: Dispatcher) -> None:
        fds: list[int] = []
        try:
            header = sock.recv_exact(wire.HEADER.size, fds)
            size = session.payload_size(header)
            payload = sock.recv_exact(size, fds) if size else b""
            outgoing = self._answer(session, dispatcher, header, payload, fds)
        finally:
            # Whoever keeps a descriptor has duplicated it.
            if fds:
                close_fds(fds)
        if outgoing is not None:
            sock.send(outgoing.data, outgoing.fds)

    def _answer(
        self,
        session: ServerSession,
        dispatcher: Dispatcher,
        header: bytes,
        payload: bytes,
        fds: Sequence[int],
    ) -> Outgoing | None:
        try:
            request = session.receive(header, payload, fds)
            answer = dispatcher.handle(request.body)
        except FramingError:
            raise
        except BaseException as error:
            # A panic of the data plane is not an Exception; none of them may end the server.
            number = _errno_of(error)
            self._record(error)
            self._trace_message(header, payload, fds, f"errno {number}: {error}")
            return session.error_reply(header, number)
        if self.trace is not None:
            self._trace_request(request, len(fds))
        return session.reply(request, answer.payload, answer.fds)

    def _record(self, error: BaseException) -> None:
        self.errors.append(error)
        if self._on_error is not None:
            with contextlib.suppress(Exception):
                self._on_error(error)

    def _trace(self, line: str) -> None:
        if self.trace is not None:
            with contextlib.suppress(Exception):
                self.trace(line)

    def _trace_request(self, request: rq.Request, fds: int) -> None:
        posted = "" if request.header.expects_reply else " posted"
        self._trace(f"#{request.header.message_id} {str(request.body)[:_TRACE_CHARACTERS]} fds={fds}{posted}")

    def _trace_message(self, header: bytes, payload: bytes, fds: Sequence[int], outcome: str) -> None:
        if self.trace is not None:
            fields = wire.HEADER.unpack(header)
            name = wire.command_name(fields["command"])
            self._trace(
                f"#{fields['message_id']} {name} payload={payload[:64].hex()} fds={len(fds)}: {outcome}"
            )


def _errno_of(error: BaseException) -> int:
    """What a client is told; ENOMEM for lack of memory, EIO for what nobody expected."""
    if isinstance(error, (VdpaNetError, OSError)):
        return error.errno or errno.EIO
    return errno.ENOMEM if isinstance(error, MemoryError) else errno.EIO
