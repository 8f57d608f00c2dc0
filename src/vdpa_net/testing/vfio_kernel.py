# SPDX-License-Identifier: Apache-2.0
"""A stand-in for the kernel's VFIO: sysfs, ioctls and descriptors in front of a NetDevice of this process.

    kernel = FakeVfioKernel(device, directory)
    handle = VfioHandle(kernel.address, system=kernel, sysfs=kernel.sysfs)

It declares request numbers and structures (<linux/vfio.h>) itself: two sides that share a wrong number would
agree.
"""

from __future__ import annotations

import errno
import os
import struct
from dataclasses import dataclass, field
from pathlib import Path

from vdpa_net.device.net_device import NetDevice

GET_API_VERSION, CHECK_EXTENSION, SET_IOMMU = 0x3B64, 0x3B65, 0x3B66
GROUP_GET_STATUS, GROUP_SET_CONTAINER, GROUP_GET_DEVICE_FD = 0x3B67, 0x3B68, 0x3B6A
DEVICE_GET_REGION_INFO, DEVICE_GET_IRQ_INFO, DEVICE_SET_IRQS = 0x3B6C, 0x3B6D, 0x3B6E
DEVICE_RESET, IOMMU_GET_INFO, IOMMU_MAP_DMA, IOMMU_UNMAP_DMA = 0x3B6F, 0x3B70, 0x3B71, 0x3B72
DEVICE_IOEVENTFD = 0x3B74

_VIABLE, _TYPE1V2, _MSIX = 1, 3, 2
_REGION_SHIFT = 40
_REGION_INFO = struct.Struct("<IIIIQQ")
_IRQ_INFO = struct.Struct("<IIII")
_IRQ_SET = struct.Struct("<IIIII")
_DMA_MAP = struct.Struct("<IIQQQ")
_DMA_UNMAP = struct.Struct("<IIQQ")
_IOEVENTFD = struct.Struct("<IIQQiI")
_IOMMU_INFO = struct.Struct("<IIQII")
_IOVA_RANGES = struct.Struct("<HHIIIQQQQ")


