# SPDX-License-Identifier: Apache-2.0
"""A device that the kernel's VFIO driver holds, as a driver sees it: hardware or a hypervisor's."""

from __future__ import annotations

import contextlib
from pathlib import Path

from vdpa_net import _native
from vdpa_net.closing import Closing
from vdpa_net.driver.vfio_kernel import Kernel, Syscalls, VfioDevice
from vdpa_net.driver.vfio_sysfs import SYSFS, PciAddress, PciFunction
from vdpa_net.errors import DmaError, PeerError, ProtocolError, VdpaNetError
from vdpa_net.wire.vfio import DmaMapFlag
from vdpa_net.wire.vfio_user import IrqIndex, IrqInfoFlag


class VfioHandle(Closing):
    """DeviceHandle of a PCI function that is bound to vfio-pci.

    Registers are read and written through the device's descriptor: unlike a mapped BAR it answers a device
    that has gone with an error instead of a signal. Doorbells take the shortest way: the kernel rings them
    (VFIO_DEVICE_IOEVENTFD), or, where it does not, a native thread.
    """

    def __init__(self, address: str, *, system: Syscalls | None = None, sysfs: Path = SYSFS) -> None:
        """Take the function at a PCI address.

        Raises OptionError that says what to do where the function is not ready for VFIO, PeerGone where there
        is none, PeerError for what the kernel refuses.
        """
        function = PciFunction(PciAddress.parse(address), sysfs)
        self._device = VfioDevice(function, system or Kernel())
        # It gives files addresses in this process, checked for their size; that is all VFIO needs of it.
        self._space = _native.DmaSpace()
        self._regions: dict[int, dict[str, int]] = {}
        self._kernel_bells: dict[int, tuple[int, int]] = {}
        self._relay: _native.KickRelay | None = None
        self._vectors: int | None = None
        self._closed = False

    def read(self, region: int, offset: int, size: int) -> bytes:
        """Read from a region. Raises PeerError outside of it."""
        return self._device.read(self._position(region, offset, size), size)

    def write(self, region: int, offset: int, data: bytes, *, posted: bool = False) -> None:  # noqa: ARG002
        """Write to a region; PCI itself posts the write, posted or not."""
        self._device.write(self._position(region, offset, len(data)), data)

    def region_size(self, region: int) -> int:
        """Size of a region in bytes, 0 if it is not there."""
        return self._region(region)["size"]

    def _region(self, region: int) -> dict[str, int]:
        if region not in self._regions:
            self._regions[region] = self._device.region(region)
        return self._regions[region]

    def _position(self, region: int, offset: int, size: int) -> int:
        info = self._region(region)
        if offset < 0 or offset + size > info["size"]:
            raise PeerError(f"{size} bytes at {offset:#x} of region {region}, which has {info['size']:#x}")
        return info["offset"] + offset

    def dma_map(
        self, iova: int, size: int, fd: int, offset: int, *, readable: bool = True, writable: bool = True
    ) -> None:
        """Let the device reach a range of the file; the memory is pinned. Raises DmaError."""
        flags = DmaMapFlag.READ * readable | DmaMapFlag.WRITE * writable
        self._space.map(iova, size, fd, offset, readable, writable)
        try:
            address = next(entry.address for entry in self._space.mappings() if entry.iova == iova)
            self._device.map_dma(iova, size, address, DmaMapFlag(flags))
        except BaseException:
            self._space.unmap(iova, size)
            raise

    def dma_unmap(self, iova: int, size: int) -> None:
        """Undo one map. Raises DmaError."""
        if not any((entry.iova, entry.size_bytes) == (iova, size) for entry in self._space.mappings()):
            raise DmaError(f"no map [{iova:#x}, {iova + size:#x}) to undo")
        self._device.unmap_dma(iova, size)
        self._space.unmap(iova, size)

    def set_irqs(self, start: int, fds: list[int | None]) -> None:
        """Bind MSI-X vectors to eventfds; None unbinds."""
        if self._vectors is None:
            self._enable_msix()
        if start + len(fds) > (self._vectors or 0):
            raise ProtocolError(f"vectors {start} to {start + len(fds) - 1}: the device has {self._vectors}")
        self._device.set_irq_eventfds(IrqIndex.MSIX, start, fds)

    def _enable_msix(self) -> None:
        info = self._device.irq(IrqIndex.MSIX)
        if info["flags"] & IrqInfoFlag.NORESIZE:
            # Such a kernel allocates vectors once, with the first request: ask for all of them.
            self._device.set_irq_eventfds(IrqIndex.MSIX, 0, [None] * info["count"])
        self._vectors = info["count"]

    def attach_kick(self, queue: int, fd: int | None, doorbell_region: int, doorbell_offset: int) -> None:
        """Make signals on this eventfd reach the queue's doorbell; None detaches."""
        self._detach_kick(queue)
        if fd is None:
            return
        offset = self._position(doorbell_region, doorbell_offset, 2)
        try:
            self._device.set_ioeventfd(offset, queue, fd)
            self._kernel_bells[queue] = (offset, queue)
        except PeerError:
            # Old kernels have none, new ones a thousand: a thread does the same.
            self._relay = self._relay or _native.KickRelay()
            self._relay.add_doorbell(queue, fd, self._device.fd, offset, queue)

    def _detach_kick(self, queue: int) -> None:
        if self._relay is not None:
            self._relay.remove(queue)
        if (bell := self._kernel_bells.pop(queue, None)) is not None:
            self._device.set_ioeventfd(*bell, None)

    def reset(self) -> None:
        """Device reset; interrupts stay bound."""
        self._device.reset()

    def close(self) -> None:
        """Give the device back: its kernel driver resets it and drops its maps. Idempotent."""
        if self._closed:
            return
        self._closed = True
        if self._relay is not None:
            self._relay.close()
        # What fails here fails because the device has gone, and then there is nothing to give back.
        for queue in list(self._kernel_bells):
            with contextlib.suppress(VdpaNetError):
                self._detach_kick(queue)
        if self._vectors is not None:
            with contextlib.suppress(VdpaNetError):
                self._device.disable_irqs(IrqIndex.MSIX)
        self._device.close()
        # Only now: what the device could reach has to stay in place.
        self._space.unmap_all()
