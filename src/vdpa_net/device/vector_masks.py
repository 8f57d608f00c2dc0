# SPDX-License-Identifier: Apache-2.0
"""Masks that a client puts on MSI-X vectors with DEVICE_SET_IRQS, and the eventfds that tell it of them.

A masked vector is not delivered; what was due meanwhile is delivered once when it is unmasked. The masks are
the client's own: neither the bits of the MSI-X table nor a device reset change them, losing the client does.
"""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import Iterable, Sequence

from vdpa_net.errors import AccessError


class VectorMasks:
    """Which vectors are masked, and what was due there. Owns duplicates of the eventfds."""

    def __init__(self) -> None:
        self._masked: set[int] = set()
        self._due: set[int] = set()
        self._fds: dict[tuple[int, bool], int] = {}

    def is_masked(self, vector: int) -> bool:
        """Whether the vector is held back."""
        return vector in self._masked

    def hold(self, vector: int) -> None:
        """A vector that is masked, or has no eventfd, is due."""
        self._due.add(vector)

    @property
    def due(self) -> frozenset[int]:
        """Vectors that are held back."""
        return frozenset(self._due)

    def take_due(self, vectors: Iterable[int]) -> list[int]:
        """Those of the vectors that are due, which they are no longer then."""
        due = [vector for vector in vectors if vector in self._due]
        self._due.difference_update(due)
        return due

    def set(self, vectors: Sequence[int], *, masked: bool) -> list[int]:
        """Mask or unmask vectors and signal the eventfds bound to that.

        Returns those that were due and are to be delivered now.
        """
        changed = [vector for vector in vectors if (vector in self._masked) is not masked]
        for vector in changed:
            if masked:
                self._masked.add(vector)
            else:
                self._masked.discard(vector)
            if (fd := self._fds.get((vector, masked))) is not None:
                signal(fd)
        return [] if masked else self.take_due(changed)

    def bind(self, start: int, fds: Sequence[int | None], *, masked: bool) -> None:
        """Signal these eventfds (duplicated) when vectors from `start` on become masked, or unmasked.

        None unbinds. Raises AccessError.
        """
        duplicates = duplicate(fds)
        old = [self._fds.pop((vector, masked), None) for vector in range(start, start + len(fds))]
        for vector, fd in enumerate(duplicates, start):
            if fd is not None:
                self._fds[vector, masked] = fd
        close(old)

    def clear(self) -> None:
        """Unmask everything without a signal, and unbind the eventfds."""
        self._masked.clear()
        self._due.clear()
        close(list(self._fds.values()))
        self._fds.clear()


def signal(fd: int) -> bool:
    """Signal a peer's eventfd; False if it can't be. It need not be the eventfd it should be."""
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    if not any(events & select.POLLOUT for _, events in poll.poll(0)):
        return False
    with contextlib.suppress(OSError):
        os.eventfd_write(fd, 1)
    return True


def duplicate(fds: Sequence[int | None]) -> list[int | None]:
    """Duplicates of these descriptors, all or none. Raises AccessError."""
    out: list[int | None] = []
    try:
        for fd in fds:
            out.append(None if fd is None else os.dup(fd))
    except OSError as error:
        close(out)
        raise AccessError(f"can't duplicate an eventfd for MSI-X: {error}", errno=error.errno) from error
    return out


def close(fds: Sequence[int | None]) -> None:
    """Close those that are there."""
    for fd in fds:
        if fd is not None:
            os.close(fd)
