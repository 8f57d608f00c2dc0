# SPDX-License-Identifier: Apache-2.0
"""The vfio-user server: a socket, a thread, one client at a time."""

from __future__ import annotations

import collections
import contextlib
import os
import threading
from collections.abc import Callable
from contextlib import ExitStack

from vdpa_net.closing import Closing
from vdpa_net.errors import PeerGone
from vdpa_net.transport.fdsocket import FdSocket, Listener, close_fds
from vdpa_net.transport.vfio_user.bells import Bells
from vdpa_net.transport.vfio_user.dispatch import PciFunction
from vdpa_net.transport.vfio_user.responder import Responder
from vdpa_net.transport.vfio_user.session import ServerSession
from vdpa_net.wire import vfio_user as wire

__all__ = ["PciFunction", "VfioUserServer"]

_KEPT_ERRORS = 64


class VfioUserServer(Closing):
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
        responder = Responder(session, self._function, on_error=self._record, trace=self._trace_line)
        self._trace("client connected")
        try:
            with ExitStack() as stack:
                # In a trace of messages doorbells are messages like others.
                bells = stack.enter_context(Bells(sock, self._function)) if self.trace is None else None
                while not session.refused:
                    _serve_message(sock, responder, bells if session.negotiated else None)
        except PeerGone as gone:
            self._trace(str(gone))
        except Exception as error:
            # FramingError, or a defect of ours: either way this stream can't be followed any more.
            self._record(error)
            self._trace(f"connection closed: {error}")

    @property
    def _trace_line(self) -> Callable[[str], None] | None:
        return self._trace if self.trace is not None else None

    def _record(self, error: BaseException) -> None:
        self.errors.append(error)
        if self._on_error is not None:
            with contextlib.suppress(Exception):
                self._on_error(error)

    def _trace(self, line: str) -> None:
        if self.trace is not None:
            with contextlib.suppress(Exception):
                self.trace(line)


def _serve_message(sock: FdSocket, responder: Responder, bells: Bells | None) -> None:
    fds: list[int] = []
    try:
        begun = bells.receive(fds) if bells is not None else b""
        if len(begun) < wire.HEADER.size:
            begun += sock.recv_exact(wire.HEADER.size - len(begun), fds)
        header, payload = begun[: wire.HEADER.size], begun[wire.HEADER.size :]
        missing = responder.payload_size(header) - len(payload)
        if missing:
            payload += sock.recv_exact(missing, fds)
        outgoing = responder.answer(header, payload, fds)
    finally:
        # Whoever keeps a descriptor has duplicated it.
        if fds:
            close_fds(fds)
    if outgoing is not None:
        sock.send(outgoing.data, outgoing.fds)
