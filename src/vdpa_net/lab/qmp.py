# SPDX-License-Identifier: Apache-2.0
"""QMP for callers that are not asynchronous: qemu.qmp in a thread of its own, with a log of all messages."""

from __future__ import annotations

import asyncio
import concurrent.futures
import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from qemu.qmp import ExecuteError, QMPClient, QMPError

from vdpa_net.errors import LabError, PeerError, PeerGone

Result = TypeVar("Result")
# What the library has to say is in the exceptions; its log would repeat it on the terminal.
logging.getLogger("qemu.qmp").addHandler(logging.NullHandler())
logging.getLogger("qemu.qmp").propagate = False


@dataclass(frozen=True)
class Event:
    """An event. `seen_ns` is when it was read (CLOCK_MONOTONIC), `sent_s` QEMU's own time stamp."""

    name: str
    data: Mapping[str, Any]
    seen_ns: int
    sent_s: float


class QmpSession:
    """One QMP connection. All methods may be called from any thread."""

    def __init__(self, name: str, log_path: Path) -> None:
        self.name = name
        self._log = log_path.open("w")
        self._events: list[Event] = []
        self._gone = False
        self._changed = threading.Condition()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"qmp-{name}", daemon=True)
        self._thread.start()
        self._client: QMPClient | None = None
        self._listener: asyncio.Task[None] | None = None

    def in_thread(self, function: Callable[[], Result]) -> Result:
        """Call a function in the session's thread, which lives as long as the session."""

        async def call() -> Result:
            return function()

        return self._run(call(), 30)

    def connect(self, connection: socket.socket, timeout_s: float) -> None:
        """Negotiate on a connected socket. Raises PeerGone or LabError."""
        try:
            self._run(self._connect(connection), timeout_s)
        except QMPError as error:
            raise PeerGone(f"{self.name}: no QMP greeting: {error}") from error

    def execute(
        self, command: str, arguments: Mapping[str, Any] | None = None, *, timeout_s: float = 60
    ) -> Any:
        """What QEMU returns. Raises PeerError with its refusal, PeerGone if it is not there."""
        if self._client is None:
            raise PeerGone(f"{self.name}: QMP is not connected")
        self._write({"execute": command, "arguments": dict(arguments or {})})
        try:
            reply = self._run(self._client.execute(command, dict(arguments or {})), timeout_s)
        except ExecuteError as error:
            self._write({"error": str(error)})
            raise PeerError(
                f"{self.name}: QEMU refused {command} {dict(arguments or {})}: {error}"
            ) from error
        except QMPError as error:
            raise PeerGone(f"{self.name}: QEMU went away during {command}: {error}") from error
        self._write({"return": reply})
        return reply

    @property
    def position(self) -> int:
        """How many events there have been; later ones have this index or more."""
        with self._changed:
            return len(self._events)

    def events(self, start: int = 0) -> list[Event]:
        """The events from an index on."""
        with self._changed:
            return self._events[start:]

    def wait_event(
        self,
        name: str | None,
        timeout_s: float,
        *,
        start: int = 0,
        where: Callable[[Event], bool] = lambda _event: True,
    ) -> Event:
        """The first such event (None: of any name) from index `start` on.

        Raises PeerGone if QEMU ends, LabError if the time is over.
        """
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while True:
                for event in self._events[start:]:
                    if name in (None, event.name) and where(event):
                        return event
                start = len(self._events)
                expected = "an event" if name is None else f"the event {name}"
                if self._gone:
                    raise PeerGone(f"{self.name}: QEMU went away, expected {expected}")
                if not self._changed.wait(deadline - time.monotonic()) and time.monotonic() >= deadline:
                    raise LabError(f"{self.name}: expected {expected}, none within {timeout_s:g} s")

    def close(self) -> None:
        """End the connection and its thread."""
        if not self._loop.is_closed():
            self._run(self._disconnect(), 10)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()
            self._log.close()

    def _run(self, coroutine: Coroutine[Any, Any, Result], timeout_s: float) -> Result:
        if self._loop.is_closed():
            coroutine.close()
            raise PeerGone(f"{self.name}: the QMP session has been closed")
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result(timeout_s)
        except concurrent.futures.TimeoutError:
            future.cancel()
            raise LabError(f"{self.name}: QEMU did not answer within {timeout_s:g} s") from None
        except concurrent.futures.CancelledError:
            raise PeerGone(f"{self.name}: the QMP session has been closed") from None

    async def _connect(self, connection: socket.socket) -> None:
        client = QMPClient(self.name)
        await client.connect(connection)
        self._client = client
        self._listener = asyncio.create_task(self._listen(client))

    async def _listen(self, client: QMPClient) -> None:
        watcher = asyncio.create_task(self._watch(client))
        try:
            async for message in client.events:
                self._note(dict(message))
        finally:
            watcher.cancel()

    async def _watch(self, client: QMPClient) -> None:
        while client.runstate.name == "RUNNING":
            await client.runstate_changed()
        with self._changed:
            self._gone = True
            self._changed.notify_all()

    def _note(self, message: Mapping[str, Any]) -> None:
        stamp = message["timestamp"]
        sent_s = stamp["seconds"] + stamp["microseconds"] / 1e6
        event = Event(message["event"], message.get("data", {}), time.monotonic_ns(), sent_s)
        self._write(dict(message))
        with self._changed:
            self._events.append(event)
            self._changed.notify_all()

    async def _disconnect(self) -> None:
        if self._listener is not None:
            self._listener.cancel()
            await asyncio.gather(self._listener, return_exceptions=True)
        if self._client is not None:
            # The peer may have gone first, which is no news at this point.
            await asyncio.gather(self._client.disconnect(), return_exceptions=True)
        # What an interrupted caller has begun still waits for QEMU.
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        with self._changed:
            self._gone = True
            self._changed.notify_all()

    def _write(self, message: Mapping[str, Any]) -> None:
        with self._changed:
            if not self._log.closed:
                self._log.write(json.dumps({"ns": time.monotonic_ns(), **message}) + "\n")
                self._log.flush()
