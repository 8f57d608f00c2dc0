# SPDX-License-Identifier: Apache-2.0
"""One message in, its answer out: session and dispatcher together, still without a socket."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence

from vdpa_net.errors import FramingError, VdpaNetError
from vdpa_net.transport.vfio_user.dispatch import Dispatcher, PciFunction
from vdpa_net.transport.vfio_user.requests import Request
from vdpa_net.transport.vfio_user.session import Outgoing, ServerSession
from vdpa_net.wire import vfio_user as wire

_TRACE_CHARACTERS = 200
_TRACE_PAYLOAD_BYTES = 64


class Responder:
    """Answers the messages of one client. Whatever goes wrong in one becomes an errno and goes to `on_error`.

    `trace` gets one line per message.
    """

    def __init__(
        self,
        session: ServerSession,
        function: PciFunction,
        *,
        on_error: Callable[[BaseException], None],
        trace: Callable[[str], None] | None = None,
    ) -> None:
        self._session = session
        self._dispatcher = Dispatcher(session, function)
        self._on_error = on_error
        self._trace = trace

    def payload_size(self, header: bytes) -> int:
        """Bytes that follow this header. Raises FramingError."""
        return self._session.payload_size(header)

    def answer(self, header: bytes, payload: bytes, fds: Sequence[int]) -> Outgoing | None:
        """Act on a message; the reply, None where none is wanted. The descriptors stay the caller's.

        Raises FramingError when the connection has to be closed.
        """
        try:
            request = self._session.receive(header, payload, fds)
            answer = self._dispatcher.handle(request.body)
        except FramingError:
            raise
        except BaseException as error:
            # A panic of the data plane is not an Exception; none of them may end the server.
            number = _errno_of(error)
            self._on_error(error)
            self._trace_message(header, payload, len(fds), f"errno {number}: {error}")
            return self._session.error_reply(header, number)
        self._trace_request(request, len(fds))
        return self._session.reply(request, answer.payload, answer.fds)

    def _trace_request(self, request: Request, fds: int) -> None:
        if self._trace is not None:
            posted = "" if request.header.expects_reply else " posted"
            body = str(request.body)[:_TRACE_CHARACTERS]
            self._trace(f"#{request.header.message_id} {body} fds={fds}{posted}")

    def _trace_message(self, header: bytes, payload: bytes, fds: int, outcome: str) -> None:
        if self._trace is not None:
            fields = wire.HEADER.unpack(header)
            name = wire.command_name(fields["command"])
            shown = payload[:_TRACE_PAYLOAD_BYTES].hex()
            self._trace(f"#{fields['message_id']} {name} payload={shown} fds={fds}: {outcome}")


def _errno_of(error: BaseException) -> int:
    """What a client is told; ENOMEM for lack of memory, EIO for what nobody expected."""
    if isinstance(error, (VdpaNetError, OSError)):
        return error.errno or errno.EIO
    return errno.ENOMEM if isinstance(error, MemoryError) else errno.EIO
