# SPDX-License-Identifier: Apache-2.0
"""The kernel's VFIO interface: container, group and device descriptors, one method per ioctl.

`Syscalls` is what it needs of the operating system, so that a test can stand in for the kernel.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

from vdpa_net.driver.vfio_sysfs import PciFunction
from vdpa_net.errors import DmaError, OptionError, PeerError, PeerGone
from vdpa_net.wire import vfio, vfio_user
from vdpa_net.wire.vfio import Ioctl

_CAPABILITIES_BYTES = 4096
Result = TypeVar("Result")
_HINT_AT_WIDTH = "(a vIOMMU needs aw-bits=48 for addresses of 1 << 44 and more)"


class Syscalls(Protocol):
    """The system calls. They raise OSError."""

    def open(self, path: str) -> int: ...
    def close(self, fd: int) -> None: ...
    def ioctl(self, fd: int, request: int, argument: int | bytearray) -> int: ...
    def pread(self, fd: int, size: int, offset: int) -> bytes: ...
    def pwrite(self, fd: int, data: bytes, offset: int) -> int: ...


class Kernel:
    """The real ones."""

    def open(self, path: str) -> int:
        """open(2) for reading and writing."""
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)

    def close(self, fd: int) -> None:
        """close(2)."""
        os.close(fd)

    def ioctl(self, fd: int, request: int, argument: int | bytearray) -> int:
        """ioctl(2); a bytearray is the structure, in and out."""
        return fcntl.ioctl(fd, request, argument)

    def pread(self, fd: int, size: int, offset: int) -> bytes:
        """pread(2)."""
        return os.pread(fd, size, offset)

    def pwrite(self, fd: int, data: bytes, offset: int) -> int:
        """pwrite(2)."""
        return os.pwrite(fd, data, offset)


class VfioDevice:
    """One device with its group and a container of its own, type 1 IOMMU.

    Raises OptionError for what the user can mend (rights, binding), PeerError for what the kernel refuses,
    PeerGone when the device has gone.
    """

    def __init__(self, function: PciFunction, system: Syscalls) -> None:
        self._system = system
        self._name = str(function.address)
        group_number = function.require_vfio()
        with contextlib.ExitStack() as stack:
            self._container = self._open(stack, "/dev/vfio/vfio")
            self._group = self._open(stack, f"/dev/vfio/{group_number}")
            self._join(function)
            self.fd = self._get_device_fd()
            stack.callback(system.close, self.fd)
            self._closing = stack.pop_all()

    def _open(self, stack: contextlib.ExitStack, path: str) -> int:
        try:
            fd = self._system.open(path)
        except PermissionError as error:
            raise OptionError(f"{path}: {error.strerror}: as root, `chown $USER {path}`") from error
        except FileNotFoundError as error:
            raise OptionError(f"{path} is not there: as root, `modprobe vfio-pci`") from error
        except OSError as error:
            in_use = " (another process uses the group)" if error.errno == errno.EBUSY else ""
            raise PeerError(f"{path} can't be opened: {error.strerror}{in_use}", errno=error.errno) from error
        stack.callback(self._system.close, fd)
        return fd

    def _join(self, function: PciFunction) -> None:
        if (version := self._ioctl(self._container, Ioctl.GET_API_VERSION, 0)) != vfio.API_VERSION:
            raise PeerError(f"VFIO API version {version}, expected {vfio.API_VERSION}")
        status = bytearray(vfio.GROUP_STATUS.pack(argsz=vfio.GROUP_STATUS.size))
        self._ioctl(self._group, Ioctl.GROUP_GET_STATUS, status)
        if not vfio.GROUP_STATUS.unpack(status)["flags"] & vfio.GroupFlag.VIABLE:
            others = ", ".join(function.unready_neighbours()) or "unknown"
            raise OptionError(
                f"the IOMMU group of {self._name} is not viable: all of its functions have to be bound to "
                f"vfio-pci or to nothing; in the way: {others}"
            )
        self._ioctl(self._group, Ioctl.GROUP_SET_CONTAINER, bytearray(vfio.pack_fd(self._container)))
        if not self._ioctl(self._container, Ioctl.CHECK_EXTENSION, vfio.Extension.TYPE1V2_IOMMU):
            raise PeerError("VFIO has no type 1 IOMMU (v2): as root, `modprobe vfio_iommu_type1`")
        self._ioctl(self._container, Ioctl.SET_IOMMU, vfio.Extension.TYPE1V2_IOMMU)

    def _get_device_fd(self) -> int:
        return self._ioctl(self._group, Ioctl.GROUP_GET_DEVICE_FD, bytearray(self._name.encode() + b"\0"))

    def region(self, index: int) -> dict[str, int]:
        """Fields of vfio_region_info; a region that the device does not have has size 0."""
        layout = vfio_user.REGION_INFO
        info = bytearray(layout.pack(argsz=layout.size, index=index))
        try:
            self._ioctl(self.fd, Ioctl.DEVICE_GET_REGION_INFO, info)
        except PeerError as error:
            # The kernel's word for a region that this device does not have.
            if error.errno != errno.EINVAL:
                raise
        return layout.unpack(info)

    def irq(self, index: int) -> dict[str, int]:
        """Fields of vfio_irq_info."""
        layout = vfio_user.IRQ_INFO
        info = bytearray(layout.pack(argsz=layout.size, index=index))
        self._ioctl(self.fd, Ioctl.DEVICE_GET_IRQ_INFO, info)
        return layout.unpack(info)

    def set_irq_eventfds(self, index: int, start: int, fds: Sequence[int | None]) -> None:
        """Signal these eventfds for the interrupts from `start` on; None: nobody."""
        flags = vfio_user.IrqSetFlag.DATA_EVENTFD | vfio_user.IrqSetFlag.ACTION_TRIGGER
        self._set_irqs(index, flags, start, len(fds), b"".join(map(vfio.pack_fd, fds)))

    def disable_irqs(self, index: int) -> None:
        """Give all interrupts of a type back."""
        flags = vfio_user.IrqSetFlag.DATA_NONE | vfio_user.IrqSetFlag.ACTION_TRIGGER
        self._set_irqs(index, flags, 0, 0, b"")

    def _set_irqs(self, index: int, flags: int, start: int, count: int, data: bytes) -> None:
        layout = vfio_user.IRQ_SET
        header = layout.pack(
            argsz=layout.size + len(data), flags=flags, index=index, start=start, count=count
        )
        self._ioctl(self.fd, Ioctl.DEVICE_SET_IRQS, bytearray(header + data))

    def set_ioeventfd(self, offset: int, value: int, fd: int | None) -> None:
        """Each signal writes 16 bits at this offset of the device's fd, by the kernel; None: undo."""
        layout = vfio.IOEVENTFD
        request = layout.pack(
            argsz=layout.size, flags=vfio.IOEVENTFD_16, offset=offset, data=value, fd=vfio.pack_fd(fd)
        )
        self._ioctl(self.fd, Ioctl.DEVICE_IOEVENTFD, bytearray(request))

    def read(self, offset: int, size: int) -> bytes:
        """Bytes at an offset of the device's fd. Raises PeerError if there are fewer."""
        data = self._attempt("read", lambda: self._system.pread(self.fd, size, offset))
        if len(data) != size:
            raise PeerError(f"{self._name}: read {len(data)} bytes at {offset:#x}, expected {size}")
        return data

    def write(self, offset: int, data: bytes) -> None:
        """Write at an offset of the device's fd. Raises PeerError if it takes less."""
        written = self._attempt("write", lambda: self._system.pwrite(self.fd, data, offset))
        if written != len(data):
            raise PeerError(f"{self._name}: wrote {written} bytes at {offset:#x}, expected {len(data)}")

    def map_dma(self, iova: int, size: int, address: int, flags: vfio.DmaMapFlag) -> None:
        """Pin this process' [address, address + size) and map it. Raises DmaError, which says what to do."""
        layout = vfio.DMA_MAP
        request = layout.pack(argsz=layout.size, flags=flags, vaddr=address, iova=iova, size=size)
        try:
            self._system.ioctl(self._container, Ioctl.IOMMU_MAP_DMA, bytearray(request))
        except OSError as error:
            raise DmaError(
                f"{self._name}: VFIO does not map [{iova:#x}, {iova + size:#x}): {error.strerror}"
                f"{self._reason(error.errno)}",
                errno=error.errno,
            ) from error

    def _reason(self, number: int | None) -> str:
        if number == errno.ENOMEM:
            return ": memory has to be lockable (`ulimit -l unlimited`, or LimitMEMLOCK=infinity)"
        if number == errno.ENOSPC:
            return ": the limit of maps (module vfio_iommu_type1, parameter dma_entry_limit)"
        if number == errno.EINVAL:
            ranges = ", ".join(f"[{start:#x}, {end:#x}]" for start, end in self.iova_ranges())
            return f": the IOMMU takes {ranges or 'ranges that it does not tell'} {_HINT_AT_WIDTH}"
        return ""

    def unmap_dma(self, iova: int, size: int) -> None:
        """Undo one map; on return the device does not reach it. Raises DmaError."""
        layout = vfio.DMA_UNMAP
        request = bytearray(layout.pack(argsz=layout.size, iova=iova, size=size))
        try:
            self._system.ioctl(self._container, Ioctl.IOMMU_UNMAP_DMA, request)
        except OSError as error:
            raise DmaError(
                f"{self._name}: VFIO does not unmap [{iova:#x}, {iova + size:#x}): {error.strerror}",
                errno=error.errno,
            ) from error
        if (done := layout.unpack(request)["size"]) != size:
            raise DmaError(f"{self._name}: VFIO unmapped {done:#x} bytes at {iova:#x}, expected {size:#x}")

    def iova_ranges(self) -> list[tuple[int, int]]:
        """First and last address of each range that the IOMMU translates, as far as the kernel tells."""
        layout = vfio.IOMMU_INFO
        info = bytearray(layout.pack(argsz=_CAPABILITIES_BYTES).ljust(_CAPABILITIES_BYTES, b"\0"))
        try:
            self._system.ioctl(self._container, Ioctl.IOMMU_GET_INFO, info)
        except OSError:
            return []
        fields = layout.unpack(info)
        if not fields["flags"] & vfio.IommuInfoFlag.CAPS:
            return []
        for offset in _capabilities(info, fields["cap_offset"]):
            if vfio.CAP_HEADER.unpack(info, offset)["id"] == vfio.IOMMU_TYPE1_INFO_CAP_IOVA_RANGE:
                return _ranges(info, offset)
        return []

    def reset(self) -> None:
        """VFIO_DEVICE_RESET."""
        self._ioctl(self.fd, Ioctl.DEVICE_RESET, 0)

    def close(self) -> None:
        """Give device, group and container back; with the container its maps go. Idempotent."""
        self._closing.close()

    def _ioctl(self, fd: int, request: Ioctl, argument: int | bytearray) -> int:
        return self._attempt(request.name, lambda: self._system.ioctl(fd, request, argument))

    def _attempt(self, what: str, call: Callable[[], Result]) -> Result:
        try:
            return call()
        except OSError as error:
            kind = PeerGone if error.errno in (errno.ENODEV, errno.EIO) else PeerError
            raise kind(f"{self._name}: {what}: {error.strerror}", errno=error.errno) from error


def _capabilities(info: bytearray, offset: int) -> Iterator[int]:
    seen: set[int] = set()
    while offset and offset not in seen and offset + vfio.CAP_HEADER.size <= len(info):
        seen.add(offset)
        yield offset
        offset = vfio.CAP_HEADER.unpack(info, offset)["next"]


def _ranges(info: bytearray, offset: int) -> list[tuple[int, int]]:
    count = vfio.CAP_IOVA_RANGES.unpack(info, offset)["nr_iovas"]
    first = offset + vfio.CAP_IOVA_RANGES.size
    found: list[tuple[int, int]] = []
    for at in range(first, min(first + count * vfio.IOVA_RANGE.size, len(info)), vfio.IOVA_RANGE.size):
        fields = vfio.IOVA_RANGE.unpack(info, at)
        found.append((fields["start"], fields["end"]))
    return found
