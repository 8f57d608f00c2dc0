# SPDX-License-Identifier: Apache-2.0
"""Which pages this process wrote, as the memory management unit saw it: the dirty audit's second opinion.

The device marks what it writes in the dirty log. Whether it marked everything can't be asked of the code that
marks; here the kernel answers. The pages are registered with a userfaultfd in asynchronous write-protect mode
and PAGEMAP_SCAN lists those that were written since (Documentation/admin-guide/mm/userfaultfd.rst and
pagemap.rst; Linux 6.7). Only writes through this process's own mappings count, system calls on its behalf
(readv into guest memory) included; the guest and its VMM write through theirs and are not seen.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
from collections.abc import Iterable
from dataclasses import dataclass

from vdpa_net.closing import Closing
from vdpa_net.errors import StateError
from vdpa_net.wire.layout import Field, Layout

PAGE_BYTES = 4096

_SYS_USERFAULTFD = {"x86_64": 323, "aarch64": 282}
_UFFD_USER_MODE_ONLY = 1
_UFFD_API = 0xAA
_UFFD_FEATURE_WP_SHMEM = 1 << 12
_UFFD_FEATURE_WP_UNPOPULATED = 1 << 13
_UFFD_FEATURE_WP_ASYNC = 1 << 15
_UFFDIO_REGISTER_MODE_WP = 1 << 1
_PM_SCAN_WP_MATCHING = 1 << 0
_PM_SCAN_CHECK_WPASYNC = 1 << 1
_PAGE_IS_WRITTEN = 1 << 1
_REGIONS_PER_SCAN = 4096

_API = Layout("uffdio_api", Field("api", 8), Field("features", 8), Field("ioctls", 8))
_REGISTER = Layout(
    "uffdio_register", Field("start", 8), Field("len", 8), Field("mode", 8), Field("ioctls", 8)
)
_SCAN = Layout(
    "pm_scan_arg",
    Field("size", 8),
    Field("flags", 8),
    Field("start", 8),
    Field("end", 8),
    Field("walk_end", 8),
    Field("vec", 8),
    Field("vec_len", 8),
    Field("max_pages", 8),
    Field("category_inverted", 8),
    Field("category_mask", 8),
    Field("category_anyof_mask", 8),
    Field("return_mask", 8),
)


def _iowr(kind: int, number: int, size: int) -> int:
    return (3 << 30) | (size << 16) | (kind << 8) | number


_UFFDIO_API = _iowr(_UFFD_API, 0x3F, _API.size)
_UFFDIO_REGISTER = _iowr(_UFFD_API, 0x00, _REGISTER.size)
_PAGEMAP_SCAN = _iowr(ord("f"), 16, _SCAN.size)


@dataclass(frozen=True)
class Watched:
    """A range of this process's addresses, in bytes and whole pages, and the number of its first page."""

    address: int
    size_bytes: int
    first_page: int


class WriteAudit(Closing):
    """Watches the pages behind DMA mappings for writes by this process. The log, whose bits the device sets,
    must not be among them.

    Raises StateError where the kernel can't do it (before Linux 6.7, or not built in); the message says so.
    """

    def __init__(self, ranges: Iterable[Watched]) -> None:
        self._ranges: list[Watched] = []
        self._earlier: set[int] = set()
        self._uffd = _open_userfaultfd()
        self._pagemap = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        try:
            self.watch(ranges)
        except BaseException:
            self.close()
            raise

    def watch(self, ranges: Iterable[Watched]) -> None:
        """Watch these as well, from now on. Raises StateError."""
        for item in ranges:
            self._protect(item.address, item.size_bytes)
            self._ranges.append(item)

    def checkpoint(self) -> set[int]:
        """Numbers of the pages written since the last checkpoint; watching starts anew for them."""
        since = self._pages(protect=True)
        self._earlier |= since
        return since

    def written_pages(self) -> set[int]:
        """Numbers of the pages written since the audit was made, checkpoints or not."""
        return self._earlier | self._pages(protect=False)

    def _pages(self, *, protect: bool) -> set[int]:
        pages: set[int] = set()
        for item in self._ranges:
            for start, end in self._scan(item.address, item.address + item.size_bytes, protect=protect):
                first = item.first_page + (start - item.address) // PAGE_BYTES
                pages.update(range(first, first + (end - start) // PAGE_BYTES))
        return pages

    def close(self) -> None:
        """Stop watching; the pages are writable without a fault again."""
        for name in ("_uffd", "_pagemap"):
            fd = getattr(self, name)
            if fd >= 0:
                os.close(fd)
                setattr(self, name, -1)

    def _protect(self, address: int, size: int) -> None:
        request = bytearray(_REGISTER.pack(start=address, len=size, mode=_UFFDIO_REGISTER_MODE_WP))
        try:
            fcntl.ioctl(self._uffd, _UFFDIO_REGISTER, request)
        except OSError as error:
            raise StateError(
                f"the kernel does not watch [{address:#x}, {address + size:#x}) for writes: {error.strerror}"
            ) from error
        for _ in self._scan(address, address + size, protect=True):
            pass

    def _scan(self, start: int, end: int, *, protect: bool) -> Iterable[tuple[int, int]]:
        vector = (ctypes.c_uint64 * (3 * _REGIONS_PER_SCAN))()
        flags = _PM_SCAN_CHECK_WPASYNC | (_PM_SCAN_WP_MATCHING if protect else 0)
        while start < end:
            argument = bytearray(
                _SCAN.pack(
                    size=_SCAN.size,
                    flags=flags,
                    start=start,
                    end=end,
                    vec=ctypes.addressof(vector),
                    vec_len=_REGIONS_PER_SCAN,
                    category_mask=_PAGE_IS_WRITTEN,
                    return_mask=_PAGE_IS_WRITTEN,
                )
            )
            count = fcntl.ioctl(self._pagemap, _PAGEMAP_SCAN, argument)
            for index in range(count):
                yield vector[3 * index], vector[3 * index + 1]
            start = _SCAN.unpack(argument)["walk_end"]


def _open_userfaultfd() -> int:
    number = _SYS_USERFAULTFD.get(platform.machine())
    if number is None:
        raise StateError(
            f"the write audit does not know userfaultfd on {platform.machine()}", errno=errno.ENOTSUP
        )
    libc = ctypes.CDLL(None, use_errno=True)
    fd = int(libc.syscall(number, os.O_CLOEXEC | _UFFD_USER_MODE_ONLY))
    if fd < 0:
        code = ctypes.get_errno()
        raise StateError(f"userfaultfd: {os.strerror(code)}; the write audit needs it", errno=code)
    wanted = _UFFD_FEATURE_WP_ASYNC | _UFFD_FEATURE_WP_UNPOPULATED | _UFFD_FEATURE_WP_SHMEM
    try:
        fcntl.ioctl(fd, _UFFDIO_API, bytearray(_API.pack(api=_UFFD_API, features=wanted)))
    except OSError as error:
        os.close(fd)
        raise StateError(
            "this kernel has no asynchronous write protection (Linux 6.7 has): the write audit can't run",
            errno=errno.ENOTSUP,
        ) from error
    return fd
