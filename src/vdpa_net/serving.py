# SPDX-License-Identifier: Apache-2.0
"""Serving a device from a program, and the request to end that ends it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from vdpa_net.device.net_device import NetDevice


def serve(
    device: NetDevice,
    socket: str | os.PathLike[str],
    *,
    on_listening: Callable[[], None] | None = None,
    on_error: Callable[[BaseException], None] | None = None,
) -> None:
    """Serve a device on a vfio-user socket until SIGTERM, SIGINT or Ctrl-C; call it from the main thread.

    One client is served at a time; when it leaves, the device is reset and the next one can come. The device
    stays the caller's and is not closed. `on_listening` is called once, when clients can connect; `on_error`
    with each request that was refused, from the server's thread. A program with an event loop of its own uses
    `transport.vfio_user.server.VfioUserServer` instead, which serves in a thread.

    Raises StateError when somebody else serves the path, OptionError when it can't be a socket.
    """
    from vdpa_net.transport.vfio_user.server import VfioUserServer  # noqa: PLC0415

    with StopRequest() as stop, VfioUserServer(socket, device, on_error=on_error):
        if on_listening is not None:
            on_listening()
        stop.wait()


class StopRequest:
    """Waits for SIGTERM, SIGINT or `request()`. To be used by the main thread."""

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        self._before: list[tuple[int, Any]] = []
        self._wakeup_before = -1

    def request(self) -> None:
        """Ask the main thread to end, from any thread. A client that asked may find the process gone."""
        os.write(self._writer, b"\0")

    def wait(self) -> None:
        """Return when it is time to end; at once if it was before."""
        # The byte is the signal's number. A handler in Python would not do: the kernel may deliver the signal
        # to a worker thread, and then nothing interrupts the main thread.
        while os.read(self._reader, 1)[0] not in (0, signal.SIGTERM, signal.SIGINT):
            continue

    def __enter__(self) -> Self:
        self._wakeup_before = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before.append((number, signal.signal(number, _ignore)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before:
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup_before)
        os.close(self._reader)
        os.close(self._writer)


def _ignore(_number: int, _frame: FrameType | None) -> None:
    """A handler has to be there for the wake-up descriptor to be written to."""
