# SPDX-License-Identifier: Apache-2.0
"""A guest's virtio-net driver over a DeviceHandle: what Linux' virtio_pci and virtio_net do, in a few calls.

It also knows the LM registers, so that a test can log, stop and restore a device without the vDPA driver in
between.
"""

from __future__ import annotations

import contextlib
import os
import select
import time
from collections.abc import Callable, Iterable, Sequence

from vdpa_net.closing import Closing
from vdpa_net.driver.handle import DeviceHandle
from vdpa_net.errors import PeerError, StateError
from vdpa_net.testing.guest_cpu import RX, TX, Wires
from vdpa_net.testing.guest_memory import GuestMemory
from vdpa_net.testing.guest_registers import LM_RING_STATE, GuestRegisters
from vdpa_net.testing.net_queues import NetQueues, Shapes
from vdpa_net.testing.ring import Segment
from vdpa_net.testing.ring_formats import allocate_ring
from vdpa_net.wire import virtio_net, virtio_pci
from vdpa_net.wire.virtio_pci import Status

CTRL = 2
"""Index of the control queue of a driver that uses one queue pair (virtio 1.3, 5.1.2)."""

WANTED = virtio_net.bits(
    (
        virtio_pci.F_VERSION_1,
        virtio_pci.F_ACCESS_PLATFORM,
        virtio_pci.F_EVENT_IDX,
        virtio_pci.F_INDIRECT_DESC,
        virtio_net.F_MRG_RXBUF,
        virtio_net.F_MAC,
        virtio_net.F_MTU,
        virtio_net.F_STATUS,
        virtio_net.F_CTRL_VQ,
        virtio_net.F_CTRL_RX,
        virtio_net.F_CTRL_MAC_ADDR,
        virtio_net.F_MQ,
    )
)

PACKED = 1 << virtio_pci.F_RING_PACKED
"""To be added to the features of a driver that is to use packed rings."""

_CONFIG_VECTOR = 0
_RARP = b"\x80\x35"


