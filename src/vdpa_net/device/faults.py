# SPDX-License-Identifier: Apache-2.0
"""Where the faults of a device go, and where their counts come from."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from vdpa_net.device.events import EventCallback
from vdpa_net.device.virtio_device import VirtioNet
from vdpa_net.errors import OptionError, StateError
from vdpa_net.migration.faults import Fault, LateRingState, NoAnnounce, PlaneFault, RingState
from vdpa_net.migration.register_faults import LateRegister, RingShape, ShiftedRingState
from vdpa_net.wire.virtio_pci import F_RING_PACKED

if TYPE_CHECKING:
    from vdpa_net._native import DataPlane

_NO_QUEUE = -1


class InstalledFaults:
    """The faults of one device. The caller holds the device's lock."""

    def __init__(self, virtio: VirtioNet, plane: DataPlane, listen: Callable[[EventCallback], None]) -> None:
        self._virtio = virtio
        self._plane = plane
        self._listen = listen
        self._fired: dict[Fault, Callable[[], int]] = {}

    def install(self, fault: Fault) -> None:
        """Put a fault in its place, for good.

        Raises OptionError if the device has no such queue, no LM registers, or that fault already.
        """
        if any(type(other) is type(fault) and other.at_queue == fault.at_queue for other in self._fired):
            raise OptionError(f"{fault}: the device has that fault already")
        if fault.at_queue is not None and fault.at_queue >= len(self._virtio.queues):
            raise OptionError(f"{fault}: needs a queue below {len(self._virtio.queues)}")
        self._fired[fault] = self._put(fault)

    def counts(self) -> dict[str, int]:
        """How often each fault fired, by its command-line form."""
        return {str(fault): count() for fault, count in self._fired.items()}

    def _put(self, fault: Fault) -> Callable[[], int]:
        """Put the fault where it belongs; what counts it."""
        match fault:
            case PlaneFault():
                return self._put_in_plane(fault)
            case RingState() | LateRingState():
                return self._put_in_registers(fault)
            case NoAnnounce():
                announcer = self._virtio.announcer
                announcer.is_mute = True
                return lambda: announcer.times_mute
        raise OptionError(f"{fault}: this device has no place for it")

    def _put_in_plane(self, fault: PlaneFault) -> Callable[[], int]:
        queue = _NO_QUEUE if fault.at_queue is None else fault.at_queue
        try:
            self._plane.install_fault(fault.name, queue, fault.parameter, fault.seed % (1 << 64))
        except StateError as error:
            raise OptionError(str(error)) from error
        return lambda: self._plane.fault_counts()[fault.name, queue]

    def _put_in_registers(self, fault: RingState | LateRingState) -> Callable[[], int]:
        block = self._virtio.lm
        if block is None:
            raise OptionError(f"{fault}: needs vdpa=on")
        if isinstance(fault, RingState):
            shifted = ShiftedRingState(fault, self._shape)
            block.faults.append(shifted)
            return lambda: shifted.fired
        late = LateRegister(fault, self._shape)
        block.faults.append(late)
        self._listen(late.on_event)
        return lambda: late.fired

    def _shape(self, queue: int) -> RingShape:
        is_packed = bool(self._virtio.common.features >> F_RING_PACKED & 1)
        return RingShape(self._virtio.queues[queue].size, is_packed)
