# SPDX-License-Identifier: Apache-2.0
"""A guest that does nothing but network: one virtual CPU in a thread, sending stamped frames and checking
those that come back from a loopback device. It can be paused and go on elsewhere, as a migrating guest does.

It works by interrupts, as a driver under load does: a queue that was signalled is looked at until there is
nothing more in it, then armed, and not looked at before its next interrupt. A lost interrupt hangs it.
"""

from __future__ import annotations

import contextlib
import os
import random
import select
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from vdpa_net.errors import StateError
from vdpa_net.testing.frames import MAX_FRAME_BYTES, MIN_FRAME_BYTES, FrameMint, is_stamped, read_stamp
from vdpa_net.testing.net_queues import NetQueues

RX, TX = 0, 1
_WINDOW_FRAMES = 24
_POSTED_BUFFERS = 100
_BATCH_FRAMES = 8
_BREATH_S = 0.0001
_WRITE_OFF_MS = 200
_ETHERTYPE_RARP = b"\x80\x35"


@dataclass
class Ledger:
    """What became of each frame, by sequence number, and which stations were announced (RARP)."""

    sent: list[int] = field(default_factory=list)
    completed: list[int] = field(default_factory=list)
    received: list[int] = field(default_factory=list)
    corrupted: list[str] = field(default_factory=list)
    announced: list[str] = field(default_factory=list)
    foreign_frames: int = 0


@dataclass(frozen=True)
class Wires:
    """How the guest reaches its device: `kick(queue)`, and the eventfds that the device signals."""

    kick: Callable[[int], None]
    call_fds: Sequence[int]


