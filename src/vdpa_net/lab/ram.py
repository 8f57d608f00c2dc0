# SPDX-License-Identifier: Apache-2.0
"""Guest RAM that the lab can see: a memfd that QEMU maps by its /proc path; nothing outlives the lab."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

from vdpa_net.closing import Closing


class GuestRam(Closing):
    """`size_bytes` of RAM for one QEMU, zero at first.

    The q35 machine puts RAM below 2 GiB at guest physical address 0 in one piece, so an address is an offset;
    `LOW_RAM_BYTES` is the limit of that.
    """

    LOW_RAM_BYTES = 2 << 30

    def __init__(self, name: str, size_bytes: int) -> None:
        if not 0 < size_bytes <= self.LOW_RAM_BYTES:
            raise ValueError(
                f"guest RAM of {size_bytes} bytes; the lab compares at most {self.LOW_RAM_BYTES}"
            )
        self.name = name
        self.size_bytes = size_bytes
        self.fd = os.memfd_create(name)
        os.ftruncate(self.fd, size_bytes)
        self.view = mmap.mmap(self.fd, size_bytes, prot=mmap.PROT_READ)

    @property
    def path(self) -> Path:
        """The file, for a process that inherits `fd` under its own number."""
        return Path(f"/proc/self/fd/{self.fd}")

    def u16(self, address: int) -> int:
        """The little-endian 16-bit value at a guest physical address."""
        return int.from_bytes(self.view[address : address + 2], "little")

    def close(self) -> None:
        """Give the memory back (QEMU has its own reference while it runs)."""
        if self.fd >= 0:
            self.view.close()
            os.close(self.fd)
            self.fd = -1
