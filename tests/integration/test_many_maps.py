# SPDX-License-Identifier: Apache-2.0
"""As many DMA maps as a guest behind an IOMMU makes: a page each, in any order, through the whole device."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import time
from collections.abc import Iterator

import pytest

from vdpa_net import Loopback, NetDevice
from vdpa_net.errors import DmaError

PAGE = 4096
SAMPLE = 4000
MILLION = 1 << 20


@contextlib.contextmanager
def mapped_device() -> Iterator[tuple[NetDevice, int]]:
    with NetDevice(Loopback(), mac="52:54:00:12:34:56") as device:
        fd = os.memfd_create("ram")
        try:
            os.ftruncate(fd, 64 * PAGE)
            yield device, fd
        finally:
            os.close(fd)


def shuffled(count: int) -> list[int]:
    """Every other page of the address space, in an order that no cache likes."""
    pages = [2 * page * PAGE for page in range(count)]
    random.Random(1).shuffle(pages)
    return pages


def map_pages(device: NetDevice, fd: int, pages: list[int]) -> None:
    for page in pages:
        # Every fifth came without a file, as RAM that is not shared does.
        own = fd if page % 5 else None
        device.dma_map(page, PAGE, own, 0, readable=True, writable=True)


def cost_ns(device: NetDevice, fd: int, pages: list[int]) -> int:
    """CPU time of this thread to map and unmap these pages, the best of three."""
    best = []
    for _ in range(3):
        begun = time.thread_time_ns()
        map_pages(device, fd, pages)
        for page in pages:
            assert device.dma_unmap_within(page, PAGE) == 1
        best.append(time.thread_time_ns() - begun)
    return min(best)


def test_map_and_unmap_among_many_cost_little_more_than_among_few() -> None:
    """64 times as many maps: 1.5 times the steps of a tree, 64 times those of a list."""
    few, many = 2048, 2048 * 64
    pages = shuffled(many + SAMPLE)
    with mapped_device() as (device, fd):
        map_pages(device, fd, pages[:few])
        among_few = cost_ns(device, fd, pages[many:])
        map_pages(device, fd, pages[few:many])
        among_many = cost_ns(device, fd, pages[many:])
        assert device.snapshot()["dma_maps"] == many
    assert among_many < 6 * among_few, f"{among_few / SAMPLE} ns among few, {among_many / SAMPLE} among many"


@pytest.mark.exhaustive
def test_a_million_pages_are_mapped_and_unmapped_and_one_more_is_enospc() -> None:
    pages = shuffled(MILLION + 1)
    with mapped_device() as (device, fd):
        map_pages(device, fd, pages[:MILLION])
        with pytest.raises(DmaError) as refused:
            map_pages(device, fd, pages[MILLION:])
        assert refused.value.errno == errno.ENOSPC
        assert f"{MILLION} DMA maps" in str(refused.value)
        # Half one by one, a quarter as one range, the rest at once.
        for page in pages[: MILLION // 2]:
            device.dma_unmap(page, PAGE)
        within = sum(page < MILLION * PAGE for page in pages[MILLION // 2 : MILLION])
        assert device.dma_unmap_within(0, MILLION * PAGE) == within
        assert device.dma_unmap_all() == MILLION // 2 - within
        assert device.snapshot()["dma_maps"] == 0
        map_pages(device, fd, pages[MILLION:])
