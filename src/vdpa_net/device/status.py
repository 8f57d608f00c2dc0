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

# Flags of `enum` take microseconds for what numbers do in nothing, and a guest waits for these writes.
_STEP_OF_BIT: Final = tuple((int(step.bit), step) for step in STEPS)
_DRIVERS: Final = int(DRIVER_BITS)
_KNOWN: Final = int(DRIVER_BITS | _OWN)


class Fault(Record):
    """Something in a write of device_status that should not be: a violation's kind and what it says."""

    kind: str
    clause: str
    detail: str


def faults(status: Status, value: int) -> Iterator[Fault]:
    """What is wrong with a write of `value` (0 resets) as such, whatever becomes of its new bits."""
    if unknown := value & ~_KNOWN:
        yield Fault("status_reserved_bits", "2.1", f"bits {unknown:#x} are reserved")
    if cleared := int(status) & _DRIVERS & ~value:
        yield Fault("status_bits_cleared", "2.1.1", f"still set: {Status(cleared)!r}")


def new_steps(status: Status, value: int) -> Iterator[Step]:
    """The bits that a write of `value` sets anew, in order."""
    fresh = value & ~int(status)
    return (step for bit, step in _STEP_OF_BIT if fresh & bit)


def out_of_order(step: Step, status: Status) -> Fault | None:
    """Why the step may not be taken now; None if it may."""
    has = int(status)
    if missing := int(step.needs) & ~has:
        return Fault("status_out_of_order", step.clause, f"{step.bit!r} before {Status(missing)!r}")
    if present := int(step.forbidden) & has:
        detail = f"{step.bit!r} after {Status(present)!r}: only a reset follows"
        return Fault("status_out_of_order", "2.1.1", detail)
    return None
