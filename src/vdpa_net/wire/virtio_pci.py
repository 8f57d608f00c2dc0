# SPDX-License-Identifier: Apache-2.0
"""virtio over PCI (virtio 1.3, 4.1): capabilities, common configuration, ISR, MSI-X vectors, status."""

from __future__ import annotations

from enum import IntFlag
from typing import Final

from vdpa_net.wire.layout import Access, Register, RegisterMap
from vdpa_net.wire.pci import CAP_ID_VENDOR

VENDOR_ID: Final = 0x1AF4
DEVICE_ID_BASE: Final = 0x1040
"""Plus the virtio device id is the PCI device id (4.1.2.1)."""

CAP_COMMON_CFG: Final = 1
CAP_NOTIFY_CFG: Final = 2
CAP_ISR_CFG: Final = 3
CAP_DEVICE_CFG: Final = 4
CAP_PCI_CFG: Final = 5
CAP_VENDOR_CFG: Final = 9
"""Vendor data (4.1.4.8)."""

MSI_NO_VECTOR: Final = 0xFFFF
"""An event that is mapped to no vector (4.1.5.1.2)."""

ISR_QUEUE: Final = 1
ISR_CONFIG: Final = 2

F_INDIRECT_DESC: Final = 28
F_EVENT_IDX: Final = 29
F_VERSION_1: Final = 32
F_ACCESS_PLATFORM: Final = 33
F_RING_PACKED: Final = 34
F_IN_ORDER: Final = 35
F_ORDER_PLATFORM: Final = 36
F_RING_RESET: Final = 40


class Status(IntFlag):
    """Bits of device_status (2.1)."""

    ACKNOWLEDGE = 1
    DRIVER = 2
    DRIVER_OK = 4
    FEATURES_OK = 8
    DEVICE_NEEDS_RESET = 64
    FAILED = 128


_RO = Access.RO


def _capability(*extra: Register, window: bool = False, length: int = 16) -> tuple[Register, ...]:
    access = Access.RW if window else _RO
    return (
        Register("cap_vndr", 0x0, 1, _RO, reset=CAP_ID_VENDOR, clause="4.1.4"),
        Register("cap_next", 0x1, 1, _RO, clause="4.1.4"),
        Register("cap_len", 0x2, 1, _RO, reset=length, clause="4.1.4"),
        Register("cfg_type", 0x3, 1, _RO, clause="4.1.4"),
        Register("bar", 0x4, 1, access, clause="4.1.4"),
        Register("id", 0x5, 1, _RO, clause="4.1.4"),
        Register("padding", 0x6, 2, _RO, clause="4.1.4"),
        Register("offset", 0x8, 4, access, clause="4.1.4"),
        Register("length", 0xC, 4, access, clause="4.1.4"),
        *extra,
    )


VIRTIO_CAPABILITY: Final = RegisterMap("virtio_pci_cap", _capability())

NOTIFY_CAPABILITY: Final = RegisterMap(
    "virtio_pci_notify_cap",
    _capability(Register("notify_off_multiplier", 0x10, 4, _RO, clause="4.1.4.4"), length=20),
)

PCI_CFG_CAPABILITY: Final = RegisterMap(
    "virtio_pci_cfg_cap",
    _capability(Register("pci_cfg_data", 0x10, 4, clause="4.1.4.9"), window=True, length=20),
)

_CFG = "4.1.4.3"
_MUST_NOT = "4.1.4.3.2"

COMMON_CFG: Final = RegisterMap(
    "common_cfg",
    (
        Register("device_feature_select", 0x00, 4, clause=_CFG),
        Register("device_feature", 0x04, 4, _RO, clause=_MUST_NOT),
        Register("driver_feature_select", 0x08, 4, clause=_CFG),
        Register("driver_feature", 0x0C, 4, clause=_CFG),
        Register("config_msix_vector", 0x10, 2, reset=MSI_NO_VECTOR, clause="4.1.5.1.2"),
        Register("num_queues", 0x12, 2, _RO, clause=_MUST_NOT),
        Register("device_status", 0x14, 1, clause="2.1"),
        Register("config_generation", 0x15, 1, _RO, clause=_MUST_NOT),
        Register("queue_select", 0x16, 2, clause=_CFG),
        Register("queue_size", 0x18, 2, clause=_MUST_NOT),
        Register("queue_msix_vector", 0x1A, 2, reset=MSI_NO_VECTOR, clause="4.1.5.1.2"),
        Register("queue_enable", 0x1C, 2, clause=_MUST_NOT),
        Register("queue_notify_off", 0x1E, 2, _RO, clause=_MUST_NOT),
        Register("queue_desc", 0x20, 8, clause=_CFG),
        Register("queue_driver", 0x28, 8, clause=_CFG),
        Register("queue_device", 0x30, 8, clause=_CFG),
        Register("queue_notif_config_data", 0x38, 2, _RO, clause=_MUST_NOT),
        Register("queue_reset", 0x3A, 2, clause="4.1.4.3: only with VIRTIO_F_RING_RESET"),
        Register("admin_queue_index", 0x3C, 2, _RO, clause=_MUST_NOT),
        Register("admin_queue_num", 0x3E, 2, _RO, clause=_MUST_NOT),
    ),
)

ISR: Final = RegisterMap("isr", (Register("isr_status", 0x0, 1, Access.RC, clause="4.1.4.5"),))
