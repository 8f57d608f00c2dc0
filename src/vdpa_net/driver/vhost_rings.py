# SPDX-License-Identifier: Apache-2.0
"""The rings of a vhost-user front end on a device behind a vDPA driver: when they start, stop and go on.

A ring is started while it has a kick, and stopped by GET_VRING_BASE; it is served while it is started and
enabled ("Ring states"). The device starts when both rings of a queue pair have come that far, or with
whatever has when the front end says DRIVER_OK; further rings join it one by one. It is reset when no ring is
started any more.

When a ring is disabled, what the guest made available before is sent; from then on packets are discarded
until the ring is enabled or stopped. A stop discards nothing (docs/vhost-user.md, "Disabled rings").
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from typing import Final

from vdpa_net.driver.discard import Discarder
from vdpa_net.driver.log_area import LogArea
from vdpa_net.driver.queue_setup import QueueSetup
from vdpa_net.driver.timers import Timer
from vdpa_net.driver.vdpa_driver import VdpaDriver
from vdpa_net.driver.vhost_iommu import NotTranslated, VhostIommu
from vdpa_net.driver.vring import Vring, close_fd, keep_eventfd
from vdpa_net.errors import ProtocolError, VdpaNetError
from vdpa_net.wire import virtio_pci
from vdpa_net.wire.lm import initial_ring_state, pack_ring_state, unpack_ring_state
from vdpa_net.wire.vhost_user import VringAddresses

GRACE_S: Final = 0.2
"""How long a disabled ring is left alone before its packets are discarded: a migration stops it soon."""

_VRING_IDX_LIMIT: Final = 1 << 16
_IDX_OFFSET: Final = 2


class VhostRings:
    """All rings. The caller holds the back end's lock, `lock`; ProtocolErrors leave a ring as it was.

    `needs_enable` says whether rings wait for SET_VRING_ENABLE, `device_features` what the device is to
    negotiate, `log` where it is to log from its start on; `on_start` is called before it starts,
    `on_stopped` when a ring has stopped and its base was not told yet. `complain` is told what went wrong
    while nobody waited for an answer.
    """

    def __init__(
        self,
        driver: VdpaDriver,
        memory: VhostIommu,
        count: int,
        lock: threading.RLock,
        complain: Callable[[str], None],
    ) -> None:
        self._driver = driver
        self._memory = memory
        self._max_sizes = [driver.max_queue_size(index) for index in range(count)]
        self._lock = lock
        self._complain = complain
        self._discarder = Discarder(driver.maps, count // 2)
        self._discard_later: dict[int, Timer] = {}
        self._vrings = [Vring(index) for index in range(count)]
        self._old_kicks: list[tuple[int, int]] = []
        self._resting: set[int] = set()
        self.needs_enable: Callable[[], bool] = lambda: False
        self.device_features: Callable[[], int] = lambda: 0
        self.log: Callable[[], LogArea | None] = lambda: None
        self.on_stopped: Callable[[], None] = lambda: None
        self.on_start: Callable[[], None] = lambda: None

    def set_num(self, index: int, num: int) -> None:
        """Ring size up to that of the device's queue; that of a split ring is a power of two."""
        vring = self._stopped_ring(index, "SET_VRING_NUM")
        limit = self._max_sizes[index]
        if not 0 < num <= limit or (num & (num - 1) and not self._is_packed):
            kind = "1" if self._is_packed else "a power of two"
            raise ProtocolError(
                f"SET_VRING_NUM: {num} descriptors for ring {index}, expected {kind} up to {limit}"
            )
        vring.num = num

    def set_addresses(self, addresses: VringAddresses) -> None:
        """Ring addresses. QEMU sends them again with the log flag; a running ring keeps the same ones."""
        vring = self._ring(addresses.index)
        if self._is_served(vring):
            vring.check_same_addresses(addresses)
        vring.addresses = addresses
        self.settle()

    def set_base(self, index: int, num: int) -> None:
        """Where the ring starts."""
        if num >= _VRING_IDX_LIMIT and not self._is_packed:
            raise ProtocolError(
                f"SET_VRING_BASE: {num:#x} for a split ring, whose last_avail_idx has 16 bits"
            )
        self._stopped_ring(index, "SET_VRING_BASE").base = num

    def get_base(self, index: int) -> int:
        """Stop the ring; where it stands. Then `finish_stops` is due."""
        vring = self._ring(index)
        self._stop_for_now(vring)
        self.on_stopped()
        return self._base(vring)

    def stop_rings(self) -> None:
        """Stop every ring. Then `finish_stops` is due."""
        for vring in self._vrings:
            self._stop_for_now(vring)

    @property
    def is_finished(self) -> bool:
        """Whether nothing is left to do for rings that have stopped."""
        return not self._old_kicks and not (self._driver.is_running and self.are_stopped)

    @property
    def are_stopped(self) -> bool:
        """Whether no ring is started."""
        return not any(vring.is_started for vring in self._vrings)

    def finish_stops(self) -> None:
        """Give the kicks of stopped rings back; after the last one, whose marks are made: log off, reset."""
        while self._old_kicks:
            index, kick = self._old_kicks.pop()
            if self._vrings[index].kick is None:
                self._unbind_kick(index, kick)
            else:
                close_fd(kick)
        if self._driver.is_running and self.are_stopped:
            self._driver.finish()

    def set_kick(self, index: int, fd: int | None) -> None:
        """The guest's kick. Without a descriptor the ring would have to be polled: refused."""
        if fd is None:
            raise ProtocolError(
                f"SET_VRING_KICK: ring {index} without a descriptor: polling is not supported"
            )
        vring = self._ring(index)
        self._forget_kick(vring)
        vring.kick = os.dup(fd)
        if self._driver.is_running and not self._discarder.has(index):
            self._driver.bind_kick(index, vring.kick)
        self._discarder.bind_kick(index, vring.kick)
        self.settle()

    def set_call(self, index: int, fd: int | None) -> None:
        """The guest's interrupt; None: the guest polls."""
        vring = self._ring(index)
        call = None if fd is None else keep_eventfd(fd)
        try:
            self._driver.bind_call(index, call)
        except BaseException:
            close_fd(call)
            raise
        before, vring.call = vring.call, call
        self._discarder.bind_call(index, call)
        close_fd(before)
        if vring.call is not None and self._is_served(vring):
            # QEMU sends the kick, which starts a ring, before the call, and clears the call of before: an
            # interrupt in between, that of a restored start first of all, would be lost for good.
            with contextlib.suppress(OSError):
                os.eventfd_write(vring.call, 1)

    def set_err(self, index: int, fd: int | None) -> None:
        """Where to tell of a broken ring."""
        vring = self._ring(index)
        before, vring.err = vring.err, None if fd is None else keep_eventfd(fd)
        close_fd(before)

    def set_enable(self, index: int, enable: bool) -> None:
        """Serve the ring or not. One that is not served any more is drained first."""
        vring = self._ring(index)
        vring.enabled = enable
        if not enable and self.needs_enable() and self._runs(index):
            self._stop(vring)
            if vring.is_transmit and vring.is_started:
                self._discard_soon(vring)
        self.settle()

    def signal_errors(self) -> None:
        """Tell the front end of a device that can't go on: every ring that runs has an error."""
        for vring in self._vrings:
            if vring.err is not None and self._driver.is_enabled(vring.index):
                with contextlib.suppress(OSError):
                    os.eventfd_write(vring.err, 1)

    def settle(self, *, all_described: bool = False) -> None:
        """Start what can be started. `all_described`: no further ring is waited for."""
        if not self._memory.regions or self._resting:
            return
        ready = [vring for vring in self._vrings if self._is_ready(vring) and self._is_reachable(vring)]
        if self._driver.is_running:
            for vring in ready:
                if not self._driver.is_enabled(vring.index):
                    self._join(vring)
        elif ready and (all_described or _has_a_pair(ready)):
            self._start(ready)

    def rest(self) -> bool:
        """Serve no ring from now on; whether there is one that `go_on` lets go on where it stood.

        Raises what the device raises; then no ring rests.
        """
        try:
            for vring in self._vrings:
                if self._discarder.has(vring.index):
                    self._stop(vring)
                    self._discard_soon(vring)
                elif self._driver.is_enabled(vring.index):
                    self._resting.add(vring.index)
                    self._driver.stop_queue(vring.index)
        except BaseException:
            self.go_on()
            raise
        return bool(self._resting)

    def go_on(self) -> None:
        """Serve the rings that rest, and start what has become ready meanwhile."""
        while self._resting:
            self._driver.resume_queue(self._resting.pop())
        self.settle()

    @contextlib.contextmanager
    def at_rest(self) -> Iterator[None]:
        """No ring is served meanwhile; each goes on where it stood."""
        self.rest()
        try:
            yield
        finally:
            self.go_on()

    def stop_all(self) -> None:
        """A device reset: every ring stops, and the device with them. Raises what the device does."""
        if self._driver.is_running:
            for vring in self._vrings:
                self._stop(vring)
            self._driver.finish()
        for vring in self._vrings:
            self._forget_kick(vring)

    def reset(self) -> None:
        """Stop all, disable all, forget what was described."""
        self.stop_all()
        for vring in self._vrings:
            vring.forget_description()

    def forget(self) -> None:
        """The front end is gone: forget everything. Never raises."""
        try:
            self.stop_all()
        except VdpaNetError:
            # One that does not stop as it should is reset; one that is gone, too, needs nothing.
            with contextlib.suppress(VdpaNetError):
                self._driver.abandon()
        for timer in self._discard_later.values():
            timer.cancel()
        self._discard_later.clear()
        self._discarder.close()
        while self._old_kicks:
            with contextlib.suppress(VdpaNetError):
                self._unbind_kick(*self._old_kicks.pop())
        self._resting.clear()
        for vring in self._vrings:
            with contextlib.suppress(VdpaNetError):
                self._driver.bind_call(vring.index, None)
            vring.close()
        self._vrings = [Vring(vring.index) for vring in self._vrings]

    # --- steps ---------------------------------------------------------------------------------------

    def _ring(self, index: int) -> Vring:
        if index >= len(self._vrings):
            raise ProtocolError(f"ring {index}: the device has {len(self._vrings)}")
        return self._vrings[index]

    def _stopped_ring(self, index: int, message: str) -> Vring:
        vring = self._ring(index)
        if self._is_served(vring):
            raise ProtocolError(f"{message}: ring {index} runs; GET_VRING_BASE stops it")
        return vring

    def _is_served(self, vring: Vring) -> bool:
        index = vring.index
        return self._runs(index) or self._discarder.has(index) or index in self._discard_later

    def _runs(self, index: int) -> bool:
        return self._driver.is_enabled(index) or index in self._resting

    def _is_ready(self, vring: Vring) -> bool:
        return vring.is_started and (vring.enabled or not self.needs_enable())

    def _is_reachable(self, vring: Vring) -> bool:
        """Whether the ring can be reached now; what is missing has been asked for, and settles it again."""
        try:
            self._ring_addresses(vring)
        except NotTranslated:
            return False
        return True

    def _start(self, ready: list[Vring]) -> None:
        setups = [self._setup(vring) for vring in ready]
        self.on_start()
        for vring in self._vrings:
            if vring.kick is not None:
                self._driver.bind_kick(vring.index, vring.kick)
        self._driver.start(self.device_features(), setups, self.log())

    def _join(self, vring: Vring) -> None:
        """A ring that runs from now on, on a device that runs already."""
        self._stop(vring)
        self._driver.start_queue(self._setup(vring))
        self._driver.bind_kick(vring.index, vring.kick)

    def _discard_soon(self, vring: Vring) -> None:
        self._discard_later[vring.index] = Timer(GRACE_S, self._lock, lambda: self._discard(vring))

    def _discard(self, vring: Vring) -> None:
        del self._discard_later[vring.index]
        try:
            setup = self._setup(vring)
            self._driver.bind_kick(vring.index, None)
            self._discarder.start(setup, self.device_features(), kick=vring.kick, call=vring.call)
        except VdpaNetError as error:
            self._complain(f"ring {vring.index}, which is disabled, is left alone: {error}")

    @property
    def _is_packed(self) -> bool:
        return bool(self.device_features() >> virtio_pci.F_RING_PACKED & 1)

    def _base(self, vring: Vring) -> int:
        return initial_ring_state(packed=self._is_packed) if vring.base is None else vring.base

    def _stop_for_now(self, vring: Vring) -> None:
        self._stop(vring)
        if vring.kick is not None:
            self._old_kicks.append((vring.index, vring.kick))
            vring.kick = None

    def _stop(self, vring: Vring) -> None:
        if (timer := self._discard_later.pop(vring.index, None)) is not None:
            timer.cancel()
        if self._runs(vring.index):
            self._resting.discard(vring.index)
            self._stopped_at(vring, self._driver.stop_queue(vring.index))
        elif self._discarder.has(vring.index):
            self._stopped_at(vring, self._discarder.stop(vring.index))

    def _stopped_at(self, vring: Vring, state: tuple[int, int]) -> None:
        vring.base = pack_ring_state(*state) if self._is_packed else state[0]

    def _setup(self, vring: Vring) -> QueueSetup:
        descriptor, available, used = self._ring_addresses(vring)
        last_avail_idx, used_idx = unpack_ring_state(self._base(vring))
        if not self._is_packed:
            used_idx = self._memory.u16(used + _IDX_OFFSET)
        elif not used_idx:
            # Front ends that know one index only (DPDK's virtio_user) leave the used half 0.
            used_idx = last_avail_idx
        areas = (descriptor, available, used)
        guest = self._memory.guest_addresses(areas)
        return QueueSetup(vring.index, vring.num, *areas, last_avail_idx, used_idx, guest)

    def _ring_addresses(self, vring: Vring) -> tuple[int, int, int]:
        """Guest addresses of descriptor, driver and device area (sizes: virtio 1.3, 2.7 and 2.8.10.1)."""
        assert vring.addresses is not None
        given, num = vring.addresses, vring.num
        driver_bytes, device_bytes = (4, 4) if self._is_packed else (6 + 2 * num, 6 + 8 * num)
        parts = (
            (given.descriptor, 16 * num, "descriptor area"),
            (given.available, driver_bytes, "driver area"),
            (given.used, device_bytes, "device area"),
        )
        descriptor, available, used = (
            self._memory.guest_address(address, size, f"{what} of ring {vring.index}")
            for address, size, what in parts
        )
        return descriptor, available, used

    def _forget_kick(self, vring: Vring) -> None:
        if vring.kick is not None:
            kick, vring.kick = vring.kick, None
            self._unbind_kick(vring.index, kick)

    def _unbind_kick(self, index: int, kick: int) -> None:
        try:
            self._driver.bind_kick(index, None)
        finally:
            close_fd(kick)


def _has_a_pair(rings: list[Vring]) -> bool:
    """Whether both rings of some queue pair are among them (virtio 1.3, 5.1.2)."""
    indices = {vring.index for vring in rings}
    return any(index % 2 == 0 and index + 1 in indices for index in indices)
