# SPDX-License-Identifier: Apache-2.0
"""MSI-X vectors: the table, and delivery through eventfds.

The table and its mask bits are storage only. A VMM (QEMU as well as kernel VFIO) keeps the guest from the
real table, emulates it, and binds or unbinds the eventfd of a vector as the guest unmasks or masks it; what
the device finds in its own table says nothing about what the guest wants. So a vector is delivered when an
eventfd is bound, and pending until then: the pending bits (PBA) say so, and QEMU reads them here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from vdpa_net.device.access import Place
from vdpa_net.device.registers import RegisterBlock, Storage
from vdpa_net.device.vector_masks import VectorMasks, close, duplicate, signal
from vdpa_net.errors import AccessError
from vdpa_net.migration.violations import ViolationLog
from vdpa_net.wire import pci
from vdpa_net.wire.layout import RegisterMap

PAGE = 4096


class Msix:
    """The vectors of one function.

    `on_change` is called after the eventfds of vectors have changed. `also_due` gives vectors that the data
    plane holds something back for.
    """

    def __init__(
        self,
        vectors: int,
        violations: ViolationLog,
        on_change: Callable[[range], None],
        also_due: Callable[[], Iterable[int]] = tuple,
    ) -> None:
        self.vectors = vectors
        self.pba_offset = _round_up(vectors * pci.MSIX_ENTRY_SIZE, 0x800)
        self.bar_size = power_of_two(max(PAGE, self.pba_offset + _round_up(vectors, 64) // 8))
        table = pci.msix_table(vectors)
        self._storage = Storage(table)
        self._table = RegisterBlock(table, self._storage, violations)
        self._pba = RegisterBlock(RegisterMap("msix_pba", ()), self._storage, violations)
        self._fds: list[int | None] = [None] * vectors
        self._masks = VectorMasks()
        self._on_change = on_change
        self._also_due = also_due

    def read(self, offset: int, count: int) -> bytes:
        """Bytes of the MSI-X BAR."""
        if offset < self.pba_offset:
            return self._table.read(offset, count)
        return (self._pending() >> 8 * (offset - self.pba_offset)).to_bytes(self.bar_size, "little")[:count]

    def write(self, offset: int, data: bytes) -> None:
        """Write to the table; the pending bits are read-only (PCIe 7.7.2.9)."""
        block = self._pba if offset >= self.pba_offset else self._table
        block.write(offset, data)

    def places(self, offset: int, count: int) -> Iterator[Place]:
        """The registers that an access covers."""
        yield from self._table.places(offset, count)

    def fd(self, vector: int) -> int | None:
        """The eventfd bound to a vector, borrowed; None while the vector is masked, too."""
        if not 0 <= vector < self.vectors or self._masks.is_masked(vector):
            return None
        return self._fds[vector]

    def bind(self, start: int, fds: Sequence[int | None]) -> None:
        """Bind vectors from `start` on to duplicates of these eventfds. Raises AccessError.

        Then nothing changed.
        """
        self._check(start, len(fds))
        duplicates = duplicate(fds)
        old = self._fds[start : start + len(fds)]
        self._fds[start : start + len(fds)] = duplicates
        bound = range(start, start + len(fds))
        self._on_change(bound)
        for vector in self._masks.take_due(vector for vector in bound if self.fd(vector) is not None):
            self.raise_vector(vector)
        close(old)

    def unbind_all(self) -> None:
        """Unbind and unmask every vector."""
        self._masks.clear()
        self.bind(0, [None] * self.vectors)

    def mask(self, start: int, flags: Sequence[bool], *, masked: bool) -> None:
        """Mask or unmask the vectors from `start` on whose flag is set. Raises AccessError.

        What a queue has to announce while its vector is masked, the data plane keeps as it does without an
        eventfd: it is raised when the vector is unmasked.
        """
        self._check(start, len(flags))
        due = self._masks.set([vector for vector, flag in enumerate(flags, start) if flag], masked=masked)
        self._on_change(range(start, start + len(flags)))
        for vector in due:
            self.raise_vector(vector)

    def notify_mask(self, start: int, fds: Sequence[int | None], *, masked: bool) -> None:
        """Signal these eventfds when the vectors become masked (or unmasked). Raises AccessError."""
        self._check(start, len(fds))
        self._masks.bind(start, fds, masked=masked)

    def trigger(self, start: int, flags: Sequence[bool]) -> None:
        """Raise the vectors whose flag is set. Raises AccessError for vectors that are not there."""
        self._check(start, len(flags))
        for vector, flag in enumerate(flags, start):
            if flag and (self._fds[vector] is not None or self._masks.is_masked(vector)):
                self.raise_vector(vector)

    def raise_vector(self, vector: int) -> bool:
        """Signal a vector's eventfd. False if there is none, or the vector is masked: then it is due."""
        fd = self.fd(vector)
        if fd is None and 0 <= vector < self.vectors:
            self._masks.hold(vector)
        return fd is not None and signal(fd)

    def forget_due(self) -> None:
        """What there was to announce is gone with a reset."""
        self._masks.take_due(range(self.vectors))

    def reset(self) -> None:
        """Table entries to their reset values. Bound eventfds stay: they are the VMM's, not the driver's."""
        self._storage.reset()

    def _pending(self) -> int:
        return sum(1 << vector for vector in {*self._masks.due, *self._also_due()} if vector < self.vectors)

    def _check(self, start: int, count: int) -> None:
        if start < 0 or start + count > self.vectors:
            raise AccessError(f"MSI-X vectors {start} to {start + count - 1}: there are {self.vectors}")


def power_of_two(size: int) -> int:
    """The smallest power of two that is at least `size`."""
    return 1 << (size - 1).bit_length()


def _round_up(value: int, unit: int) -> int:
    return (value + unit - 1) // unit * unit
