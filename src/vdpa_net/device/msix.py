# SPDX-License-Identifier: Apache-2.0
"""MSI-X vectors: the table, and delivery through eventfds.

The table and its mask bits are storage only. A VMM (QEMU as well as kernel VFIO) keeps the guest from the
real table, emulates it, and binds or unbinds the eventfd of a vector as the guest unmasks or masks it; what
the device finds in its own table says nothing about what the guest wants. So a vector is delivered when an
eventfd is bound.
"""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import Callable, Sequence

from vdpa_net.device.registers import RegisterBlock, Storage
from vdpa_net.errors import AccessError
from vdpa_net.migration.violations import ViolationLog
from vdpa_net.wire import pci
from vdpa_net.wire.layout import RegisterMap

PAGE = 4096


class Msix:
    """The vectors of one function. `on_change` is called after the eventfds of vectors have changed."""

    def __init__(self, vectors: int, violations: ViolationLog, on_change: Callable[[range], None]) -> None:
        self.vectors = vectors
        self.pba_offset = _round_up(vectors * pci.MSIX_ENTRY_SIZE, 0x800)
        self.bar_size = power_of_two(max(PAGE, self.pba_offset + _round_up(vectors, 64) // 8))
        table = pci.msix_table(vectors)
        self._storage = Storage(table)
        self._table = RegisterBlock(table, self._storage, violations)
        self._pba = RegisterBlock(RegisterMap("msix_pba", ()), self._storage, violations)
        self._fds: list[int | None] = [None] * vectors
        self._on_change = on_change

    def read(self, offset: int, count: int) -> bytes:
        """Bytes of the MSI-X BAR. Pending bits read 0: nothing is held back here."""
        return self._table.read(offset, count)

    def write(self, offset: int, data: bytes) -> None:
        """Write to the table; the pending bits are read-only (PCIe 7.7.2.9)."""
        block = self._pba if offset >= self.pba_offset else self._table
        block.write(offset, data)

    def fd(self, vector: int) -> int | None:
        """The eventfd bound to a vector, borrowed."""
        return self._fds[vector] if 0 <= vector < self.vectors else None

    def bind(self, start: int, fds: Sequence[int | None]) -> None:
        """Bind vectors from `start` on to duplicates of these eventfds. Raises AccessError.

        Then nothing changed.
        """
        self._check(start, len(fds))
        duplicates = _duplicate(fds)
        old = self._fds[start : start + len(fds)]
        self._fds[start : start + len(fds)] = duplicates
        self._on_change(range(start, start + len(fds)))
        _close(old)

    def unbind_all(self) -> None:
        """Unbind every vector."""
        self.bind(0, [None] * self.vectors)

    def trigger(self, start: int, flags: Sequence[bool]) -> None:
        """Raise the vectors whose flag is set. Raises AccessError for vectors that are not there."""
        self._check(start, len(flags))
        for vector, flag in enumerate(flags, start):
            if flag:
                self.raise_vector(vector)

    def raise_vector(self, vector: int) -> bool:
        """Signal a vector's eventfd; False if there is none."""
        fd = self.fd(vector)
        if fd is None or not _writable(fd):
            return False
        with contextlib.suppress(OSError):
            os.eventfd_write(fd, 1)
        return True

    def reset(self) -> None:
        """Table entries to their reset values. Bound eventfds stay: they are the VMM's, not the driver's."""
        self._storage.reset()

    def _check(self, start: int, count: int) -> None:
        if start < 0 or start + count > self.vectors:
            raise AccessError(f"MSI-X vectors {start} to {start + count - 1}: there are {self.vectors}")


def power_of_two(size: int) -> int:
    """The smallest power of two that is at least `size`."""
    return 1 << (size - 1).bit_length()


def _round_up(value: int, unit: int) -> int:
    return (value + unit - 1) // unit * unit


def _duplicate(fds: Sequence[int | None]) -> list[int | None]:
    out: list[int | None] = []
    try:
        for fd in fds:
            out.append(None if fd is None else os.dup(fd))
    except OSError as error:
        _close(out)
        raise AccessError(f"can't duplicate an eventfd for MSI-X: {error}", errno=error.errno) from error
    return out


def _close(fds: Sequence[int | None]) -> None:
    for fd in fds:
        if fd is not None:
            os.close(fd)


def _writable(fd: int) -> bool:
    """Whether a write won't block: the descriptor is a peer's, and need not be the eventfd it should be."""
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    return any(events & select.POLLOUT for _, events in poll.poll(0))
