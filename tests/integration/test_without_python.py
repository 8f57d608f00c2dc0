# SPDX-License-Identifier: Apache-2.0
"""No Python on the way of a packet, and no work where there is nothing to do."""

from __future__ import annotations

import contextlib
import ctypes
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from integration.threads import names, settle, switches
from vdpa_net.backend import Backend
from vdpa_net.backend.loopback import Loopback
from vdpa_net.backend.null import Null, Source
from vdpa_net.device.net_device import NetDevice
from vdpa_net.driver.in_process import InProcessHandle
from vdpa_net.testing.frames import FrameMint
from vdpa_net.testing.guest_driver import GuestDriver
from vdpa_net.testing.guest_memory import GuestMemory

MAC = "52:54:00:00:00:01"
MINT = FrameMint(1)
HELD_SECONDS = 1.0
PATIENCE_S = 20
BUFFERS = 250


@contextlib.contextmanager
def guest(backend: Backend, pairs: int = 1) -> Iterator[tuple[GuestDriver, NetDevice]]:
    with ExitStack() as stack:
        stack.callback(backend.close)
        device = stack.enter_context(NetDevice(backend, mac=MAC, mq=pairs > 1))
        handle = stack.enter_context(contextlib.closing(InProcessHandle(device)))
        memory = stack.enter_context(GuestMemory([(0, 16 << 20)]))
        driver = stack.enter_context(GuestDriver(handle, memory, pairs=pairs, slots=(BUFFERS, 64)))
        driver.start()
        if pairs > 1:
            driver.set_active_pairs(pairs)
        yield driver, device


def hold_the_gil(seconds: float) -> None:
    """Sleep without letting any other thread run Python."""
    ctypes.PyDLL(None).usleep(int(1e6 * seconds))


@contextlib.contextmanager
def never_yielding() -> Iterator[None]:
    """A thread that runs Python lets go of the GIL when it waits, and not because another one asks for it."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(10 * PATIENCE_S)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def packets(device: NetDevice, queue: int) -> int:
    queues = device.snapshot()["queues"]
    return queues[queue]["counters"]["packets"]  # type: ignore[index, no-any-return]


def test_packets_flow_while_another_thread_holds_the_gil() -> None:
    # A source of 100 packets per second with room for 250: in a held second there is always a buffer.
    with guest(Null(1, Source(rate_pps=100, flows=1))) as (driver, device):
        driver.queues.post_receive()
        driver.publish()
        driver.receive(5)
        before, begun = packets(device, 0), time.monotonic()
        holder = threading.Thread(target=hold_the_gil, args=(HELD_SECONDS,))
        holder.start()
        holder.join()
        after, elapsed = packets(device, 0), time.monotonic() - begun
        # A worker that waited for the GIL would have made up for 100 ms of backlog at most, which are 10
        # packets; this one has the rest of the second, as far as it got a processor.
        assert after - before > 2 * 10, f"{after - before} packets in {elapsed} s"


def test_what_the_guest_kicks_is_done_while_the_gil_is_held() -> None:
    with never_yielding(), guest(Loopback()) as (driver, device):
        driver.queues.post_receive()
        frames = [MINT.frame(number, 200) for number in range(50)]
        for frame in frames:
            driver.queues.transmit(frame)
        for queue in (0, 1):
            driver.rings[queue].publish()
        bell = device.doorbells()[1].fd
        libc = ctypes.PyDLL(None)
        used = driver.rings[0].device + 2
        eight = (1).to_bytes(8, "little")
        deadline = time.monotonic() + PATIENCE_S
        # From here on nothing lets go of the GIL: both calls keep it, and memory is read without any.
        libc.write(bell, eight, 8)
        while (done := driver.memory.load_u16(used)) < len(frames) and time.monotonic() < deadline:
            libc.usleep(10_000)
        assert done == len(frames)
        assert driver.receive(len(frames)) == frames


@pytest.mark.parametrize("pairs", [1, 4])
def test_after_traffic_an_attached_device_does_nothing(pairs: int) -> None:
    # Devices of other tests may wait for the collector, workers and all.
    others = set(names())
    with guest(Loopback(pairs), pairs) as (driver, _):
        for pair in range(pairs):
            frames = [MINT.frame(number, 200) for number in range(50)]
            driver.send(frames, pair)
            assert driver.receive(len(frames), pair=pair) == frames
            driver.finish_transmit(pair=pair)
        workers = {task for task, name in names().items() if name.startswith("vdpa-pair")} - others
        assert len(workers) == pairs
        settle(workers)
        before = switches()
        time.sleep(HELD_SECONDS)
        after = switches()
        assert {task: after[task] for task in workers} == {task: before[task] for task in workers}
