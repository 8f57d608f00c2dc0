# SPDX-License-Identifier: Apache-2.0
"""What tests have a guest and its front end do, message by message."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from integration.threads import names, settle
from vdpa_net.testing.frames import FrameMint
from vdpa_net.testing.guest_cpu import TX, GuestCpu
from vdpa_net.testing.vhost_connection import Request
from vdpa_net.testing.vhost_guest import VhostGuest
from vdpa_net.testing.vhost_side import VhostSide

PATIENCE_S = 20
STATE = struct.Struct("<II")


@contextmanager
def connected_guest(side: VhostSide, *, packed: bool = False) -> Iterator[VhostGuest]:
    """Its rings run, its CPU does not."""
    made = VhostGuest(side.path, packed=packed)
    made.front_end.connect()
    yield made
    made.close()


def await_true(condition: Callable[[], bool]) -> bool:
    """Memory that changes tells nobody: look until it has."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.002)
    return condition()


class Guest(Protocol):
    """What has a virtual CPU that can be let run."""

    cpu: GuestCpu

    def resume(self) -> None: ...


def run_dry(guest: Guest, frames: int) -> None:
    """Run until so many more frames have come back and none is under way; then pause.

    On return the device sleeps as well: it writes nothing that nobody asks for.
    """
    cpu = guest.cpu
    guest.resume()
    assert cpu.wait_for_frames(frames, PATIENCE_S, PATIENCE_S)
    cpu.stop_sending()
    assert cpu.wait_for(
        lambda ledger: len(ledger.sent) == len(ledger.received) == len(ledger.completed),
        PATIENCE_S,
        PATIENCE_S,
    )
    cpu.pause()
    await_sleep()


def await_sleep() -> None:
    """Wait until every worker of this process sleeps: it has also told the driver that it wants kicks."""
    settle({task for task, name in names().items() if name.startswith("vdpa-pair")})


def enable(guest: VhostGuest, queue: int, value: int) -> None:
    guest.front_end.request(Request.SET_VRING_ENABLE, STATE.pack(queue, value))


def offer(guest: VhostGuest, first: int, count: int, *, kick: bool = True) -> None:
    """Make frames available for transmission."""
    mint = FrameMint(9)
    for number in range(first, first + count):
        assert guest.cpu.queues.transmit(mint.frame(number, 300))
    guest.rings[TX].publish()
    if kick:
        guest.front_end.kick(TX)


def get_base(guest: VhostGuest, queue: int) -> int:
    answer = guest.front_end.ask(Request.GET_VRING_BASE, STATE.pack(queue, 0))
    return int(STATE.unpack(answer)[1])
