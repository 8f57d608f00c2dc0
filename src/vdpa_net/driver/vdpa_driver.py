# SPDX-License-Identifier: Apache-2.0
"""The vDPA driver: drives a device through its registers only, in the order that docs/lm-registers.md gives.

start:    reset, unless it is reset; ACKNOWLEDGE, DRIVER, features, FEATURES_OK; logging, where it is wanted;
          per queue its addresses, size, MSI-X vector, LM_RING_STATE and queue_enable = 1; DRIVER_OK
logging:  map the log, BASE, END, LM_LOGGING_CTRL = 1, read back; off: 0, read back, unmap
stop:     per queue: queue_enable = 0, read until 0, LM_RING_STATE; after the last one: logging off, reset
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from vdpa_net.driver.config_interrupt import CONFIG_VECTOR
from vdpa_net.driver.device_maps import DeviceMaps
from vdpa_net.driver.handle import AsksForMaps, CanAnnounce, DeviceHandle
from vdpa_net.driver.log_area import LogArea, LogMapping
from vdpa_net.driver.page_requests import PageRequests
from vdpa_net.driver.pci_scan import VirtioFunction, Window, scan
from vdpa_net.driver.queue_setup import QueueRecord, QueueSetup
from vdpa_net.errors import ProtocolError, StateError
from vdpa_net.wire import pci, virtio_net
from vdpa_net.wire.layout import Register, RegisterMap
from vdpa_net.wire.lm import PAIRS, Profile, pack_ring_state, ring_state_name, unpack_ring_state
from vdpa_net.wire.virtio_net import DEVICE_CFG
from vdpa_net.wire.virtio_pci import COMMON_CFG, MSI_NO_VECTOR, Status

STOP_SECONDS = 5.0
POLL_SECONDS = 0.001
_COMMAND_MEMORY_AND_BUS_MASTER = 0x6


@dataclass
class _Running:
    features: int
    log: LogMapping | None = None
    enabled: set[int] = field(default_factory=set)
    pairs: set[int] = field(default_factory=set)


class VdpaDriver:
    """Drives one device. Not started twice: `start`, then `stop_queue` for each queue, then `finish`.

    Raises ProtocolError for a device that does not do what virtio or its LM registers promise, StateError for
    calls out of order, and what the handle raises.
    """

    def __init__(self, handle: DeviceHandle, profile: Profile | None = None) -> None:
        """Find the device's structures and reset it. Without a profile the subsystem id tells it."""
        self.handle = handle
        self.maps = DeviceMaps(handle)
        self._function: VirtioFunction = scan(handle, profile)
        self._profile = self._function.profile
        self._running: _Running | None = None
        self._records: dict[int, QueueRecord] = {}
        self._record_lock = threading.Lock()
        self._notify_offs: dict[int, int] = {}
        self._enable_bus_mastering()
        self.reset()
        self.device_features = self._read_features()
        # The control queue, where there is one, comes after the last pair and is not ours to drive.
        self.queue_pairs = self._read(COMMON_CFG, self._function.common, "num_queues") // 2

    @property
    def is_running(self) -> bool:
        """Between `start` and `finish`."""
        return self._running is not None

    def is_enabled(self, queue: int) -> bool:
        """Whether the queue has been started and not been stopped."""
        return self._running is not None and queue in self._running.enabled

    @property
    def is_logging(self) -> bool:
        """Whether the device was told to log."""
        return self._running is not None and self._running.log is not None

    @property
    def log_range(self) -> tuple[int, int] | None:
        """(base, end) of the log in the device's DMA space, while it logs."""
        log = self._running.log if self._running is not None else None
        return None if log is None else (log.base, log.end)

    def needs_reset(self) -> bool:
        """Whether the device can't go on without a reset (virtio 1.3, 2.1.2)."""
        return bool(self._status() & Status.DEVICE_NEEDS_RESET)

    def device_config(self) -> bytes:
        """The device configuration, read as one piece (virtio 1.3, 2.5.1)."""
        while True:
            before = self._read(COMMON_CFG, self._function.common, "config_generation")
            config = b"".join(self._read_config_field(register) for register in DEVICE_CFG)
            if self._read(COMMON_CFG, self._function.common, "config_generation") == before:
                return config

    def asks_for_maps(self) -> AsksForMaps | None:
        """How the device tells of maps that it misses, if it does: by its handle, or by registers."""
        if isinstance(self.handle, AsksForMaps):
            return self.handle
        window = self._function.page_requests
        # The last vector is that of the control queue, which is not ours to drive.
        vector = self._function.num_vectors - 1
        if window is None or vector <= 2 * self.queue_pairs:
            return None
        return PageRequests(self.handle, window.region, window.offset, vector)

    def announce(self, mac: str) -> bool:
        """Have the device announce this station, if there is a way to ask it; whether there is."""
        if not isinstance(self.handle, CanAnnounce):
            return False
        self.handle.announce(mac)
        return True

    def withdraw(self) -> None:
        """The station that the device was asked to announce does not come."""
        if isinstance(self.handle, CanAnnounce):
            self.handle.withdraw()

    def max_queue_size(self, queue: int) -> int:
        """The largest size that the device takes (before the start: queue_size after a reset)."""
        self._select(queue)
        return self._read(COMMON_CFG, self._function.common, "queue_size")

    def start(self, features: int, queues: Sequence[QueueSetup], log: LogArea | None) -> None:
        """Start the device with these queues, logging first if there is a log."""
        if self._running is not None:
            raise StateError("the driver runs its device already")
        # A migrated guest stands still, and a reset takes as long as the rest. Status 0: the last one holds.
        if self._status() != 0:
            self.reset()
        self._running = _Running(features)
        try:
            self._negotiate(features)
            if log is not None:
                self.start_logging(log)
            self._enable_pairs({setup.index // 2 for setup in queues})
            for setup in queues:
                self.start_queue(setup)
            self._write_status(self._status() | Status.DRIVER_OK)
        except BaseException:
            self.abandon()
            raise

    def start_queue(self, setup: QueueSetup) -> None:
        """Describe a stopped queue to the device and enable it at its ring state."""
        running = self._need_running()
        self._enable_pairs({setup.index // 2})
        self._select(setup.index)
        areas = setup.guest_addresses or (setup.descriptor, setup.available, setup.used)
        record = QueueRecord(setup.index, setup.size, *areas)
        for name, value in (
            ("queue_desc", setup.descriptor),
            ("queue_driver", setup.available),
            ("queue_device", setup.used),
        ):
            self._write(COMMON_CFG, self._function.common, name, value)
        self._set(setup.index, "queue_size", setup.size)
        self._set(setup.index, "queue_msix_vector", setup.index + 1)
        state = pack_ring_state(setup.last_avail_idx, setup.used_idx)
        self._write_lm(ring_state_name(setup.index), state)
        record.ring_state_before_enable = self._read_lm(ring_state_name(setup.index))
        record.started_ns = time.monotonic_ns()
        self._write(COMMON_CFG, self._function.common, "queue_enable", 1)
        running.enabled.add(setup.index)
        with self._record_lock:
            self._records[setup.index] = record

    def stop_queue(self, queue: int) -> tuple[int, int]:
        """Stop a queue; its final (last_avail_idx, used_idx). A stopped one just tells them."""
        running = self._need_running()
        requested_ns = time.monotonic_ns()
        stopping = queue in running.enabled
        if stopping:
            self._disable(queue)
            running.enabled.discard(queue)
        state = self._read_lm(ring_state_name(queue))
        with self._record_lock:
            record = self._records[queue]
            record.ring_state_after_stop = state
            if stopping:
                record.stop_requested_ns, record.stopped_ns = requested_ns, time.monotonic_ns()
        return unpack_ring_state(state)

    def resume_queue(self, queue: int) -> None:
        """Let a queue that was stopped go on where it stood."""
        running = self._need_running()
        if queue not in running.enabled:
            self._select(queue)
            self._write(COMMON_CFG, self._function.common, "queue_enable", 1)
            running.enabled.add(queue)

    def start_logging(self, area: LogArea) -> None:
        """Log to this area from now on, instead of another one if there is one.

        Raises ProtocolError if the device does not take it; then it logs as before.
        """
        running = self._need_running()
        mapping = LogMapping(self.maps, area, previous=running.log)
        try:
            self._write_lm_address("LM_BASE_ADDR", mapping.base)
            self._write_lm_address("LM_END_ADDR", mapping.end)
            self._write_lm("LM_LOGGING_CTRL", 1)
            control = self._read_lm("LM_LOGGING_CTRL")
            if control != 1:
                raise ProtocolError(
                    f"LM_LOGGING_CTRL reads {control:#x} after 1 was written with the log at "
                    f"[{mapping.base:#x}, {mapping.end:#x}): the device does not log"
                )
        except BaseException:
            mapping.close()
            raise
        before, running.log = running.log, mapping
        self.maps.log_to((mapping.base, mapping.end))
        if before is not None:
            before.close()

    def stop_logging(self) -> None:
        """Log no more and take the log back."""
        running = self._need_running()
        if running.log is None:
            return
        self._write_lm("LM_LOGGING_CTRL", 0)
        control = self._read_lm("LM_LOGGING_CTRL")
        if control != 0:
            raise ProtocolError(f"LM_LOGGING_CTRL reads {control:#x} after 0 was written: the device logs on")
        self.maps.log_to(None)
        running.log.close()
        running.log = None

    def finish(self) -> None:
        """All queues have stopped: logging off, log unmapped, device reset."""
        running = self._need_running()
        if running.enabled:
            raise StateError(f"queues {sorted(running.enabled)} still run, expected all of them stopped")
        self.stop_logging()
        self.reset()
        self._running = None

    def abandon(self) -> None:
        """Whatever the state: reset the device and forget everything. The reset is the log's barrier."""
        running, self._running = self._running, None
        try:
            self.reset()
        finally:
            self.maps.log_to(None)
            if running is not None and running.log is not None:
                running.log.close()

    def reset(self) -> None:
        """Reset the device and wait until it says so (virtio 1.3, 4.1.4.3.2)."""
        self._write(COMMON_CFG, self._function.common, "device_status", 0)
        self._await("device_status", 0, "after a reset")

    def bind_call(self, queue: int, fd: int | None) -> None:
        """Interrupt the guest for this queue by this eventfd. The queue's vector is queue + 1."""
        vector = queue + 1
        if vector >= self._function.num_vectors:
            raise ProtocolError(
                f"queue {queue} needs MSI-X vector {vector}, the device has {self._function.num_vectors}"
            )
        self.handle.set_irqs(vector, [fd])
        # A front end gives this long before it starts a ring, which then need not ask.
        self._notify_off(queue)

    def bind_kick(self, queue: int, fd: int | None) -> None:
        """Let this eventfd ring the queue's doorbell."""
        notify = self._function.notify
        offset = self._notify_off(queue) * self._function.notify_off_multiplier
        if offset + 2 > notify.length:
            raise ProtocolError(
                f"doorbell of queue {queue} at {offset:#x}, notify has {notify.length:#x} bytes"
            )
        self.handle.attach_kick(queue, fd, notify.region, notify.offset + offset)

    def evidence(self) -> dict[str, object]:
        """What the driver saw, as JSON values: `queues`, a list of QueueRecord by queue."""
        with self._record_lock:
            return {"queues": [asdict(record) for _, record in sorted(self._records.items())]}

    # --- steps --------------------------------------------------------------------------------------

    def _enable_bus_mastering(self) -> None:
        offset = pci.HEADER["command"].offset
        command = int.from_bytes(self.handle.read(pci.CONFIG_REGION, offset, 2), "little")
        self._write_config(offset, command | _COMMAND_MEMORY_AND_BUS_MASTER)
        self._write_config(self._function.msix_control_offset, pci.MSIX_ENABLE)

    def _write_config(self, offset: int, value: int) -> None:
        self.handle.write(pci.CONFIG_REGION, offset, value.to_bytes(2, "little"))

    def _read_features(self) -> int:
        features = 0
        for half in (0, 1):
            self._write(COMMON_CFG, self._function.common, "device_feature_select", half)
            features |= self._read(COMMON_CFG, self._function.common, "device_feature") << 32 * half
        return features

    def _negotiate(self, features: int) -> None:
        self._write_status(Status.ACKNOWLEDGE)
        self._write_status(Status.ACKNOWLEDGE | Status.DRIVER)
        self._write(COMMON_CFG, self._function.common, "config_msix_vector", CONFIG_VECTOR)
        features |= self._multiqueue_features()
        for half in (0, 1):
            self._write(COMMON_CFG, self._function.common, "driver_feature_select", half)
            word = features >> 32 * half & 0xFFFF_FFFF
            self._write(COMMON_CFG, self._function.common, "driver_feature", word)
        self._write_status(Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK)
        status = self._status()
        if not status & Status.FEATURES_OK:
            raise ProtocolError(
                f"the device refuses the features {features:#x} of its {self.device_features:#x}: "
                f"FEATURES_OK reads 0 (virtio 1.3, 3.1.1)"
            )

    def _multiqueue_features(self) -> int:
        """Without MQ the device has one pair (virtio 1.3, 5.1.2), whatever the front end is going to use.

        MQ requires CTRL_VQ (5.1.3.1). The control queue stays disabled: the front end has its own, and the
        device serves the pairs that are enabled.
        """
        wanted = virtio_net.bits((virtio_net.F_MQ, virtio_net.F_CTRL_VQ))
        return wanted if self.queue_pairs > 1 and self.device_features & wanted == wanted else 0

    def _enable_pairs(self, more: set[int]) -> None:
        """Say how many queue pairs are in use, where the layout has a register for that."""
        running = self._need_running()
        if self._profile.pairs_register is not None and not more <= running.pairs:
            running.pairs |= more
            self._write_lm(PAIRS, len(running.pairs))

    def _set(self, queue: int, name: str, value: int) -> None:
        """Write what the device may refuse: it then keeps another size, or has no such vector (4.1.5.1)."""
        self._write(COMMON_CFG, self._function.common, name, value)
        got = self._read(COMMON_CFG, self._function.common, name)
        if got != value:
            none = " (VIRTIO_MSI_NO_VECTOR)" if got == MSI_NO_VECTOR else ""
            raise ProtocolError(f"{name} of queue {queue} reads {got:#x}{none}, {value:#x} was written")

    def _disable(self, queue: int) -> None:
        self._select(queue)
        self._write(COMMON_CFG, self._function.common, "queue_enable", 0)
        self._await("queue_enable", 0, f"of queue {queue} after its stop")

    def _await(self, name: str, wanted: int, when: str) -> None:
        deadline = time.monotonic() + STOP_SECONDS
        while (got := self._read(COMMON_CFG, self._function.common, name)) != wanted:
            if time.monotonic() >= deadline:
                raise ProtocolError(f"{name} {when} reads {got:#x} for {STOP_SECONDS} s, expected {wanted}")
            # A register is all there is to wait on.
            time.sleep(POLL_SECONDS)

    def _read_config_field(self, register: Register) -> bytes:
        window = self._function.device
        if register.end > window.length:
            return bytes(register.width)
        return self.handle.read(window.region, window.offset + register.offset, register.width)

    def _notify_off(self, queue: int) -> int:
        if queue not in self._notify_offs:
            self._select(queue)
            self._notify_offs[queue] = self._read(COMMON_CFG, self._function.common, "queue_notify_off")
        return self._notify_offs[queue]

    def _select(self, queue: int) -> None:
        self._write(COMMON_CFG, self._function.common, "queue_select", queue)

    def _status(self) -> int:
        return self._read(COMMON_CFG, self._function.common, "device_status")

    def _write_status(self, status: int) -> None:
        self._write(COMMON_CFG, self._function.common, "device_status", status)

    def _write_lm_address(self, name: str, value: int) -> None:
        self._write_lm(f"{name}_LOW", value & 0xFFFF_FFFF)
        self._write_lm(f"{name}_HIGH", value >> 32)

    def _read_lm(self, name: str) -> int:
        return self._read(self._profile.registers, self._function.lm, name)

    def _write_lm(self, name: str, value: int) -> None:
        self._write(self._profile.registers, self._function.lm, name, value)

    def _read(self, table: RegisterMap, window: Window, name: str) -> int:
        register = table[name]
        data = self.handle.read(window.region, window.offset + register.offset, register.width)
        return int.from_bytes(data, "little")

    def _write(self, table: RegisterMap, window: Window, name: str, value: int) -> None:
        register = table[name]
        data = value.to_bytes(register.width, "little")
        self.handle.write(window.region, window.offset + register.offset, data)

    def _need_running(self) -> _Running:
        if self._running is None:
            raise StateError("the driver has not started its device")
        return self._running
