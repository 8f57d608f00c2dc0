# SPDX-License-Identifier: Apache-2.0
"""The virtio side of a network device: what its registers set in motion in data plane and back end.

Every method is called with the device's lock held. Order matters in two places, and is kept here: at
DRIVER_OK what the back end had queued is dropped before the carrier comes on, and the carrier comes on before
a queue is served (a frame sent without a carrier would be lost); a reset stops the queues before it ends the
log.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from vdpa_net.backend import Backend
from vdpa_net.device.active_pairs import ActivePairs
from vdpa_net.device.announce import Announcer
from vdpa_net.device.common_cfg import CommonCfg
from vdpa_net.device.control_queue import ControlQueue
from vdpa_net.device.link import Link
from vdpa_net.device.msix import Msix
from vdpa_net.device.net_config import IsrStatus, NetConfig
from vdpa_net.device.options import NetOptions
from vdpa_net.device.packet_path import PacketPath
from vdpa_net.device.queues import Emit, Queue, QueueSet, start_error
from vdpa_net.errors import BackendError, DmaError, StateError, VdpaNetError
from vdpa_net.migration.lm_block import LmBlock
from vdpa_net.migration.violations import ViolationLog
from vdpa_net.wire.virtio_net import F_CTRL_VQ, F_GUEST_ANNOUNCE, F_MQ, F_STATUS, bits
from vdpa_net.wire.virtio_pci import ISR_CONFIG, Status

if TYPE_CHECKING:
    from vdpa_net._native import DataPlane, DmaSpace

_ANNOUNCE = bits((F_GUEST_ANNOUNCE, F_CTRL_VQ, F_STATUS))
"""The driver reads the request in `status` and answers on the control queue."""


class VirtioNet:
    """Common configuration, device configuration, control queue, LM block and queues, working together."""

    def __init__(
        self,
        options: NetOptions,
        backend: Backend,
        plane: DataPlane,
        space: DmaSpace,
        *,
        msix: Msix,
        violations: ViolationLog,
        emit: Emit,
        dma_hint: Callable[[int], str],
    ) -> None:
        self.options = options
        self._backend = backend
        self._plane = plane
        self._space = space
        self._msix = msix
        self._violations = violations
        self._emit = emit
        self._dma_hint = dma_hint
        self.control_queue = options.control_queue
        """Index of the control queue with the negotiated features."""
        self.queues = QueueSet(plane, space, options.queue_sizes(options.queue_pairs), violations, emit)
        self.pairs = ActivePairs(plane, backend, self.queues, options.queue_pairs)
        self._calls: list[int | None] = [None] * self.queues.total
        self.isr = IsrStatus()
        self.common = CommonCfg(
            options.features, self.queues, options.vectors, violations, self, queue_stop=options.vdpa
        )
        self.config = NetConfig(
            options.mac, options.mtu, options.queue_pairs, options.features, self._new_generation
        )
        self.path = PacketPath(plane, backend, self.config, self.pairs)
        self.control = ControlQueue(self.path, violations)
        self.lm = (
            LmBlock(options.profile, space, self.queues, violations, emit, set_pairs=self._set_pairs)
            if options.vdpa
            else None
        )
        self.announcer = Announcer(self._transmit, self._announced)
        self.link = Link(backend, plane)

    def features_ok(self, features: int) -> str | None:
        """Give the back end the negotiated offloads; its reason if it can't have them."""
        try:
            self.path.negotiated(features)
        except BackendError as error:
            return str(error)
        self.queues.features = features
        self._set_multiqueue(bool(features >> F_MQ & 1))
        return None

    def _set_multiqueue(self, on: bool) -> None:
        """Without VIRTIO_NET_F_MQ there is one pair, and queue 2 is the control queue (virtio 1.3, 5.1.2)."""
        self._plane.set_multiqueue(on)
        queue_pairs = self.options.queue_pairs if on else 1
        self.queues.lay_out(self.options.queue_sizes(queue_pairs))
        self.control_queue = None if self.options.control_queue is None else 2 * queue_pairs

    def _has_control_queue(self) -> bool:
        """Whether the driver can send commands: one that can't says what to serve by enabling it."""
        return self.control_queue is not None and self.queues[self.control_queue].enabled

    def driver_ok(self) -> None:
        """Open the way to the network, then serve every enabled queue."""
        try:
            if not self._has_control_queue():
                self.pairs.follow_queues()
            dropped = self.link.go_up()
        except BackendError as error:
            self.needs_reset("backend", str(error))
            return
        self._emit("driver_ok", {"packets_flushed": dropped})
        restored = [self._start(queue) for queue in self.queues if queue.enabled]
        self._emit("started", {"restored": any(restored)})
        if any(restored):
            self._after_restored_start()

    def enable_queue(self, queue: Queue) -> None:
        """The queue may be served from now on, or from DRIVER_OK on."""
        queue.enabled = True
        if not self.common.status & Status.DRIVER_OK:
            return
        self._follow_queues()
        if self._start(queue):
            self._after_restored_start()

    def disable_queue(self, queue: Queue) -> None:
        """Stop a queue and keep its state."""
        if queue.index == self.control_queue:
            self.serve_control_queue()
        self.queues.stop(queue)
        queue.enabled = False
        self.check_queues()
        self._follow_queues()

    def _follow_queues(self) -> None:
        if self._has_control_queue():
            return
        try:
            self.pairs.follow_queues()
        except BackendError as error:
            self.needs_reset("backend", str(error))

    def reset_queue(self, queue: Queue) -> None:
        """Stop a queue and forget its state, its addresses and its vector."""
        self.queues.reset_queue(queue)
        self.vectors_changed()

    def announce(self, mac: bytes) -> None:
        """Announce a station; before DRIVER_OK its packets are kept from now on until its driver comes."""
        try:
            self.link.go_ahead()
        except BackendError as error:
            self._violations.record("backend", "carrier", 1, "Starting again", str(error))
        self.announcer.start(mac)

    def withdraw(self) -> None:
        """An announced station does not come after all: the link is down again until DRIVER_OK."""
        if self.link.is_ahead:
            self.announcer.cancel()
            self._link_down()

    def reset_device(self) -> None:
        """Back to the state of a fresh device, except for the VMM's interrupts and maps. A log barrier.

        A fresh device that has announced a station goes on waiting for its driver, which begins with a reset.
        """
        is_awaited = self.link.is_ahead and self.common.status == 0
        if not is_awaited:
            self.announcer.cancel()
        self.queues.reset()
        # What broke before the reset needs none any more, and what it had to announce is gone.
        self._plane.take_broken_queues()
        self._msix.forget_due()
        self._set_multiqueue(True)
        self._calls = [None] * self.queues.total
        if self.lm is not None:
            self.lm.reset()
        else:
            self._space.barrier()
        if not is_awaited:
            self._link_down()
        self.common.reset()
        self.config.reset()
        self._reset_path()
        self.isr.bits = 0
        self._emit("reset", {})

    def vectors_changed(self) -> None:
        """Point each queue's interrupt to the eventfd of its vector."""
        for queue in self.queues:
            fd = self._msix.fd(queue.msix_vector)
            if fd != self._calls[queue.index]:
                self._calls[queue.index] = fd
                self._plane.set_call(queue.index, fd)

    def vectors_due(self) -> set[int]:
        """Vectors of queues that have something to announce and no eventfd to do it by."""
        return {queue.msix_vector for queue in self.queues if self._plane.is_interrupt_due(queue.index)}

    def kick(self, queue: int) -> None:
        """A doorbell was rung."""
        if not self.options.vdpa and not self.common.status & Status.DRIVER_OK:
            # With vdpa=on a relayed kick may arrive late, between a stop and the next start; rings are
            # scanned then.
            self._violations.record("notify", "kick_before_driver_ok", queue, "3.1.1")
        if queue == self.control_queue:
            self.serve_control_queue()
        else:
            self._plane.kick(queue)

    def serve_control_queue(self) -> None:
        """Serve every control command that is available now."""
        index = self.control_queue
        if index is None or not self._plane.is_running(index):
            return
        try:
            self._plane.process_control(self.control.handle)
        except (DmaError, StateError) as error:
            self._violations.record("control queue", "broken", index, "5.1.6.5", str(error))
        self.check_queues()

    def check_queues(self) -> None:
        """Ask for a reset if a queue broke."""
        broken = self._plane.take_broken_queues()
        if broken:
            self.needs_reset("queues", f"broken queues: {broken}", record=False)

    def needs_reset(self, where: str, detail: str, *, record: bool = True) -> None:
        """Set DEVICE_NEEDS_RESET and tell the driver (virtio 1.3, 2.1.2)."""
        if record:
            self._violations.record(where, "needs_reset", 0, "2.1.2", detail)
        if self.common.status & Status.DEVICE_NEEDS_RESET:
            return
        self.common.status |= Status.DEVICE_NEEDS_RESET
        self._config_interrupt()
        self._emit("needs_reset", {"where": where, "detail": detail})

    def _config_interrupt(self) -> None:
        self.isr.bits |= ISR_CONFIG
        self._msix.raise_vector(self.common.config_msix_vector)

    def close(self) -> None:
        """Stop what is under way and take the link down."""
        self.announcer.cancel()
        self._link_down()

    def _set_pairs(self, pairs: int) -> bool:
        if pairs > self.options.queue_pairs:
            return False
        if pairs:
            try:
                self.pairs.command(pairs)
            except BackendError as error:
                self.needs_reset("backend", str(error))
        self._emit("queue_pairs", {"pairs": pairs})
        return True

    def _start(self, queue: Queue) -> bool:
        """Start an enabled queue; whether its ring state was a restored one."""
        try:
            restored = self.queues.start(queue)
        except (DmaError, StateError) as error:
            self._start_failed(queue, error)
            return False
        if queue.index == self.control_queue:
            self.serve_control_queue()
        return restored

    def _start_failed(self, queue: Queue, error: VdpaNetError) -> None:
        detail = start_error(queue, error)
        for address in (queue.desc, queue.driver, queue.device):
            if hint := self._dma_hint(address):
                detail = f"{detail}; {hint}"
                break
        self._violations.record(f"queue {queue.index}", "queue_start_failed", queue.desc, "4.1.4.3.2", detail)
        self.needs_reset(f"queue {queue.index}", detail, record=False)

    def _after_restored_start(self) -> None:
        self._emit("restored", {})
        self.announcer.start(self.config.mac)
        if self.path.features & _ANNOUNCE == _ANNOUNCE:
            self.config.announce = True
            self._config_interrupt()

    def _transmit(self, frame: bytes) -> bool:
        # A method of the plane's own would hold it after the plane is closed.
        return self._plane.transmit(frame)

    def _announced(self, count: int, error: Exception | None) -> None:
        info: dict[str, object] = {"count": count}
        if error is not None:
            self._violations.record("backend", "announce_failed", count, "Starting again", str(error))
            info["error"] = str(error)
        self._emit("announced", info)

    def _reset_path(self) -> None:
        try:
            self.path.reset()
        except BackendError as error:
            self._violations.record("backend", "active_pairs", 1, "5.1.6.5.5", str(error))

    def _link_down(self) -> None:
        try:
            self.link.go_down()
        except BackendError as error:
            self._violations.record("backend", "carrier", 0, "Starting again", str(error))

    def _new_generation(self) -> None:
        self.common.config_generation = (self.common.config_generation + 1) & 0xFF
