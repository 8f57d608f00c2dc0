# SPDX-License-Identifier: Apache-2.0
"""Kernel VFIO: ioctl numbers and structures of <linux/vfio.h>, names without their VFIO_ prefix.

What vfio-user took over unchanged (regions, interrupts, device information) is in `wire.vfio_user`.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import Final

from vdpa_net.wire.layout import Field, Layout

API_VERSION: Final = 0
_TYPE: Final = ord(";")
_BASE: Final = 100


class Ioctl(IntEnum):
    """Request numbers: _IO(VFIO_TYPE, VFIO_BASE + n), which carry neither direction nor size."""

    GET_API_VERSION = _TYPE << 8 | _BASE + 0
    CHECK_EXTENSION = _TYPE << 8 | _BASE + 1
    SET_IOMMU = _TYPE << 8 | _BASE + 2
    GROUP_GET_STATUS = _TYPE << 8 | _BASE + 3
    GROUP_SET_CONTAINER = _TYPE << 8 | _BASE + 4
    GROUP_GET_DEVICE_FD = _TYPE << 8 | _BASE + 6
    DEVICE_GET_INFO = _TYPE << 8 | _BASE + 7
    DEVICE_GET_REGION_INFO = _TYPE << 8 | _BASE + 8
    DEVICE_GET_IRQ_INFO = _TYPE << 8 | _BASE + 9
    DEVICE_SET_IRQS = _TYPE << 8 | _BASE + 10
    DEVICE_RESET = _TYPE << 8 | _BASE + 11
    IOMMU_GET_INFO = _TYPE << 8 | _BASE + 12
    IOMMU_MAP_DMA = _TYPE << 8 | _BASE + 13
    IOMMU_UNMAP_DMA = _TYPE << 8 | _BASE + 14
    DEVICE_IOEVENTFD = _TYPE << 8 | _BASE + 16


class Extension(IntEnum):
    """IOMMU backends that CHECK_EXTENSION and SET_IOMMU name."""

    TYPE1_IOMMU = 1
    TYPE1V2_IOMMU = 3


class GroupFlag(IntFlag):
    """Flags of GROUP_GET_STATUS."""

    VIABLE = 1 << 0
    CONTAINER_SET = 1 << 1


class DmaMapFlag(IntFlag):
    """Flags of IOMMU_MAP_DMA."""

    READ = 1 << 0
    WRITE = 1 << 1


class IommuInfoFlag(IntFlag):
    """Flags of IOMMU_GET_INFO."""

    PGSIZES = 1 << 0
    CAPS = 1 << 1


IOEVENTFD_16: Final = 1 << 1
"""DEVICE_IOEVENTFD: the write is 16 bits wide."""

IOMMU_TYPE1_INFO_CAP_IOVA_RANGE: Final = 1
IOMMU_TYPE1_INFO_DMA_AVAIL: Final = 3

GROUP_STATUS: Final = Layout("vfio_group_status", Field("argsz", 4), Field("flags", 4))
DMA_MAP: Final = Layout(
    "vfio_iommu_type1_dma_map",
    Field("argsz", 4),
    Field("flags", 4),
    Field("vaddr", 8),
    Field("iova", 8),
    Field("size", 8),
)
DMA_UNMAP: Final = Layout(
    "vfio_iommu_type1_dma_unmap", Field("argsz", 4), Field("flags", 4), Field("iova", 8), Field("size", 8)
)
IOMMU_INFO: Final = Layout(
    "vfio_iommu_type1_info",
    Field("argsz", 4),
    Field("flags", 4),
    Field("iova_pgsizes", 8),
    Field("cap_offset", 4),
    Field("pad", 4),
)
CAP_HEADER: Final = Layout("vfio_info_cap_header", Field("id", 2), Field("version", 2), Field("next", 4))
CAP_IOVA_RANGES: Final = Layout(
    "vfio_iommu_type1_info_cap_iova_range",
    Field("id", 2),
    Field("version", 2),
    Field("next", 4),
    Field("nr_iovas", 4),
    Field("reserved", 4),
)
IOVA_RANGE: Final = Layout("vfio_iova_range", Field("start", 8), Field("end", 8))
IOEVENTFD: Final = Layout(
    "vfio_device_ioeventfd",
    Field("argsz", 4),
    Field("flags", 4),
    Field("offset", 8),
    Field("data", 8),
    Field("fd", 4, blob=True),
    Field("reserved", 4),
)
EVENTFD: Final = Layout("eventfd", Field("fd", 4, blob=True))
"""A descriptor number: signed, -1 for none."""

NO_EVENTFD: Final = -1


def pack_fd(fd: int | None) -> bytes:
    """A descriptor number as VFIO structures hold it; None is none."""
    return (NO_EVENTFD if fd is None else fd).to_bytes(4, "little", signed=True)
