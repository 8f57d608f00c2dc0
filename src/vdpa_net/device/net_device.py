# SPDX-License-Identifier: Apache-2.0
"""The network device as a PCI function: regions, DMA, interrupts, doorbells, reset.

This is the whole interface to what is in front of a device: a vfio-user server, or a driver in this process.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from vdpa_net.backend import Backend
from vdpa_net.closing import Closing
from vdpa_net.device import snapshot
from vdpa_net.device.access import AccessHook, AccessHooks, Place
from vdpa_net.device.assembly import make_bars, make_config
from vdpa_net.device.dma import DmaMaps
from vdpa_net.device.dma_port import DmaPort
from vdpa_net.device.engine import Engine, native_engine
from vdpa_net.device.events import EventCallback, Events
from vdpa_net.device.faults import InstalledFaults
from vdpa_net.device.function import Doorbell, RegionInfo, Window
from vdpa_net.device.irq_port import IrqPort
from vdpa_net.device.kicks import Kicks
from vdpa_net.device.monitor import Monitor
from vdpa_net.device.msix import Msix
from vdpa_net.device.net_config import parse_mac
from vdpa_net.device.options import check_options
from vdpa_net.device.pacing import Pacing
from vdpa_net.device.packet_hooks import NativeHook, Packet, PacketAnswer, PacketHook, PacketHooks
from vdpa_net.device.page_requests import PageRequests
from vdpa_net.device.pci import BarAccess
from vdpa_net.device.virtio_device import VirtioNet
from vdpa_net.errors import AccessError, StateError
from vdpa_net.migration.faults import Fault
from vdpa_net.migration.violations import Violation, ViolationLog
from vdpa_net.wire import pci
from vdpa_net.wire.lm import Profile

if TYPE_CHECKING:
    from vdpa_net import _native

_PLANE = "plane"
_PAGE_REQUESTS = "page requests"


class NetDevice(DmaPort, IrqPort, Pacing, Closing):
    """A virtio-net PCI function on a packet back end; with `vdpa` it has the LM registers. Thread-safe.

    The back end stays the caller's: `close` takes its carrier down and leaves it open. Raises OptionError for
    arguments that are impossible, BackendError if the back end can't be used.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        mac: str,
        mtu: int = 1500,
        profile: str | Profile = "vdpa",
        vdpa: bool = True,
        iommu_platform: bool = True,
        ats: bool = False,
        rx_queue_size: int = 256,
        tx_queue_size: int = 256,
        vectors: int | None = None,
        mq: bool = False,
        poll_us: int | None = None,
        coalesce_us: int | None = None,
        disabled_features: frozenset[str] = frozenset(),
        enabled_features: frozenset[str] = frozenset(),
        engine: Engine | None = None,
    ) -> None:
        self.options = check_options(
            mac=mac,
            mtu=mtu,
            profile=profile,
            vdpa=vdpa,
            iommu_platform=iommu_platform,
            ats=ats,
            rx_queue_size=rx_queue_size,
            tx_queue_size=tx_queue_size,
            vectors=vectors,
            mq=mq,
            backend_pairs=backend.queue_pairs,
            disabled_features=disabled_features,
            enabled_features=enabled_features,
        )
        engine = engine or native_engine()
        self._lock = threading.RLock()
        self._events = Events()
        self._hooks = AccessHooks(self._places)
        self._closed = False
        self.backend = backend
        self.num_vectors = self.options.vectors
        self.space = engine.space()
        self._plane = engine.plane(
            self.space, backend.native(), self.options.queue_pairs, self.options.control_queue is not None
        )
        self._set_pace(poll_us, coalesce_us)
        self.violations = ViolationLog(self._pull_violations)
        self._dma = DmaMaps(self.space)
        self._msix = Msix(self.num_vectors, self.violations, self._vectors_bound, self._vectors_due)
        self._virtio = VirtioNet(
            self.options,
            backend,
            self._plane,
            self.space,
            msix=self._msix,
            violations=self.violations,
            emit=self._events.emit,
            dma_hint=self._dma.hint,
        )
        self._faults = InstalledFaults(self._virtio, self._plane, self._events.listen)
        self._page_requests = PageRequests(self.space, self._msix, self.violations)
        self._bars = make_bars(self._virtio, self._msix, self.violations, self._page_requests)
        self._config = make_config(
            self.options,
            self._msix,
            BarAccess(self.region_read, self.region_write),
            self.violations,
            self.reset,
        )
        self._windows: dict[int, tuple[Window, int]] = {
            **{index: (bar, bar.size) for index, bar in self._bars.items()},
            pci.CONFIG_REGION: (self._config, pci.CONFIG_SPACE_SIZE),
        }
        self._monitor = Monitor(self._on_signal)
        self._monitor.watch(_PLANE, self._plane.event_fd())
        self._monitor.watch(_PAGE_REQUESTS, self._page_requests.event_fd)
        self._kicks = Kicks(self.options, self._plane, self._monitor)
        self._packet_hooks = PacketHooks(self._install_packet_hook)
        overridden = (type(self).packet_from_guest, type(self).packet_to_guest)
        if overridden != (NetDevice.packet_from_guest, NetDevice.packet_to_guest):
            self.on_packet(self._own_hook)

    def packet_from_guest(self, packet: Packet) -> PacketAnswer:  # noqa: ARG002
        """For subclasses: sees each packet of the guest, and may change or drop it (see `on_packet`)."""
        return None

    def packet_to_guest(self, packet: Packet) -> PacketAnswer:  # noqa: ARG002
        """For subclasses: sees each packet that the guest is to get, and may change or drop it."""
        return None

    def _own_hook(self, packet: Packet) -> PacketAnswer:
        return self.packet_to_guest(packet) if packet.to_guest else self.packet_from_guest(packet)

    def region_info(self, index: int) -> RegionInfo | None:
        """The region with this VFIO index (0 to 5: BARs, 7: configuration space); None if there is none."""
        found = self._windows.get(index)
        return None if found is None else RegionInfo(found[1])

    def region_read(self, index: int, offset: int, count: int) -> bytes:
        """`count` bytes of a region; 1, 2, 4 and 8 are single accesses. Raises AccessError outside of it."""
        with self._lock:
            data = self._window(index, offset, count).read(offset, count)
            if self._hooks:
                return self._hooks.filter(index, offset, data, write=False) or b""
            return data

    def region_write(self, index: int, offset: int, data: bytes) -> None:
        """Write to a region; on return the device has acted on it. Raises AccessError outside of it."""
        with self._lock:
            window = self._window(index, offset, len(data))
            wanted = self._hooks.filter(index, offset, data, write=True) if self._hooks else data
            if wanted is not None:
                window.write(offset, wanted)

    def doorbells(self) -> list[Doorbell]:
        """The doorbell of each queue, with the eventfd that does the same as a write to it."""
        return self._kicks.doorbells()

    def queue_bell(self, queue: int) -> _native.QueueBell:
        """What rings the doorbell of a queue without a wake-up."""
        return self._plane.bell(queue)

    def set_kick(self, queue: int, fd: int | None) -> None:
        """Take this eventfd (duplicated) as the queue's kick besides its doorbell; None: the doorbell only.

        Raises AccessError if there is no such queue or the descriptor is none to wait for.
        """
        with self._lock:
            self._kicks.set_kick(queue, fd)

    def reset(self) -> None:
        """Device reset. On return no DMA is in flight and the log is complete; maps and eventfds stay."""
        with self._lock:
            self._virtio.reset_device()
            self._config.reset()
            self._msix.reset()
            self._page_requests.reset()

    def detach_client(self) -> None:
        """The client is gone: reset, unmap everything, unbind every vector and kick."""
        with self._lock:
            self._virtio.withdraw()
            self.reset()
            self._msix.unbind_all()
            self._kicks.unset_all()
            self._dma.unmap_all()
            self._events.emit("client_detached", {})

    def install_fault(self, fault: Fault) -> None:
        """Make the device faulty from now on (resets do not mend it). Raises OptionError if it can't be."""
        with self._lock:
            self._faults.install(fault)

    def fault_counts(self) -> dict[str, int]:
        """How often each installed fault fired, by its command-line form."""
        with self._lock:
            return self._faults.counts()

    def announce(self, mac: str | None = None) -> None:
        """Announce a station on the network with RARP frames: `mac`, or the device's own.

        Before DRIVER_OK the link comes up for it, and what it is sent waits for the driver, for 0.1 s at
        most: to be used when the machine it comes from has stopped. Raises OptionError.
        """
        with self._lock:
            self._virtio.announce(self._virtio.config.mac if mac is None else parse_mac(mac))

    def withdraw(self) -> None:
        """The station that was announced does not come: link down again, unless there is a driver."""
        with self._lock:
            self._virtio.withdraw()

    def snapshot(self) -> dict[str, object]:
        """The state as JSON values: status, features, queues, LM registers, counters, violations."""
        with self._lock:
            ats_enabled = self._config.value("ats.control") & pci.ATS_ENABLE if self.options.ats else None
            return snapshot.take(
                self._virtio,
                self._plane,
                self.space,
                ats_enabled=None if ats_enabled is None else bool(ats_enabled),
                dma_maps=self._dma.count,
                faults=self._faults.counts(),
                violations=self.violations,
            )

    def on_event(self, callback: EventCallback) -> None:
        """Call `callback(name, info)` at each event; `info["ns"]` is time.monotonic_ns().

        It runs in the thread that caused the event, often with the device's lock held: it must not wait.
        """
        self._events.listen(callback)

    def on_access(self, hook: AccessHook) -> Callable[[], None]:
        """Let `hook(access)` see each register access, and change or drop it (see `device.access`).

        Returns a function that takes the hook away again.
        """
        with self._lock:
            return self._hooks.add(hook)

    def on_watched(self, tell: Callable[[bool], None]) -> Callable[[], None]:
        """Call `tell(watched)` now and whenever the first access hook comes or the last one goes.

        While there is none, signalling a doorbell's eventfd is as good as writing to it. Returns a function
        that ends it.
        """
        with self._lock:
            return self._hooks.on_change(tell)

    def on_packet(self, hook: PacketHook) -> Callable[[], None]:
        """Let `hook(packet)` see each packet, and change or drop it (see `device.packet_hooks`).

        Without a hook no Python is on the way of a packet. Returns a function that takes the hook away again;
        it waits until the hook is not being asked.
        """
        return self._packet_hooks.add(hook)

    def _places(self, index: int, offset: int, count: int) -> Iterator[Place]:
        return self._window(index, offset, count).places(offset, count)

    def close(self) -> None:
        """Stop every queue and thread. Twice does no harm. Raises StateError if a packet hook asks for it."""
        if self._packet_hooks.asks_this_thread():
            raise StateError("a packet hook runs in a thread that closing would wait for")
        # Without the lock, which a hook may be waiting for.
        self._packet_hooks.clear()
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._virtio.reset_device()
            self._msix.unbind_all()
        self._monitor.close()
        with self._lock:
            self.violations.refresh()
            self._kicks.close()
            self._plane.close()
            self._page_requests.close()
            self._dma.unmap_all()

    def _window(self, index: int, offset: int, count: int) -> Window:
        """What answers a region's accesses.

        Raises AccessError outside of the region, StateError after close.
        """
        found = self._windows.get(index)
        if found is None or offset < 0 or count < 0 or offset + count > found[1]:
            size = "no such region" if found is None else f"it has {found[1]:#x} bytes"
            raise AccessError(f"access of {count} bytes at {offset:#x} of region {index}: {size}")
        if self._closed:
            raise StateError("the device is closed")
        return found[0]

    def _install_packet_hook(self, callback: NativeHook | None) -> None:
        self._plane.set_packet_hook(callback)

    def _vectors_bound(self, vectors: range) -> None:  # noqa: ARG002
        self._virtio.vectors_changed()

    def _vectors_due(self) -> set[int]:
        return self._virtio.vectors_due()

    def _on_signal(self, key: str) -> None:
        with self._lock:
            if self._closed:
                return
            if key == _PLANE:
                self.violations.refresh()
                self._virtio.check_queues()
            elif key == _PAGE_REQUESTS:
                self._page_requests.signalled()
            else:
                self._virtio.serve_control_queue()

    def _pull_violations(self) -> list[Violation]:
        return [
            self._translate(item) for item in (*self._plane.take_violations(), *self.space.take_violations())
        ]

    def _translate(self, item: _native.Violation) -> Violation:
        where = "dma" if item.queue < 0 else f"queue {item.queue}"
        detail = "; ".join(text for text in (item.detail, self._dma.hint(item.value)) if text)
        return Violation(where, item.kind, item.value, item.clause, detail)
