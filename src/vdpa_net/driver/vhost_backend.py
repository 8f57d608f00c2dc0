# SPDX-License-Identifier: Apache-2.0
"""What vhost-user messages mean for a device behind a vDPA driver. Messages may come in any order and again.

docs/vhost-user.md says it message by message.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from typing import Final

from vdpa_net.driver.config_interrupt import ConfigInterrupt
from vdpa_net.driver.memory_rest import MemoryRest
from vdpa_net.driver.memory_table import MemoryTable
from vdpa_net.driver.vdpa_driver import VdpaDriver
from vdpa_net.driver.vhost_config import VhostConfig
from vdpa_net.driver.vhost_iommu import VhostIommu
from vdpa_net.driver.vhost_log import VhostLog
from vdpa_net.driver.vhost_rings import VhostRings
from vdpa_net.errors import ProtocolError
from vdpa_net.transport.vhost_user.channel import BackendChannel
from vdpa_net.wire import virtio_net, virtio_pci
from vdpa_net.wire.vhost_user import (
    F_LOG_ALL,
    F_PROTOCOL_FEATURES,
    MAX_MEM_SLOTS,
    MAX_QUEUES,
    MemoryRegion,
    VringAddresses,
)

VHOST_FEATURES: Final = sum(
    1 << bit
    for bit in (
        virtio_pci.F_VERSION_1,
        virtio_pci.F_INDIRECT_DESC,
        virtio_pci.F_EVENT_IDX,
        virtio_pci.F_RING_PACKED,
        virtio_pci.F_IN_ORDER,
        virtio_pci.F_ORDER_PLATFORM,
        virtio_pci.F_ACCESS_PLATFORM,
        virtio_net.F_MTU,
        virtio_net.F_MQ,
        virtio_net.F_MRG_RXBUF,
        virtio_net.F_CSUM,
        virtio_net.F_GUEST_CSUM,
        virtio_net.F_HOST_TSO4,
        virtio_net.F_HOST_TSO6,
        virtio_net.F_HOST_ECN,
        virtio_net.F_GUEST_TSO4,
        virtio_net.F_GUEST_TSO6,
        virtio_net.F_GUEST_ECN,
    )
)
"""What a front end may take of the device's features; MAC, status, control queue are the front end's own.

RING_RESET is not among them: QEMU gives it to its guest where a back end offers it, and then tells the back
end nothing of a queue that the guest has reset (hw/net/virtio-net.c does that for taps only).
"""

SWITCH_OVER_S: Final = 0.05
"""How long a front end that has stopped all rings while it logged is left alone: it sends the last pages, and
what it sends them to starts."""

_KEPT_COMPLAINTS: Final = 64

_ACCESS_PLATFORM: Final = 1 << virtio_pci.F_ACCESS_PLATFORM

_OWN_FEATURES: Final = F_LOG_ALL | F_PROTOCOL_FEATURES
"""vhost's own bits, of which the device knows nothing."""


