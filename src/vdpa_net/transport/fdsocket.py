# SPDX-License-Identifier: Apache-2.0
"""Unix stream sockets that carry file descriptors, and the life of a socket file.

A descriptor belongs to the message whose bytes it came with. So a reader asks for exactly the bytes of one
part of one message (`recv_exact`), and never for more than the message has: the kernel then hands out the
descriptors of that message and no others.
"""

from __future__ import annotations

import array
import contextlib
import errno
import os
import select
import socket
import stat
import struct
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from vdpa_net.closing import Closing
from vdpa_net.errors import OptionError, PeerGone, ProtocolError, StateError

MAX_FDS_PER_MESSAGE = 253
"""SCM_MAX_FD: Linux sends no more descriptors than this with one sendmsg."""

_FD_BYTES = struct.calcsize("i")
_ANCILLARY_BYTES = socket.CMSG_SPACE(MAX_FDS_PER_MESSAGE * _FD_BYTES)
_BACKLOG = 16
_TRANSIENT = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_RETRY_S = 0.1

_MAX_PATH_BYTES = 107
"""sun_path without its terminating zero (unix(7))."""


def close_fds(fds: Iterable[int]) -> None:
    """Close file descriptors that nobody took."""
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)


class FdSocket(Closing):
    """A connected, blocking Unix stream socket. Owned: `close` closes it.

    One thread reads and one (the same or another) writes; `shutdown` may be called by any thread and ends
    what blocks in the others with PeerGone.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        sock.setblocking(True)

    @classmethod
    def connect(cls, path: str | os.PathLike[str]) -> FdSocket:
        """Connect to a socket file. Raises PeerGone when nobody listens there."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.connect(os.fspath(path))
        except OSError as error:
            sock.close()
            raise PeerGone(f"{os.fspath(path)}: {error.strerror or error}", errno=error.errno) from error
        return cls(sock)

    def fileno(self) -> int:
        """The descriptor of the socket, -1 when it is closed."""
        return self._sock.fileno()

    def set_timeout(self, seconds: float) -> None:
        """Let a receive or send that makes no progress for this long raise PeerGone(ETIMEDOUT).

        Done by the kernel (SO_RCVTIMEO): Python's own time-outs cost a poll for every call.
        """
        value = struct.pack("@ll", int(seconds), int(seconds % 1 * 1_000_000))
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, value)
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, value)

    def is_quiet(self, seconds: float) -> bool:
        """Whether nothing comes for so long, not even the end of the stream."""
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        return not poll.poll(seconds * 1000)

    def recv_exact(self, size: int, fds: list[int] | None = None) -> bytes:
        """Receive exactly `size` bytes; descriptors that come with them are appended to `fds`.

        Without `fds` descriptors are not wanted, and the kernel drops them. The caller owns what is in `fds`,
        also after an error; all have close-on-exec. Raises PeerGone at the end of the stream, ProtocolError
        when the kernel could not hand over all descriptors (this process is out of them).
        """
        try:
            data = self._recv_some(size, fds)
            if len(data) == size:
                return data
            parts = [data]
            left = size - len(data)
            while left and parts[-1]:
                parts.append(self._recv_some(left, fds))
                left -= len(parts[-1])
        except BlockingIOError as error:
            raise PeerGone(f"the peer sent nothing of {size} bytes in time", errno=errno.ETIMEDOUT) from error
        except OSError as error:
            raise PeerGone(f"receiving failed: {error}", errno=error.errno) from error
        if left:
            raise PeerGone(f"the peer closed the connection after {size - left} of {size} bytes")
        return b"".join(parts)

    def recv_some(self, limit: int) -> bytes:
        """Receive what there is, 1 to `limit` bytes, for streams without message sizes. Raises PeerGone."""
        try:
            data = self._sock.recv(limit)
        except BlockingIOError as error:
            raise PeerGone("the peer sent nothing in time", errno=errno.ETIMEDOUT) from error
        except OSError as error:
            raise PeerGone(f"receiving failed: {error}", errno=error.errno) from error
        if not data:
            raise PeerGone("the peer closed the connection")
        return data

    def _recv_some(self, size: int, fds: list[int] | None) -> bytes:
        if fds is None:
            return self._sock.recv(size)
        data, ancillary, flags, _ = self._sock.recvmsg(size, _ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC)
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                received = array.array("i")
                received.frombytes(content[: len(content) - len(content) % _FD_BYTES])
                fds.extend(received)
        if flags & socket.MSG_CTRUNC:
            raise ProtocolError(
                f"only {len(fds)} descriptors of a message could be received", errno=errno.EMFILE
            )
        return data

    def send(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Send all bytes, the descriptors with the first of them. The caller keeps its descriptors.

        Raises PeerGone when the peer is not there any more.
        """
        try:
            if fds:
                rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))
                sent = self._sock.sendmsg([data], [rights], socket.MSG_NOSIGNAL)
            else:
                sent = self._sock.send(data, socket.MSG_NOSIGNAL)
            if sent < len(data):
                self._sock.sendall(memoryview(data)[sent:], socket.MSG_NOSIGNAL)
        except BlockingIOError as error:
            raise PeerGone(
                f"the peer took none of {len(data)} bytes in time", errno=errno.ETIMEDOUT
            ) from error
        except OSError as error:
            raise PeerGone(f"sending failed: {error}", errno=error.errno) from error

    def shutdown(self) -> None:
        """End both directions: the peer sees the end of the stream, blocked calls of other threads return."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the socket. Idempotent."""
        self._sock.close()


class Listener:
    """A listening Unix socket and its file.

    A socket file on which nobody listens any more is replaced. Raises StateError when somebody does,
    OptionError when the path can't be a socket (something else lies there, no such directory, too long).
    """

    def __init__(self, path: str | os.PathLike[str], mode: int = 0o600) -> None:
        self.path = Path(path)
        self._sock = _bound_socket(self.path, mode)
        self._sock.listen(_BACKLOG)
        self._identity = _file_identity(self.path)

    def accept(self) -> FdSocket | None:
        """Wait for the next connection; None after `shutdown`."""
        while True:
            try:
                return FdSocket(self._sock.accept()[0])
            except ConnectionAbortedError:
                continue
            except OSError as error:
                if error.errno not in _TRANSIENT:
                    return None
                # Nothing tells when there are descriptors again; the connection waits in the backlog.
                time.sleep(_RETRY_S)

    def shutdown(self) -> None:
        """Refuse further connections and let a blocked `accept` return None."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the socket and remove its file, unless another server has replaced it. Idempotent."""
        if self._sock.fileno() < 0:
            return
        self._sock.close()
        if _file_identity(self.path) == self._identity:
            self.path.unlink(missing_ok=True)


def _bound_socket(path: Path, mode: int) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # The file takes its mode from the socket: no moment in which others could connect.
        os.fchmod(sock.fileno(), mode)
        try:
            sock.bind(str(path))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            _remove_stale(path)
            sock.bind(str(path))
        path.chmod(mode)
    except OSError as error:
        sock.close()
        raise OptionError(f"can't listen on {path}: {_why_not_bound(path, error)}") from error
    except BaseException:
        sock.close()
        raise
    return sock


def _why_not_bound(path: Path, error: OSError) -> str:
    if len(os.fsencode(path)) > _MAX_PATH_BYTES:
        return f"a Unix socket's path has at most {_MAX_PATH_BYTES} bytes, this one {len(os.fsencode(path))}"
    if error.errno == errno.ENOENT:
        return f"there is no directory {path.parent}"
    return error.strerror or str(error)


def _remove_stale(path: Path) -> None:
    if not stat.S_ISSOCK(path.lstat().st_mode):
        raise OptionError(f"can't listen on {path}: it exists and is not a socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        # Non-blocking: a server with a full backlog is alive too.
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        except BlockingIOError:
            pass
    raise StateError(
        f"can't listen on {path}: another process serves it; end that one, or choose another path"
    )


def _file_identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.lstat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
