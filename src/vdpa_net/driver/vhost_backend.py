# SPDX-License-Identifier: Apache-2.0
"""What vhost-user messages mean for a device behind a vDPA driver.

A ring starts when it is described, has a kick and is enabled ("Ring states"); the device starts when all
rings of its queue pair have come that far, and is reset when all of them have been stopped. Messages may come
in any order and again.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from vdpa_net.driver.log_area import LogArea
from vdpa_net.driver.memory_table import MemoryTable
from vdpa_net.driver.vdpa_driver import QueueSetup, VdpaDriver
from vdpa_net.errors import ProtocolError, VdpaNetError
from vdpa_net.wire import virtio_net, virtio_pci
from vdpa_net.wire.vhost_user import (
    F_LOG_ALL,
    F_PROTOCOL_FEATURES,
    MAX_MEM_SLOTS,
    MemoryRegion,
    VringAddresses,
)

_VRING_IDX_LIMIT: Final = 1 << 16
_IDX_OFFSET: Final = 2

VHOST_FEATURES: Final = sum(
    1 << bit
    for bit in (
        virtio_pci.F_VERSION_1,
        virtio_pci.F_INDIRECT_DESC,
        virtio_pci.F_EVENT_IDX,
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
"""What a front end may take of the device's features; MAC, status, control queue are the front end's own."""


@dataclass
class Vring:
    """One ring as the front end has described it so far."""

    index: int
    num: int = 0
    addresses: VringAddresses | None = None
    base: int = 0
    kick: int | None = None
    has_kick: bool = False
    call: int | None = None
    enabled: bool = False

    def is_ready(self, *, needs_enable: bool) -> bool:
        """Described, with a kick, and enabled where enabling is asked for."""
        described = self.num > 0 and self.addresses is not None and self.has_kick
        return described and (self.enabled or not needs_enable)


class VhostBackend:
    """transport.vhost_user's Backend for one queue pair. Calls come from one thread at a time.

    Everything the front end says is checked; ProtocolErrors name the value, and leave the back end as it was.
    """

    def __init__(self, driver: VdpaDriver) -> None:
        self._driver = driver
        self._lock = threading.RLock()
        self._memory = MemoryTable(driver.handle)
        self._max_queue_size = driver.max_queue_size(0)
        self._vrings = [Vring(index) for index in range(2 * driver.queue_pairs)]
        self._features = 0
        self._status = 0
        self._log: LogArea | None = None
        self._backend_req: int | None = None
        self.rarp_requests: list[str] = []

    # --- features and status -------------------------------------------------------------------------

    def get_features(self) -> int:
        """The device's features that a front end may take, and vhost's own two."""
        return self._driver.device_features & VHOST_FEATURES | F_LOG_ALL | F_PROTOCOL_FEATURES

    def set_features(self, features: int) -> None:
        """Take the acknowledged features; LOG_ALL switches logging at any time."""
        if unknown := features & ~self.get_features():
            raise ProtocolError(
                f"SET_FEATURES: {features:#x} has the bits {unknown:#x} that were not offered"
            )
        with self._lock:
            changed = (features ^ self._features) & ~(F_LOG_ALL | F_PROTOCOL_FEATURES)
            if changed and self._driver.is_running:
                raise ProtocolError(f"SET_FEATURES: {features:#x} changes {changed:#x} while the rings run")
            before, self._features = self._features, features
            try:
                self._apply_logging()
            except BaseException:
                self._features = before
                raise

    def set_status(self, status: int) -> None:
        """Remember the status; 0 is a device reset."""
        with self._lock:
            self._status = status
            if status == 0:
                self._stop_everything()

    def get_status(self) -> int:
        """The status as it was set."""
        return self._status

    def get_queue_num(self) -> int:
        """Queue pairs."""
        return self._driver.queue_pairs

    # --- memory and log ------------------------------------------------------------------------------

    def set_mem_table(self, regions: Sequence[MemoryRegion], fds: Sequence[int]) -> None:
        """Replace the memory table, also while the rings run."""
        with self._lock:
            self._memory.replace(regions, fds)
            self._start_if_ready()

    def add_mem_region(self, region: MemoryRegion, fd: int) -> None:
        """Add a region, also while the rings run."""
        with self._lock:
            if len(self._memory.regions) >= MAX_MEM_SLOTS:
                raise ProtocolError(f"ADD_MEM_REG: there are {MAX_MEM_SLOTS} regions, which is the limit")
            self._memory.add(region, fd)
            self._start_if_ready()

    def remove_mem_region(self, region: MemoryRegion) -> None:
        """Remove a region."""
        with self._lock:
            self._memory.remove(region)

    def get_max_mem_slots(self) -> int:
        """How many regions ADD_MEM_REG may add."""
        return MAX_MEM_SLOTS

    def set_log_base(self, size_bytes: int, offset_bytes: int, fd: int) -> None:
        """Use this log, from now on if LOG_ALL is set."""
        area = LogArea(size_bytes, offset_bytes, fd)
        with self._lock:
            before, self._log = self._log, area
            try:
                if self._wants_log() and self._driver.is_running:
                    self._driver.start_logging(area)
            except BaseException:
                self._log = before
                area.close()
                raise
            if before is not None:
                before.close()

    def set_log_fd(self, fd: int) -> None:
        """Accepted, and never signalled: the front end finds the bits when it looks."""

    # --- rings ---------------------------------------------------------------------------------------

    def set_vring_num(self, index: int, num: int) -> None:
        """Ring size: a power of two up to the device's."""
        limit = self._max_queue_size
        if num == 0 or num & (num - 1) or num > limit:
            raise ProtocolError(f"SET_VRING_NUM: {num} descriptors, expected a power of two up to {limit}")
        with self._lock:
            self._stopped_vring(index, "SET_VRING_NUM").num = num

    def set_vring_addr(self, addresses: VringAddresses) -> None:
        """Ring addresses. QEMU sends them again with the log flag; a running ring keeps the same ones."""
        with self._lock:
            vring = self._vring(addresses.index)
            if self._driver.is_enabled(vring.index):
                self._check_same_addresses(vring, addresses)
            vring.addresses = addresses
            self._start_if_ready()

    def set_vring_base(self, index: int, num: int) -> None:
        """Where the ring starts."""
        if num >= _VRING_IDX_LIMIT:
            raise ProtocolError(
                f"SET_VRING_BASE: {num:#x} for a split ring, whose last_avail_idx has 16 bits"
            )
        with self._lock:
            self._stopped_vring(index, "SET_VRING_BASE").base = num

    def get_vring_base(self, index: int) -> int:
        """Stop the ring; where it stands. After the last ring the device is reset."""
        with self._lock:
            vring = self._vring(index)
            if self._driver.is_running:
                vring.base = self._driver.stop_queue(index)[0]
            self._forget_kick(vring)
            if self._driver.is_running and not any(item.has_kick for item in self._vrings):
                self._driver.finish()
            return vring.base

    def set_vring_kick(self, index: int, fd: int | None) -> None:
        """The guest's kick. Without a descriptor the ring would have to be polled: refused."""
        if fd is None:
            raise ProtocolError(
                f"SET_VRING_KICK: ring {index} without a descriptor: polling is not supported"
            )
        with self._lock:
            vring = self._vring(index)
            self._forget_kick(vring)
            vring.kick, vring.has_kick = os.dup(fd), True
            if self._driver.is_running:
                self._driver.bind_kick(index, vring.kick)
            self._start_if_ready()

    def set_vring_call(self, index: int, fd: int | None) -> None:
        """The guest's interrupt; None: the guest polls."""
        with self._lock:
            vring = self._vring(index)
            before, vring.call = vring.call, None if fd is None else os.dup(fd)
            self._driver.bind_call(index, vring.call)
            _close(before)

    def set_vring_err(self, index: int, fd: int | None) -> None:  # noqa: ARG002
        """Accepted: a broken ring is told by the device's status and violations."""
        self._vring(index)

    def set_vring_enable(self, index: int, enable: bool) -> None:
        """Start or stop the ring; a stop drains it and keeps its state."""
        with self._lock:
            vring = self._vring(index)
            vring.enabled = enable
            if not self._driver.is_running:
                self._start_if_ready()
            elif enable:
                self._go_on(vring)
            elif self._driver.is_enabled(index):
                vring.base = self._driver.stop_queue(index)[0]

    def send_rarp(self, mac: bytes) -> None:
        """Remember the request: a device announces itself after a restored start, with its own MAC."""
        self.rarp_requests.append(mac.hex(":"))

    def set_backend_req_fd(self, fd: int) -> None:
        """Keep the channel: this back end asks nothing, but QEMU takes its closing for an error."""
        before, self._backend_req = self._backend_req, os.dup(fd)
        _close(before)

    def reset_owner(self) -> None:
        """Disable all rings ("VHOST_USER_RESET_OWNER")."""
        with self._lock:
            for vring in self._vrings:
                self.set_vring_enable(vring.index, False)

    def disconnected(self) -> None:
        """The front end is gone: stop, reset, unmap, forget."""
        with self._lock:
            # A device that is gone, too, needs no stop.
            with contextlib.suppress(VdpaNetError):
                self._stop_everything()
            for vring in self._vrings:
                self._forget(vring)
            self._vrings = [Vring(vring.index) for vring in self._vrings]
            self._memory.clear()
            self._features = self._status = 0
            _close(self._backend_req)
            self._backend_req = None
            if self._log is not None:
                self._log.close()
                self._log = None

    # --- steps ---------------------------------------------------------------------------------------

    def _vring(self, index: int) -> Vring:
        if index >= len(self._vrings):
            raise ProtocolError(f"ring {index}: the device has {len(self._vrings)}")
        return self._vrings[index]

    def _stopped_vring(self, index: int, message: str) -> Vring:
        vring = self._vring(index)
        if self._driver.is_enabled(index):
            raise ProtocolError(f"{message}: ring {index} runs; GET_VRING_BASE stops it")
        return vring

    def _wants_log(self) -> bool:
        return bool(self._features & F_LOG_ALL)

    def _apply_logging(self) -> None:
        if not self._driver.is_running:
            return
        if not self._wants_log():
            self._driver.stop_logging()
        elif self._log is not None and not self._driver.is_logging:
            self._driver.start_logging(self._log)

    def _start_if_ready(self) -> None:
        needs_enable = bool(self._features & F_PROTOCOL_FEATURES)
        ready = [vring for vring in self._vrings if vring.is_ready(needs_enable=needs_enable)]
        if self._driver.is_running:
            for vring in ready:
                self._go_on(vring)
        elif len(ready) == len(self._vrings) and self._memory.regions:
            self._start()

    def _start(self) -> None:
        features = self._features & ~(F_LOG_ALL | F_PROTOCOL_FEATURES)
        # Addresses are IOVAs either way, and a device that asks for it may have a vIOMMU in front.
        features |= self._driver.device_features & 1 << virtio_pci.F_ACCESS_PLATFORM
        setups = [self._setup(vring) for vring in self._vrings]
        for vring in self._vrings:
            self._driver.bind_kick(vring.index, vring.kick)
        self._driver.start(features, setups, self._log if self._wants_log() else None)

    def _go_on(self, vring: Vring) -> None:
        """A ring of a running device that is ready and does not run: resume it, or start it anew."""
        if self._driver.is_enabled(vring.index) or not vring.is_ready(needs_enable=False):
            return
        self._driver.start_queue(self._setup(vring))

    def _setup(self, vring: Vring) -> QueueSetup:
        descriptor, available, used = self._ring_addresses(vring)
        used_idx = self._memory.u16(used + _IDX_OFFSET)
        return QueueSetup(vring.index, vring.num, descriptor, available, used, vring.base, used_idx)

    def _ring_addresses(self, vring: Vring) -> tuple[int, int, int]:
        """Guest addresses of descriptor table, available and used ring (sizes: virtio 1.3, 2.7)."""
        assert vring.addresses is not None
        given, num = vring.addresses, vring.num
        parts = (
            (given.descriptor, 16 * num, "descriptor table"),
            (given.available, 6 + 2 * num, "available ring"),
            (given.used, 6 + 8 * num, "used ring"),
        )
        descriptor, available, used = (
            self._memory.guest_address(address, size, f"{what} of ring {vring.index}")
            for address, size, what in parts
        )
        return descriptor, available, used

    @staticmethod
    def _check_same_addresses(vring: Vring, wanted: VringAddresses) -> None:
        assert vring.addresses is not None
        for name in ("descriptor", "used", "available"):
            if getattr(vring.addresses, name) != getattr(wanted, name):
                raise ProtocolError(
                    f"SET_VRING_ADDR: {name} of ring {vring.index} changes from "
                    f"{getattr(vring.addresses, name):#x} to {getattr(wanted, name):#x} while the ring runs"
                )

    def _stop_everything(self) -> None:
        if self._driver.is_running:
            for vring in self._vrings:
                if self._driver.is_enabled(vring.index):
                    vring.base = self._driver.stop_queue(vring.index)[0]
            self._driver.finish()

    def _forget_kick(self, vring: Vring) -> None:
        if vring.has_kick:
            self._driver.bind_kick(vring.index, None)
            _close(vring.kick)
            vring.kick, vring.has_kick = None, False

    def _forget(self, vring: Vring) -> None:
        try:
            self._forget_kick(vring)
            self._driver.bind_call(vring.index, None)
        except VdpaNetError:
            # As above: there is no device to forget them.
            _close(vring.kick)
        _close(vring.call)


def _close(fd: int | None) -> None:
    if fd is not None:
        os.close(fd)
