# SPDX-License-Identifier: Apache-2.0
"""Listening for connections when the process is short of descriptors."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

from vdpa_net.transport.fdsocket import FdSocket, Listener


class Short:
    """A socket whose process has no descriptor to spare for its first connections."""

    def __init__(self, sock: socket.socket, failures: int, number: int) -> None:
        self._sock = sock
        self._failures = failures
        self._number = number

    def accept(self) -> tuple[socket.socket, object]:
        if self._failures:
            self._failures -= 1
            raise OSError(self._number, os.strerror(self._number))
        return self._sock.accept()

    def fileno(self) -> int:
        return self._sock.fileno()

    def close(self) -> None:
        self._sock.close()


def test_a_connection_waits_until_there_are_descriptors_again(tmp_path: Path) -> None:
    listener = Listener(tmp_path / "socket")
    listener._sock = Short(listener._sock, 2, errno.EMFILE)  # type: ignore[assignment]
    with FdSocket.connect(listener.path) as peer:
        accepted = listener.accept()
        assert accepted is not None
        peer.send(b"here")
        assert accepted.recv_exact(4) == b"here"
        accepted.close()
    listener.close()


def test_what_ends_the_socket_ends_the_wait(tmp_path: Path) -> None:
    listener = Listener(tmp_path / "socket")
    listener._sock = Short(listener._sock, 1, errno.EINVAL)  # type: ignore[assignment]
    assert listener.accept() is None
    listener.close()
