# SPDX-License-Identifier: Apache-2.0
"""The device status machine (virtio 1.3, 2.1 and 3.1.1): which bit may follow which, as one table."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from vdpa_net.record import Record
from vdpa_net.wire.virtio_pci import Status

_NONE: Final = Status(0)


class Step(Record):
    """A status bit: the bits that have to be set before it, those that forbid it, and whose word counts.

    With `device_decides` the device grants the bit or does not, and one that is out of order is not set; the
    others are the driver's own word and are set all the same.
    """

    bit: Status
    needs: Status
    forbidden: Status = _NONE
    device_decides: bool = False
    clause: str = "3.1.1"


STEPS: Final = (
    Step(Status.ACKNOWLEDGE, _NONE),
    Step(Status.DRIVER, Status.ACKNOWLEDGE),
    Step(
        Status.FEATURES_OK,
        Status.ACKNOWLEDGE | Status.DRIVER,
        forbidden=Status.FAILED,
        device_decides=True,
    ),
    Step(
        Status.DRIVER_OK,
        Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK,
        forbidden=Status.FAILED,
        device_decides=True,
    ),
    Step(Status.FAILED, _NONE),
)
"""In the order of initialisation. One write may set several bits: they count in this order."""

_OWN: Final = Status.DEVICE_NEEDS_RESET
"""Set by the device alone. Drivers write it back with the rest of what they read."""

DRIVER_BITS: Final = Status(sum(step.bit for step in STEPS))


class Fault(Record):
    """Something in a write of device_status that should not be: a violation's kind and what it says."""

    kind: str
    clause: str
    detail: str


def faults(status: Status, value: int) -> Iterator[Fault]:
    """What is wrong with a write of `value` (0 resets) as such, whatever becomes of its new bits."""
    if unknown := value & ~int(DRIVER_BITS | _OWN):
        yield Fault("status_reserved_bits", "2.1", f"bits {unknown:#x} are reserved")
    if cleared := status & DRIVER_BITS & ~Status(value & DRIVER_BITS):
        yield Fault("status_bits_cleared", "2.1.1", f"still set: {cleared!r}")


def new_steps(status: Status, value: int) -> Iterator[Step]:
    """The bits that a write of `value` sets anew, in order."""
    return (step for step in STEPS if value & step.bit and not status & step.bit)


def out_of_order(step: Step, status: Status) -> Fault | None:
    """Why the step may not be taken now; None if it may."""
    if missing := step.needs & ~status:
        return Fault("status_out_of_order", step.clause, f"{step.bit!r} before {missing!r}")
    if present := step.forbidden & status:
        return Fault("status_out_of_order", "2.1.1", f"{step.bit!r} after {present!r}: only a reset follows")
    return None