class VhostBackend:
    """transport.vhost_user's Backend on one device. Thread-safe.

    Everything the front end says is checked; ProtocolErrors name the value, and leave the back end as it was.
    `rarp_requests` are the MAC addresses of SEND_RARP since the connection, `complaints` what went wrong
    while no message was being answered (the last 64).
    """

    def __init__(self, driver: VdpaDriver) -> None:
        self._driver = driver
        self._lock = threading.RLock()
        self.complaints: deque[str] = deque(maxlen=_KEPT_COMPLAINTS)
        self._memory = MemoryTable(driver.maps)
        self._log = VhostLog(driver, self._lock, self.complaints.append)
        self._iommu = VhostIommu(driver, self._lock, self._memory, self._log, self.complaints.append)
        self._log.translations = self._iommu.iotlb.translations
        self._config = VhostConfig(driver)
        self._queue_pairs = min(driver.queue_pairs, MAX_QUEUES // 2)
        self._rings = VhostRings(
            driver, self._iommu, 2 * self._queue_pairs, self._lock, self.complaints.append
        )
        self._memory.at_rest = self._rings.at_rest
        self._rest = MemoryRest(self._rings, self._memory, self._lock, self.complaints.append)
        self._rings.needs_enable = lambda: bool(self._features & F_PROTOCOL_FEATURES)
        self._rings.device_features = self._device_features
        self._rings.on_start = self._on_start
        self._rings.on_stopped = self._log.carry_over
        self._rings.log = lambda: self._log.for_start(translated=self._iommu.translated)
        self._features = 0
        self._status = 0
        self._has_run = False
        self._channel: BackendChannel | None = None
        self._takes_config = False
        self._config_interrupt: ConfigInterrupt | None = None
        self.rarp_requests: list[str] = []

    # --- features and status -------------------------------------------------------------------------

    def get_features(self) -> int:
        """The device's features that a front end may take, and vhost's own two."""
        offered = self._driver.device_features & VHOST_FEATURES | _OWN_FEATURES
        return offered if self._iommu.is_possible else offered & ~_ACCESS_PLATFORM

    def set_features(self, features: int) -> None:
        """Take the acknowledged features; LOG_ALL switches logging at any time."""
        if unknown := features & ~self.get_features():
            raise ProtocolError(
                f"SET_FEATURES: {features:#x} has the bits {unknown:#x} that were not offered"
            )
        with self._lock:
            changed = (features ^ self._features) & ~_OWN_FEATURES
            if changed and self._driver.is_running:
                raise ProtocolError(f"SET_FEATURES: {features:#x} changes {changed:#x} while the rings run")
            self._iommu.set_translated(bool(features & _ACCESS_PLATFORM))
            self._log.set_wanted(bool(features & F_LOG_ALL))
            self._features = features
            self._rings.settle()

    def set_status(self, status: int) -> None:
        """Remember the status; 0 is a device reset, DRIVER_OK starts what is ready."""
        with self._lock:
            self._status = status
            if status == 0:
                if self._driver.is_logging:
                    # QEMU migrates. It sends this before or behind GET_VRING_BASE, and its machine stands
                    # still meanwhile: log off and reset come when it has been quiet.
                    self._rings.stop_rings()
                else:
                    self._rings.stop_all()
                self._config.reset()
                return
            self._rings.finish_stops()
            if status & virtio_pci.Status.DRIVER_OK:
                self._rings.settle(all_described=True)

    def get_status(self) -> int:
        """The status as it was set, with DEVICE_NEEDS_RESET from the device."""
        with self._lock:
            needs_reset = self._driver.is_running and self._driver.needs_reset()
            return self._status | (virtio_pci.Status.DEVICE_NEEDS_RESET if needs_reset else 0)

    def reset_device(self) -> None:
        """Disable all rings and return to the initial state. Memory, log and eventfds for calls stay."""
        with self._lock:
            self._rings.reset()
            self._config.reset()
            self._features &= _OWN_FEATURES
            self._status = 0

    def reset_owner(self) -> None:
        """Disable all rings ("VHOST_USER_RESET_OWNER")."""
        with self._lock:
            for index in range(2 * self._queue_pairs):
                self._rings.set_enable(index, False)

    def get_queue_num(self) -> int:
        """Queue pairs."""
        return self._queue_pairs

    # --- device configuration ------------------------------------------------------------------------

    def get_config(self, offset: int, size: int) -> bytes:
        """Bytes of the device's configuration."""
        with self._lock:
            return self._config.read(offset, size)

    def set_config(self, offset: int, data: bytes, *, migration: bool) -> None:
        """Take configuration that a migration brings along; no field is the guest's to write."""
        with self._lock:
            self._config.write(offset, data, migration=migration)

    def set_mtu(self, mtu: int) -> None:
        """Accept an MTU that the device carries."""
        with self._lock:
            self._config.check_mtu(mtu)

    # --- memory and log ------------------------------------------------------------------------------

    def set_mem_table(self, regions: Sequence[MemoryRegion], fds: Sequence[int]) -> None:
        """Replace the memory table, also while the rings run."""
        with self._lock:
            self._memory.replace(regions, fds)
            self._rest.end()

    def add_mem_region(self, region: MemoryRegion, fd: int) -> None:
        """Add a region, also while the rings run."""
        with self._lock:
            if len(self._memory.regions) >= MAX_MEM_SLOTS:
                raise ProtocolError(f"ADD_MEM_REG: there are {MAX_MEM_SLOTS} regions, which is the limit")
            self._memory.add(region, fd)
            self._rest.added()
            self._rings.settle()

    def remove_mem_region(self, region: MemoryRegion) -> None:
        """Remove a region. Rings that run rest until its memory is back, or does not come."""
        with self._lock:
            self._memory.remove(region)

    def get_max_mem_slots(self) -> int:
        """How many regions ADD_MEM_REG may add."""
        return MAX_MEM_SLOTS

    def set_log_base(self, size_bytes: int, offset_bytes: int, fd: int) -> None:
        """Use this log, from now on if LOG_ALL is set."""
        with self._lock:
            self._log.set_base(size_bytes, offset_bytes, fd)

    def set_log_fd(self, fd: int) -> None:
        """Where to tell that the log was written."""
        with self._lock:
            self._log.set_fd(fd)

    # --- rings ---------------------------------------------------------------------------------------

    def set_vring_num(self, index: int, num: int) -> None:
        """Ring size."""
        with self._lock:
            self._rings.set_num(index, num)

    def set_vring_addr(self, addresses: VringAddresses) -> None:
        """Ring addresses."""
        with self._lock:
            self._rings.set_addresses(addresses)

    def set_vring_base(self, index: int, num: int) -> None:
        """Where the ring starts."""
        with self._lock:
            self._rings.set_base(index, num)

    def get_vring_base(self, index: int) -> int:
        """Stop the ring; where it stands. What remains to be done for a stop is left to `finish_stops`."""
        with self._lock:
            return self._rings.get_base(index)

    def set_vring_kick(self, index: int, fd: int | None) -> None:
        """The guest's kick."""
        with self._lock:
            self._rings.set_kick(index, fd)

    def set_vring_call(self, index: int, fd: int | None) -> None:
        """The guest's interrupt."""
        with self._lock:
            # QEMU gives these when it begins, also where it waits for a guest: threads start now, not then.
            self._take_config_interrupt()
            self._rings.set_call(index, fd)

    def set_vring_err(self, index: int, fd: int | None) -> None:
        """Where to tell of a broken ring."""
        with self._lock:
            self._rings.set_err(index, fd)

    def set_vring_enable(self, index: int, enable: bool) -> None:
        """Serve a ring or not."""
        with self._lock:
            self._rings.set_enable(index, enable)

    # --- the rest ------------------------------------------------------------------------------------

    def send_rarp(self, mac: bytes) -> None:
        """Announce the guest, where the device can be asked to; it announces its own MAC without being asked
        after a restored start. Before the first start the guest is on its way: its packets wait for it."""
        text = mac.hex(":")
        if mac[0] & 1 or not any(mac):
            raise ProtocolError(f"SEND_RARP: {text} is the MAC address of no station")
        with self._lock:
            self.rarp_requests.append(text)
            if self._driver.is_running or not self._has_run:
                self._driver.announce(text)

    def iotlb_update(self, iova: int, size: int, user_address: int, permissions: int) -> None:
        """Take a translation; rings that waited for it may start."""
        with self._lock:
            self._iommu.update(iova, size, user_address, permissions)
            self._rings.settle()

    def iotlb_invalidate(self, iova: int, size: int) -> None:
        """Give translations up; what was marked under them is in the front end's log on return."""
        with self._lock:
            self._iommu.iotlb.invalidate(iova, size)

    def set_backend_channel(self, channel: BackendChannel, *, takes_config: bool) -> None:
        """Ask the front end by this channel; `takes_config`: it wants to know of changed configuration."""
        with self._lock:
            before, self._channel = self._channel, channel
            self._takes_config = takes_config
            self._iommu.use_channel(channel)
        if before is not None:
            before.close()

    @property
    def quiet_s(self) -> float | None:
        """A machine that migrates stands still while its rings stop: what can wait comes behind that."""
        if self._rings.is_finished:
            return None
        # Our work would take a processor from what the front end still has to send.
        return SWITCH_OVER_S if self._driver.is_logging else 0.0

    def finish_stops(self) -> None:
        """Give kicks of stopped rings back; when all have stopped, log off and reset."""
        if not self._rings.is_finished:
            with self._lock:
                self._rings.finish_stops()

    def disconnected(self) -> None:
        """The front end is gone: stop, reset, unmap, forget."""
        with self._lock:
            self._rest.forget()
            self._rings.forget()
            self._driver.withdraw()
            misses = self._iommu.disconnected()
            self._config.reset()
            self._log.close()
            self._features = self._status = 0
            self._has_run = False
            self.rarp_requests.clear()
            channel, self._channel = self._channel, None
            interrupt, self._config_interrupt = self._config_interrupt, None
        # Their threads may be waiting for the lock.
        if misses is not None:
            misses.close()
        if interrupt is not None:
            interrupt.close()
        if channel is not None:
            channel.close()

    # --- steps ---------------------------------------------------------------------------------------

    def _device_features(self) -> int:
        # Addresses are IOVAs either way, and a device that asks for it may have a vIOMMU in front.
        return self._features & ~_OWN_FEATURES | self._driver.device_features & _ACCESS_PLATFORM

    def _on_start(self) -> None:
        self._has_run = True
        self._take_config_interrupt()

    def _take_config_interrupt(self) -> None:
        if self._config_interrupt is None:
            self._config_interrupt = ConfigInterrupt(self._driver.handle, self._configuration_changed)

    def _configuration_changed(self) -> None:
        with self._lock:
            if not self._driver.is_running:
                return
            if self._driver.needs_reset():
                self._rings.signal_errors()
            elif self._channel is not None and self._takes_config:
                self._channel.config_changed()