class GuestCpu:
    """Keeps up to a window of frames under way while it runs. `ledger` is complete while it is paused."""

    def __init__(self, queues: NetQueues, *, seed: int = 0) -> None:
        self.queues = queues
        self.ledger = Ledger()
        self.first_completion: dict[int, int | None] = {}
        self._watched: dict[int, int] = {}
        self._awake = {RX, TX}
        self._sent_before = self._received_before = self._written_off = 0
        self._mint = FrameMint(seed)
        self._random = random.Random(seed)
        self._thread: threading.Thread | None = None
        self._wires: Wires | None = None
        self._pause = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._sending = threading.Event()
        self._changed = threading.Condition()
        self._progress = 0
        self._failure: BaseException | None = None

    # --- control --------------------------------------------------------------------------------

    def run(self, wires: Wires, *, sending: bool = True) -> None:
        """Start or go on. Raises StateError if it runs."""
        if self._thread is not None:
            raise StateError("the guest runs already")
        self._wires = wires
        self._sent_before, self._received_before = len(self.ledger.sent), len(self.ledger.received)
        self._written_off = 0
        if sending:
            self._sending.set()
        self._thread = threading.Thread(target=self._loop, name="guest-cpu", daemon=True)
        self._thread.start()

    def pause(self, *, leave_unsent: int = 0) -> None:
        """Stop the CPU. Just before, it makes `leave_unsent` more frames available whose kick never comes.

        Raises what the guest's own code raised.
        """
        if self._thread is None:
            return
        os.eventfd_write(self._pause, 1)
        self._thread.join()
        self._thread = None
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._pause)
        if self._failure is not None:
            raise self._failure
        # Only an interrupt wakes the guest after this, wherever it goes on.
        while any(self._serve(queue) for queue in sorted(self._awake)) or self._awake:
            pass
        self.leave_unsent(leave_unsent)

    def leave_unsent(self, count: int) -> None:
        """While it is paused: make `count` more frames available, as if their kick were still under way."""
        self._send(count)
        self.queues.tx.publish()

    def watch_completion(self, queue: int, used_index: int) -> None:
        """Note in `first_completion` where the buffer had been made available that comes back here."""
        self._watched[queue] = used_index

    def stop_sending(self) -> None:
        """Send no new frames; go on receiving."""
        self._sending.clear()

    def wait_for(
        self, condition: Callable[[Ledger], bool], timeout_s: float = 10.0, idle_s: float = 10.0
    ) -> bool:
        """Wait until the ledger fulfils a condition; whether it does.

        Gives up after `timeout_s`, or when for `idle_s` nothing has come from the device.
        """
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while not condition(self.ledger) and self._failure is None:
                before = self._progress
                self._changed.wait(min(idle_s, max(0.0, deadline - time.monotonic())))
                if self._progress == before or time.monotonic() > deadline:
                    break
            return condition(self.ledger)

    def wait_for_frames(self, count: int, timeout_s: float = 10.0, idle_s: float = 10.0) -> bool:
        """Wait until `count` more frames have come back; see `wait_for`."""
        goal = len(self.ledger.received) + count
        return self.wait_for(lambda ledger: len(ledger.received) >= goal, timeout_s, idle_s)

    def close(self) -> None:
        """Pause for good."""
        try:
            self.pause()
        finally:
            os.close(self._pause)

    # --- what the CPU does ----------------------------------------------------------------------

    def _loop(self) -> None:
        assert self._wires is not None
        poll = select.poll()
        queue_of = {fd: queue for queue, fd in enumerate(self._wires.call_fds)}
        for fd in (self._pause, *queue_of):
            poll.register(fd, select.POLLIN)
        try:
            while True:
                is_busy = self._step(self._wires)
                if is_busy:
                    # A thread that gives up the GIL for short system calls only wins it back before a waiting
                    # thread has woken up. A pause of this length lets the others of this process have it.
                    time.sleep(_BREATH_S)
                events = [fd for fd, _ in poll.poll(0 if is_busy else _WRITE_OFF_MS)]
                if self._pause in events:
                    return
                if not events and not is_busy:
                    self._write_off()
                for fd in events:
                    with contextlib.suppress(BlockingIOError):
                        os.eventfd_read(fd)
                    self._awake.add(queue_of[fd])
        except BaseException as error:
            self._failure = error
        finally:
            with self._changed:
                self._changed.notify_all()

    def _step(self, wires: Wires) -> bool:
        """Serve the queues that are awake, send, refill; whether there may be more to do at once."""
        progress = sum(self._serve(queue) for queue in sorted(self._awake))
        if progress:
            with self._changed:
                self._progress += progress
                self._changed.notify_all()
        sent = 0
        if self._sending.is_set():
            sent = self._send(min(_BATCH_FRAMES, _WINDOW_FRAMES - self._under_way()))
        self.queues.post_receive(_POSTED_BUFFERS)
        for queue, ring in ((RX, self.queues.rx), (TX, self.queues.tx)):
            if ring.publish():
                wires.kick(queue)
        return bool(sent or self._awake)

    def _serve(self, queue: int) -> int:
        """Take what has come; a queue in which nothing is, is armed and goes to sleep."""
        ring, take = (
            (self.queues.rx, self._take_frames) if queue == RX else (self.queues.tx, self._take_completions)
        )
        ring.disarm()
        progress = take()
        if not progress and not ring.arm():
            self._awake.discard(queue)
        return progress

    def _under_way(self) -> int:
        # Counted from the last `run`: what was lost in the switch-over does not come back and must not
        # keep the window closed.
        sent = len(self.ledger.sent) - self._sent_before
        return sent - (len(self.ledger.received) - self._received_before) - self._written_off

    def _write_off(self) -> None:
        """Frames that the device has completed and that do not come must not keep the window closed either.

        What lies in a ring is not lost: it is an interrupt that is missing, or a kick.
        """
        if len(self.ledger.completed) == len(self.ledger.sent) and not self.queues.rx.completed:
            self._written_off += max(0, self._under_way())

    def _send(self, count: int) -> int:
        done = 0
        for _ in range(max(0, count)):
            seq = len(self.ledger.sent)
            size = self._random.choice(
                (MIN_FRAME_BYTES, MAX_FRAME_BYTES, self._random.randint(MIN_FRAME_BYTES, MAX_FRAME_BYTES))
            )
            if not self.queues.transmit(self._mint.frame(seq, size), seq):
                break
            self.ledger.sent.append(seq)
            done += 1
        return done

    def _take_completions(self) -> int:
        taken = self.queues.tx.reap()
        for used in taken:
            self._note_completion(TX, used.used_index, used.avail_index)
            seq = self.queues.take_transmit(used)
            if seq is not None:
                self.ledger.completed.append(seq)
        return len(taken)

    def _take_frames(self) -> int:
        taken = self.queues.rx.reap()
        for used in taken:
            self._note_completion(RX, used.used_index, used.avail_index)
            frame = self.queues.take_receive(used)
            if frame is not None:
                self._check(frame)
        return len(taken)

    def _note_completion(self, queue: int, used_index: int, avail_index: int | None) -> None:
        if self._watched.get(queue) == used_index:
            del self._watched[queue]
            self.first_completion[queue] = avail_index

    def _check(self, frame: bytes) -> None:
        seq = read_stamp(frame)
        if seq is not None:
            self.ledger.received.append(seq)
        elif is_stamped(frame):
            self.ledger.corrupted.append(f"frame of {len(frame)} bytes beginning with {frame[:24].hex()}")
        else:
            # A device that was moved announces itself; on a loopback its RARP comes back to the guest.
            self.ledger.foreign_frames += 1
            if frame[12:14] == _ETHERTYPE_RARP:
                self.ledger.announced.append(frame[6:12].hex(":"))
