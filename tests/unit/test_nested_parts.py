# SPDX-License-Identifier: Apache-2.0
"""Parts of the nested lab that need no guest: RAM seen through a level-1 guest, its package."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import pytest

from vdpa_net.errors import LabError
from vdpa_net.lab import image
from vdpa_net.lab.nested.agent import physical_addresses
from vdpa_net.lab.nested.level2_ram import Level2Ram
from vdpa_net.lab.nested.package import staged
from vdpa_net.lab.ram import GuestRam
from vdpa_net.migration.checks import PAGE_BYTES

PIECE = 4 * PAGE_BYTES


def store(ram: GuestRam, address: int, data: bytes) -> None:
    os.pwrite(ram.fd, data, address)


def test_level_2_ram_is_read_where_its_pieces_lie() -> None:
    with GuestRam("host", 8 * PIECE) as host:
        ram = Level2Ram(host, Path("x"), PIECE, [3 * PIECE, PIECE])
        store(host, 3 * PIECE + 2, b"\x34\x12")
        store(host, PIECE, b"\x78\x56")
        assert ram.size_bytes == 2 * PIECE
        assert (ram.u16(2), ram.u16(PIECE)) == (0x1234, 0x5678)


def test_pages_are_compared_by_the_guests_own_numbers() -> None:
    with GuestRam("source", 8 * PIECE) as left, GuestRam("destination", 8 * PIECE) as right:
        source = Level2Ram(left, Path("x"), PIECE, [3 * PIECE, PIECE])
        destination = Level2Ram(right, Path("x"), PIECE, [0, 7 * PIECE])
        assert source.differing_pages(destination) == []
        # Beside the pieces, and in the second page of the second piece.
        store(left, 5 * PIECE, b"elsewhere")
        store(right, 7 * PIECE + PAGE_BYTES, b"differs")
        assert source.differing_pages(destination) == [5]


def test_pages_are_found_in_the_level_1_guests_file() -> None:
    with GuestRam("host", 8 * PIECE) as host:
        ram = Level2Ram(host, Path("x"), PIECE, [3 * PIECE, PIECE, 6 * PIECE])
        assert ram.file_pages(0, 12) == [(12, 16), (4, 8), (24, 28)]
        assert ram.file_pages(0, 5) == [(12, 16), (4, 5)]
        assert ram.file_pages(6, 9) == [(6, 8), (24, 25)]
        assert ram.file_pages(7, 8) == [(7, 8)]
        assert ram.file_pages(0, 0) == []


def test_piece_outside_of_the_level_1_guest_is_refused() -> None:
    with GuestRam("host", 2 * PIECE) as host, pytest.raises(LabError, match="a piece at 0x8000"):
        Level2Ram(host, Path("x"), PIECE, [2 * PIECE])


def test_huge_page_that_is_not_there_is_an_error() -> None:
    # A mapping that nobody has touched: the page table has no entry for it.
    with mmap.mmap(-1, 4 << 20) as view, pytest.raises(LabError, match="too few were reserved"):
        physical_addresses(view, 4 << 20)


def test_package_without_a_native_module_is_refused(tmp_path: Path) -> None:
    (tmp_path / "__init__.py").write_text("")
    built = image.Image(tmp_path, "6.12")
    with pytest.raises(LabError, match=r"no native module.*make build"):
        staged(built, tmp_path / "cache", tmp_path)
