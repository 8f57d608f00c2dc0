# SPDX-License-Identifier: Apache-2.0
"""The front end's side of the dirty log: a bitmap in a memfd, harvested while devices set bits in it.

One bit is one guest page, least significant bit of byte 0 first (vhost-user, "Migration").
"""

from __future__ import annotations

import ctypes
import mmap
import os
import platform

PAGE_BYTES = 4096
_CHUNK_BYTES = 4096
_WORD_BITS = 32
_NO_MARKS = bytes(_CHUNK_BYTES)

_SYS_FUTEX = {"x86_64": 202, "aarch64": 98}
_FUTEX_WAKE_OP = 5
_FUTEX_OP_ANDN = 3
_FUTEX_OP_OPARG_SHIFT = 8


class DirtyLog:
    """A log of `size_bytes` at `offset_bytes` of its own file (a memfd), for guest pages from 0 on."""

    def __init__(self, size_bytes: int, offset_bytes: int = 0) -> None:
        """Raises ValueError if the offset is not page-aligned (it is an mmap offset)."""
        if offset_bytes % mmap.ALLOCATIONGRANULARITY:
            raise ValueError(f"log offset {offset_bytes:#x} is not a multiple of the page size")
        self.size_bytes = size_bytes
        self.offset_bytes = offset_bytes
        whole_pages = -(-size_bytes // PAGE_BYTES) * PAGE_BYTES
        self._file_bytes = offset_bytes + whole_pages
        self.fd = os.memfd_create("dirty-log", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, self._file_bytes)
        self._map = mmap.mmap(self.fd, self._file_bytes)
        self._anchor = ctypes.c_char.from_buffer(self._map, offset_bytes)
        self._address = ctypes.addressof(self._anchor)

    @classmethod
    def for_memory_end(cls, end: int, offset_bytes: int = 0) -> DirtyLog:
        """A log for guest addresses below `end`, sized as QEMU does: in words of 64 pages, not in pages."""
        words = -(-end // (PAGE_BYTES * 64))
        return cls(words * 8, offset_bytes)

    def harvest(self) -> set[int]:
        """Take the marked pages and clear exactly their bits; a mark made meanwhile is kept for next time."""
        return self._collect(clear=True)

    def peek(self) -> set[int]:
        """The marked pages; nothing is cleared."""
        return self._collect(clear=False)

    def stray_bytes(self) -> int:
        """Bytes that are not zero in the file before and behind the log, where no device may write."""
        before = self._map[: self.offset_bytes]
        behind = self._map[self.offset_bytes + self.size_bytes :]
        return sum(1 for byte in before + behind if byte)

    def _collect(self, *, clear: bool) -> set[int]:
        pages: set[int] = set()
        end = -(-self.size_bytes // PAGE_BYTES) * PAGE_BYTES
        for start in range(0, end, _CHUNK_BYTES):
            chunk = self._map[self.offset_bytes + start : self.offset_bytes + start + _CHUNK_BYTES]
            if chunk == _NO_MARKS:
                continue
            for index, word in enumerate(memoryview(chunk).cast("I")):
                if word:
                    self._collect_word(start + 4 * index, word, pages, clear)
        return pages

    def _collect_word(self, offset: int, word: int, pages: set[int], clear: bool) -> None:
        for bit in range(_WORD_BITS):
            if word >> bit & 1:
                if clear:
                    _atomic_clear_bit(self._address + offset, bit)
                pages.add(offset * 8 + bit)

    def close(self) -> None:
        """Unmap and close the log."""
        del self._anchor
        self._map.close()
        os.close(self.fd)


def _atomic_clear_bit(address: int, bit: int) -> None:
    # Python has no atomic read-modify-write on shared memory; the kernel offers one as part of a futex call
    # (FUTEX_WAKE_OP with nobody to wake), on every architecture alike.
    number = _SYS_FUTEX[platform.machine()]
    operation = (_FUTEX_OP_ANDN | _FUTEX_OP_OPARG_SHIFT) << 28 | bit << 12
    result = _LIBC.syscall(
        ctypes.c_long(number),
        ctypes.c_void_p(address),
        ctypes.c_int(_FUTEX_WAKE_OP),
        ctypes.c_int(0),
        ctypes.c_void_p(0),
        ctypes.c_void_p(address),
        ctypes.c_uint(operation),
    )
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"futex: {os.strerror(number)}")


# PyDLL keeps the GIL: given up for each bit, it would have to be won back from other threads each time.
_LIBC = ctypes.PyDLL(None, use_errno=True)
