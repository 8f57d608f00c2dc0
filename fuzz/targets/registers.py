# SPDX-License-Identifier: Apache-2.0
"""Register accesses of any place, width and value; DMA maps, guest memory, kicks and resets in between."""

from __future__ import annotations

import os
from functools import cache

from fuzz.invariants import CONFIG, MEMORY_BYTES, Invariants, Memory, make_device, tolerant
from fuzz.operations import Input, InputEnd, Language, Operation, perform
from vdpa_net.wire.lm import PROFILES
from vdpa_net.wire.virtio_pci import COMMON_CFG

LANGUAGE = Language(
    Operation("write", "BIB", blob=True),
    Operation("read", "BIB"),
    Operation("common", "BQ"),
    Operation("lm", "HI"),
    Operation("lm_half", "HH"),
    Operation("kick", "HH"),
    Operation("map", "BHBBB"),
    Operation("unmap", "HB"),
    Operation("memory", "IB", blob=True),
    Operation("reset", "B"),
)
"""
write, read   region, offset (its 20 low bits), data or count
common        register of the common configuration by number, value
lm, lm_half   register of the LM block by number, value; its low 16 bits alone
kick          queue, value
map, unmap    file, first page, page in the file, pages, flags; first page, pages
memory        offset in the shared memory, bytes
reset         1: the driver's, by device_status; else the VMM's
"""

PAGE = 4096
NOTIFY = 0x3000
_COMMON = list(COMMON_CFG)


class Target:
    """One device for all inputs of a profile; every input begins and ends with a fresh one."""

    def __init__(self, profile: str) -> None:
        self.device = make_device(profile)
        self.invariants = Invariants(self.device)
        self.memory = Memory()
        layout = PROFILES[profile]
        self._lm_registers = list(layout.registers)
        self._lm_place = (layout.virtio_bar, 0x4000) if layout.lm_bar is None else (layout.lm_bar, 0)
        self._handlers = {
            name: getattr(self, name)
            for name in ("write", "read", "common", "lm", "lm_half", "kick", "map", "unmap", "reset")
        } | {"memory": self.fill}

    def run(self, source: Input) -> None:
        """One input."""
        self.memory.clear()
        try:
            perform(LANGUAGE, self._handlers, source, self.invariants.hold)
        finally:
            self.device.detach_client()
        self.invariants.abandoned()

    def write(self, region: int, offset: int, data: bytes) -> None:
        """Any bytes to any place."""
        tolerant(self.device.region_write, region % 10, offset & 0xFFFFF, data)

    def read(self, region: int, offset: int, count: int) -> None:
        """Any number of bytes from any place."""
        data = tolerant(self.device.region_read, region % 10, offset & 0xFFFFF, count)
        assert data is None or (isinstance(data, bytes) and len(data) == count)

    def common(self, number: int, value: int) -> None:
        """A whole register of the common configuration."""
        register = _COMMON[number % len(_COMMON)]
        data = (value & (1 << 8 * register.width) - 1).to_bytes(register.width, "little")
        tolerant(self.device.region_write, self.invariants.virtio_bar, register.offset, data)

    def lm(self, number: int, value: int) -> None:
        """A whole register of the LM block."""
        self._write_lm(number, value.to_bytes(4, "little"))

    def lm_half(self, number: int, value: int) -> None:
        """The low half of a register of the LM block."""
        self._write_lm(number, value.to_bytes(2, "little"))

    def _write_lm(self, number: int, data: bytes) -> None:
        region, base = self._lm_place
        register = self._lm_registers[number % len(self._lm_registers)]
        tolerant(self.device.region_write, region, base + register.offset, data)

    def kick(self, queue: int, value: int) -> None:
        """A doorbell."""
        place = NOTIFY + 4 * (queue % 1024)
        tolerant(self.device.region_write, self.invariants.virtio_bar, place, value.to_bytes(2, "little"))

    def map(self, file: int, page: int, file_page: int, pages: int, flags: int) -> None:
        """A map of guest memory."""
        fd = None if file == 0xFF else self.memory.pick(file)
        wanted = {"readable": bool(flags & 1), "writable": bool(flags & 2)}
        tolerant(self.device.dma_map, page * PAGE, pages * PAGE, fd, file_page * PAGE, **wanted)

    def unmap(self, page: int, pages: int) -> None:
        """The maps of a range."""
        tolerant(self.device.dma_unmap_within, page * PAGE, pages * PAGE)

    def fill(self, offset: int, data: bytes) -> None:
        """Guest memory, as its CPU writes it."""
        os.pwrite(self.memory.ram, data, offset % (MEMORY_BYTES - len(data)))

    def reset(self, how: int) -> None:
        """Back to the beginning."""
        if how & 1:
            self.device.region_write(self.invariants.virtio_bar, COMMON_CFG["device_status"].offset, b"\0")
        else:
            self.device.reset()
            assert self.device.region_read(CONFIG, 4, 2) == b"\0\0", "a reset left the command register"
        self.invariants.fresh()


@cache
def _target(profile: str) -> Target:
    return Target(profile)


def run(data: bytes) -> None:
    """One input: the profile, then operations."""
    source = Input(data)
    try:
        (profile,) = source.take("B")
    except InputEnd:
        return
    names = list(PROFILES)
    _target(names[profile % len(names)]).run(source)