class GuestDriver(GuestRegisters, Closing):
    """Drives one device. `start` brings it up; then frames travel by `queues`, or by a GuestCpu on `wires()`.

    The device reaches guest memory at IOVA = guest physical address.
    """

    def __init__(
        self,
        handle: DeviceHandle,
        memory: GuestMemory,
        *,
        features: int = WANTED,
        pairs: int = 1,
        slots: tuple[int, int] = (192, 64),
        queue_size: int = 256,
        seed: int = 0,
        shapes: Shapes | None = None,
        first_index: int = 0,
        region: int = 0,
        timeout_s: float = 10.0,
    ) -> None:
        """Uses `pairs` queue pairs, each with so many receive and transmit buffers as `slots` says.

        MQ is negotiated for several pairs only. RING_PACKED among `features` makes the rings packed ones; a
        device without it is then refused. `timeout_s` is how long the device may take to reset or to stop a
        queue.
        """
        self.memory = memory
        self.pairs = pairs
        self.ctrl = 2 * pairs
        self._timeout_s = timeout_s
        self.features = 0
        self._wanted = features if pairs > 1 else features & ~(1 << virtio_net.F_MQ)
        self._shapes = shapes
        super().__init__(handle)
        self.attach(handle)
        packed = bool(features & PACKED)
        self.rings = [
            allocate_ring(memory, queue_size, packed=packed, first_index=first_index, region=region)
            for _ in range(2 * pairs)
        ] + [allocate_ring(memory, 16, packed=packed, region=region)]
        self.call_fds = [os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK) for _ in range(1 + len(self.rings))]
        self._command = memory.allocate(4096, region=region)
        self._ack = memory.allocate(4096, region=region)
        self.net = [
            NetQueues(
                memory,
                self.rings[2 * pair + RX],
                self.rings[2 * pair + TX],
                seed=seed + pair,
                rx_slots=slots[0],
                tx_slots=slots[1],
                region=region,
            )
            for pair in range(pairs)
        ]
        self.queues = self.net[0]
        self._doorbells: list[tuple[int, int]] = []

    def attach(self, handle: DeviceHandle) -> None:
        """Go over to a device: find its registers and let it reach the memory. `start` comes next."""
        self.use(handle)
        for part in self.memory.regions:
            handle.dma_map(part.gpa, part.size_bytes, self.memory.fd, part.file_offset)

    # --- life -----------------------------------------------------------------------------------

    def start(self, ring_states: dict[int, int] | None = None) -> None:
        """Initialise the device in the order of virtio 1.3, 3.1.1, and start its queues.

        `ring_states` are LM_RING_STATE values to restore, by queue. Raises PeerError if the features are
        refused.
        """
        self.reset()
        self.write_common("device_status", Status.ACKNOWLEDGE)
        self.write_common("device_status", Status.ACKNOWLEDGE | Status.DRIVER)
        self._negotiate()
        self._set_up_interrupts()
        self._doorbells = [
            self._set_up_queue(queue, ring_states or {}) for queue in range(self._queue_count())
        ]
        self.write_common("device_status", self.read_common("device_status") | Status.DRIVER_OK)

    def _queue_count(self) -> int:
        return 2 * self.pairs + self._has(virtio_net.F_CTRL_VQ)

    def _negotiate(self) -> None:
        offered = 0
        for half in range(2):
            self.write_common("device_feature_select", half)
            offered |= self.read_common("device_feature") << 32 * half
        self.features = offered & self._wanted
        if self._wanted & PACKED & ~offered:
            raise PeerError(f"the device offers {offered:#x}, without the packed rings of this driver")
        for half in range(2):
            self.write_common("driver_feature_select", half)
            self.write_common("driver_feature", self.features >> 32 * half & 0xFFFF_FFFF)
        accepted = Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK
        self.write_common("device_status", accepted)
        if not self.status & Status.FEATURES_OK:
            raise PeerError(f"the device refuses the features {self.features:#x} of the offered {offered:#x}")
        for ring in self.rings:
            ring.event_idx = self._has(virtio_pci.F_EVENT_IDX)
            ring.arm()
        if self.pairs > 1 and not self._has(virtio_net.F_MQ):
            raise PeerError(f"the device does not offer MQ, which {self.pairs} queue pairs need")
        for queues in self.net:
            queues.shapes = self._shapes or Shapes(
                mergeable=self._has(virtio_net.F_MRG_RXBUF), indirect=self._has(virtio_pci.F_INDIRECT_DESC)
            )

    def _has(self, bit: int) -> bool:
        return bool(self.features >> bit & 1)

    def _set_up_interrupts(self) -> None:
        self.handle.set_irqs(0, list(self.call_fds))
        self.write_common("config_msix_vector", _CONFIG_VECTOR)

    def _set_up_queue(self, queue: int, ring_states: dict[int, int]) -> tuple[int, int]:
        ring = self.rings[queue]
        self.write_common("queue_select", queue)
        self.write_common("queue_size", ring.size)
        self.write_common("queue_msix_vector", queue + 1)
        self.write_common("queue_desc", ring.desc)
        self.write_common("queue_driver", ring.driver)
        self.write_common("queue_device", ring.device)
        notify = self.capabilities[virtio_pci.CAP_NOTIFY_CFG]
        doorbell = notify.offset + self.read_common("queue_notify_off") * notify.multiplier
        if queue in ring_states:
            self.write_lm(LM_RING_STATE + 4 * queue, ring_states[queue])
        self.write_common("queue_enable", 1)
        return notify.region, doorbell

    def reset(self) -> None:
        """Write 0 to device_status and wait until it reads 0 (virtio 1.3, 4.1.4.3.2)."""
        self.write_common("device_status", 0)
        self._wait_until(lambda: self.read_common("device_status") == 0, "the device to finish its reset")

    def reset_queue(self, queue: int) -> None:
        """Reset one queue and start it again, empty (virtio 1.3, 2.6.1; needs RING_RESET)."""
        self.write_common("queue_select", queue)
        self.write_common("queue_reset", 1)
        self._wait_until(
            lambda: not self.read_common("queue_reset") and not self.read_common("queue_enable"),
            f"the reset of queue {queue}",
        )
        self.rings[queue].reset()
        if queue != self.ctrl:
            self.net[queue // 2].forget(self.rings[queue])
        self._doorbells[queue] = self._set_up_queue(queue, {})

    def kick(self, queue: int) -> None:
        """Ring the queue's doorbell."""
        region, offset = self._doorbells[queue]
        self.handle.write(region, offset, queue.to_bytes(2, "little"), posted=True)

    def wires(self) -> Wires:
        """For a GuestCpu on this device."""
        return Wires(self.kick, self.call_fds[1 + RX : 1 + TX + 1])

    def close(self) -> None:
        """Let go of the interrupts; the handle and the memory are the caller's."""
        for fd in self.call_fds:
            os.close(fd)
        self.call_fds = []

    # --- packets --------------------------------------------------------------------------------

    def publish(self, pair: int = 0) -> None:
        """Make new buffers of both queues of a pair available, with a kick where the device wants one."""
        for queue in (2 * pair + RX, 2 * pair + TX):
            if self.rings[queue].publish():
                self.kick(queue)

    def send(self, frames: Iterable[bytes], pair: int = 0) -> int:
        """Transmit frames while there is room; returns how many. Receive buffers are posted before."""
        self.net[pair].post_receive()
        count = 0
        for frame in frames:
            if not self.net[pair].transmit(frame):
                break
            count += 1
        self.publish(pair)
        return count

    def receive(self, count: int, timeout_s: float = 10.0, pair: int = 0) -> list[bytes]:
        """Wait for `count` frames. Raises StateError with the number that came in time.

        RARP is not counted: a device that was restored announces itself, and a loopback returns that.
        """
        frames: list[bytes] = []
        deadline = time.monotonic() + timeout_s
        while len(frames) < count:
            frames += [frame for frame in self.net[pair].receive() if frame[12:14] != _RARP]
            if len(frames) < count and not self.rings[2 * pair + RX].arm():
                self._wait_for_call(2 * pair + RX, deadline, f"{count} frames, {len(frames)} came")
        return frames

    def finish_transmit(self, timeout_s: float = 10.0, pair: int = 0) -> None:
        """Wait until every transmitted frame is completed."""
        deadline = time.monotonic() + timeout_s
        queues, queue = self.net[pair], 2 * pair + TX
        while True:
            for used in self.rings[queue].reap():
                queues.take_transmit(used)
            if not queues.transmit_posted:
                return
            if not self.rings[queue].arm():
                self._wait_for_call(queue, deadline, f"{queues.transmit_posted} completions")

    def _wait_for_call(self, queue: int, deadline: float, what: str) -> None:
        fd = self.call_fds[queue + 1]
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        if not poll.poll(1000 * max(0.0, deadline - time.monotonic())):
            raise StateError(f"waited in vain for {what}; queue {queue} was not announced")
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(fd)

    def control(self, command_class: int, command: int, data: bytes = b"", timeout_s: float = 10.0) -> int:
        """Send a control command; its ack (virtio 1.3, 5.1.6.5)."""
        ring = self.rings[self.ctrl]
        self.memory.write(self._command, bytes((command_class, command)) + data)
        self.memory.write(self._ack, b"\xff")
        ring.add([Segment(self._command, 2 + len(data)), Segment(self._ack, 1, True)])
        if ring.publish():
            self.kick(self.ctrl)
        deadline = time.monotonic() + timeout_s
        while not ring.reap():
            if not ring.arm():
                self._wait_for_call(self.ctrl, deadline, "the ack of a control command")
        return self.memory.read(self._ack, 1)[0]

    def set_active_pairs(self, count: int) -> int:
        """VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET; its ack (virtio 1.3, 5.1.6.5.5)."""
        data = count.to_bytes(2, "little")
        return self.control(virtio_net.CTRL_MQ, virtio_net.CTRL_MQ_VQ_PAIRS_SET, data)

    def stop_queues(self, order: Sequence[int] = (RX, TX)) -> dict[int, tuple[int, int]]:
        """queue_enable = 0, wait for 0, LM_RING_STATE: per queue, in this order."""
        states = {}
        for queue in order:
            self.write_common("queue_select", queue)
            self.write_common("queue_enable", 0)
            self._wait_until(lambda: self.read_common("queue_enable") == 0, f"queue {queue} to stop")
            states[queue] = self.ring_state(queue)
        return states

    def _wait_until(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + self._timeout_s
        while not condition():
            if time.monotonic() > deadline:
                raise StateError(f"waited {self._timeout_s} s in vain for {what}")
