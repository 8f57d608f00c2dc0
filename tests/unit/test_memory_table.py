# SPDX-License-Identifier: Apache-2.0
"""The front end's memory regions as they come and go."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import replace

import pytest

from vdpa_net.driver.memory_table import MemoryTable
from vdpa_net.errors import DmaError, ProtocolError
from vdpa_net.wire.vhost_user import MemoryRegion

REGION = MemoryRegion(guest_address=0, size=0x4000, user_address=0x7F00_0000_0000, mmap_offset=0)


class Maps:
    """What the device has mapped, by IOVA."""

    def __init__(self) -> None:
        self.mapped: dict[int, int] = {}
        self.refused: int | None = None

    def dma_map(
        self, iova: int, size: int, _fd: int, _offset: int, *, readable: bool = True, writable: bool = True
    ) -> None:
        assert iova not in self.mapped
        if size == self.refused:
            raise DmaError(f"refused: {size:#x} bytes")
        assert readable
        assert writable
        self.mapped[iova] = size

    def dma_unmap(self, iova: int, size: int) -> None:
        assert self.mapped.pop(iova) == size


@pytest.fixture
def files() -> Iterator[tuple[int, int]]:
    fds = tuple(os.memfd_create(name) for name in ("ram", "other"))
    for fd in fds:
        os.ftruncate(fd, REGION.size)
    yield fds[0], fds[1]
    for fd in fds:
        os.close(fd)


def test_a_region_that_each_queue_pair_adds_stays_until_each_has_removed_it(files: tuple[int, int]) -> None:
    maps = Maps()
    table = MemoryTable(maps)
    table.add(REGION, files[0])
    table.add(REGION, files[0])
    assert table.regions == [REGION]
    table.remove(REGION)
    assert maps.mapped == {0: REGION.size}
    table.remove(REGION)
    assert not maps.mapped
    with pytest.raises(ProtocolError, match="REM_MEM_REG"):
        table.remove(REGION)


def test_the_same_addresses_in_another_file_or_place_are_an_overlap(files: tuple[int, int]) -> None:
    table = MemoryTable(Maps())
    table.add(REGION, files[0])
    with pytest.raises(ProtocolError, match="overlap"):
        table.add(REGION, files[1])
    with pytest.raises(ProtocolError, match="overlap"):
        table.add(replace(REGION, size=0x2000), files[0])
    table.clear()


def test_rings_that_can_not_go_on_behind_a_new_table_leave_it_in_force(files: tuple[int, int]) -> None:
    maps = Maps()
    table = MemoryTable(maps)
    table.replace([REGION], [files[0]])
    seen: list[list[MemoryRegion]] = []

    @contextlib.contextmanager
    def rest() -> Iterator[None]:
        yield
        seen.append(table.regions)
        raise ProtocolError("a ring that can't go on")

    table.at_rest = rest
    half = replace(REGION, size=0x2000, user_address=0x7000_0000_0000)
    with pytest.raises(ProtocolError, match="can't go on"):
        table.replace([half], [files[0]])
    assert seen == [[half]]
    assert table.regions == [half]
    assert maps.mapped == {0: 0x2000}
    assert table.region_of(half.user_address, half.size, "ring").read(0, 4) == bytes(4)
    table.clear()
    assert not maps.mapped


def test_a_table_that_the_device_refuses_leaves_the_old_one_in_force(files: tuple[int, int]) -> None:
    maps = Maps()
    table = MemoryTable(maps)
    table.replace([REGION], [files[0]])
    maps.refused = 0x2000
    with pytest.raises(DmaError, match="refused"):
        table.replace([replace(REGION, size=0x2000)], [files[0]])
    assert table.regions == [REGION]
    assert maps.mapped == {0: REGION.size}
    assert table.region_of(REGION.user_address, REGION.size, "ring").read(0, 4) == bytes(4)