@dataclass
class FakeVfioKernel:
    """One function in one group. What it refuses can be set before it is used.

    `iova_end` is the first address that the IOMMU does not translate.
    """

    device: NetDevice
    directory: Path
    address: str = "0000:01:00.0"
    driver: str | None = "vfio-pci"
    viable: bool = True
    has_ioeventfd: bool = True
    resizes_irqs: bool = True
    iova_end: int = 1 << 48
    opened: dict[int, str] = field(default_factory=dict)
    requests: list[int] = field(default_factory=list)
    maps: dict[int, int] = field(default_factory=dict)
    vectors: int = 0

    def __post_init__(self) -> None:
        entry = self.sysfs / "bus/pci/devices" / self.address
        group = self.sysfs / "kernel/iommu_groups/7"
        group.mkdir(parents=True)
        entry.mkdir(parents=True)
        (entry / "iommu_group").symlink_to(group)
        if self.driver is not None:
            driver = self.sysfs / "bus/pci/drivers" / self.driver
            driver.mkdir(parents=True)
            (entry / "driver").symlink_to(driver)

    @property
    def sysfs(self) -> Path:
        """The root of its sysfs."""
        return self.directory / "sys"

    def open(self, path: str) -> int:
        """A descriptor of /dev/vfio/vfio or of the group."""
        if path not in ("/dev/vfio/vfio", "/dev/vfio/7"):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return self._new_fd(path)

    def _new_fd(self, what: str) -> int:
        # What is written past this object, by a native thread, can be read back from the file.
        fd = os.memfd_create(what)
        self.opened[fd] = what
        return fd

    def close(self, fd: int) -> None:
        """Forget a descriptor; with the device's, the device is reset."""
        if self.opened.pop(fd) == "device":
            self.device.detach_client()
        os.close(fd)

    def ioctl(self, fd: int, request: int, argument: int | bytearray) -> int:
        """What the kernel does, for requests that go with the descriptor."""
        self.requests.append(request)
        what = self.opened[fd]
        if isinstance(argument, int):
            return self._plain(what, request, argument)
        size = int.from_bytes(argument[:4], "little")
        if what == "/dev/vfio/vfio":
            return self._container(request, argument)
        if what == "device":
            assert size <= len(argument), f"argsz {size} of {len(argument)} bytes"
            return self._device(request, argument)
        return self._group(request, argument)

    def _plain(self, what: str, request: int, argument: int) -> int:
        if what == "device" and request == DEVICE_RESET:
            self.device.reset()
            return 0
        assert what == "/dev/vfio/vfio"
        if request == CHECK_EXTENSION:
            return int(argument == _TYPE1V2)
        assert request in (GET_API_VERSION, SET_IOMMU)
        return 0

    def _group(self, request: int, argument: bytearray) -> int:
        if request == GROUP_GET_STATUS:
            struct.pack_into("<II", argument, 0, 8, _VIABLE if self.viable else 0)
            return 0
        if request == GROUP_GET_DEVICE_FD:
            assert bytes(argument) == self.address.encode() + b"\0"
            return self._new_fd("device")
        assert request == GROUP_SET_CONTAINER
        assert self.opened[int.from_bytes(argument, "little")] == "/dev/vfio/vfio"
        return 0

    def _container(self, request: int, argument: bytearray) -> int:
        if request == IOMMU_MAP_DMA:
            size, flags, address, iova, length = _DMA_MAP.unpack(argument)
            assert size == _DMA_MAP.size
            if iova + length > self.iova_end:
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
            fd, offset = _file_at(address)
            self.device.dma_map(iova, length, fd, offset, readable=bool(flags & 1), writable=bool(flags & 2))
            os.close(fd)
            self.maps[iova] = length
        elif request == IOMMU_UNMAP_DMA:
            _, _, iova, length = _DMA_UNMAP.unpack(argument)
            if self.maps.get(iova) == length:
                self.device.dma_unmap(iova, length)
                del self.maps[iova]
            else:
                _DMA_UNMAP.pack_into(argument, 0, _DMA_UNMAP.size, 0, iova, 0)
        else:
            assert request == IOMMU_GET_INFO
            _IOMMU_INFO.pack_into(argument, 0, len(argument), 2, 4096, _IOMMU_INFO.size, 0)
            ranges = (0, 0xFEDFFFFF, 0xFEF00000, self.iova_end - 1)
            _IOVA_RANGES.pack_into(argument, _IOMMU_INFO.size, 1, 1, 0, 2, 0, *ranges)
        return 0

    def _device(self, request: int, argument: bytearray) -> int:
        if request == DEVICE_GET_REGION_INFO:
            index = _REGION_INFO.unpack(argument)[2]
            info = self.device.region_info(index)
            if info is None:
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
            _REGION_INFO.pack_into(
                argument, 0, _REGION_INFO.size, 7, index, 0, info.size, index << _REGION_SHIFT
            )
        elif request == DEVICE_GET_IRQ_INFO:
            index = _IRQ_INFO.unpack(argument)[2]
            flags = 1 if self.resizes_irqs else 9
            _IRQ_INFO.pack_into(argument, 0, _IRQ_INFO.size, flags, index, self.device.num_vectors)
        elif request == DEVICE_SET_IRQS:
            self._set_irqs(argument)
        else:
            assert request == DEVICE_IOEVENTFD
            self._set_ioeventfd(argument)
        return 0

    def _set_irqs(self, argument: bytearray) -> None:
        _, flags, index, start, count = _IRQ_SET.unpack_from(argument)
        assert index == _MSIX
        if flags == 0x21:
            assert (start, count) == (0, 0)
            self.vectors = 0
            return
        assert flags == 0x24
        if self.vectors == 0:
            self.vectors = start + count
        if start + count > self.vectors:
            if not self.resizes_irqs:
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
            self.vectors = start + count
        fds = struct.unpack_from(f"<{count}i", argument, _IRQ_SET.size)
        self.device.set_irqs(start, [None if fd < 0 else fd for fd in fds])

    def _set_ioeventfd(self, argument: bytearray) -> None:
        size, flags, _offset, data, fd, _ = _IOEVENTFD.unpack(argument)
        assert (size, flags) == (_IOEVENTFD.size, 2)
        if not self.has_ioeventfd:
            raise OSError(errno.ENOTTY, os.strerror(errno.ENOTTY))
        self.device.set_kick(data, None if fd < 0 else fd)

    def pread(self, fd: int, size: int, offset: int) -> bytes:
        """Read a register."""
        assert self.opened[fd] == "device"
        return self.device.region_read(offset >> _REGION_SHIFT, offset & (1 << _REGION_SHIFT) - 1, size)

    def pwrite(self, fd: int, data: bytes, offset: int) -> int:
        """Write a register."""
        assert self.opened[fd] == "device"
        self.device.region_write(offset >> _REGION_SHIFT, offset & (1 << _REGION_SHIFT) - 1, data)
        return len(data)


def _file_at(address: int) -> tuple[int, int]:
    """A new descriptor of the file that is mapped at an address of this process, and the offset in it."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, _, offset, _, inode = line.split()[:5]
        low, high = (int(part, 16) for part in span.split("-"))
        if low <= address < high and int(inode):
            for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - Path.iterdir would hold a descriptor longer
                if _inode(int(name)) == int(inode):
                    return os.dup(int(name)), int(offset, 16) + address - low
    raise OSError(errno.EFAULT, os.strerror(errno.EFAULT))


def _inode(fd: int) -> int:
    try:
        return os.fstat(fd).st_ino
    except OSError:
        return 0
