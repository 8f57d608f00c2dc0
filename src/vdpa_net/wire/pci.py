# SPDX-License-Identifier: Apache-2.0
"""PCI configuration space: the type 0 header and the capabilities that the device shows.

Clauses are those of the PCI Local Bus 3.0 ("PCI") and PCI Express 5.0 base ("PCIe") specifications. The
address registers (BARs) are not in the header table: their masks follow from the sizes of the regions.
"""

from __future__ import annotations

from typing import Final

from vdpa_net.wire.layout import Access, BitField, Register, RegisterMap

CONFIG_SPACE_SIZE: Final = 4096
"""Bytes of a PCI Express function's configuration space (PCIe 7.2.2)."""

CONFIG_REGION: Final = 7
"""VFIO's region index of the configuration space; 0 to 5 are the BARs."""

BAR_COUNT: Final = 6
BAR_BASE: Final = 0x10
BAR_TYPE_64: Final = 0x4
BAR_PREFETCHABLE: Final = 0x8

FIRST_CAPABILITY: Final = 0x40
"""Where the capability list begins: right behind the 64 bytes of the header."""

FIRST_EXTENDED_CAPABILITY: Final = 0x100

CAP_ID_VENDOR: Final = 0x09
CAP_ID_PCIE: Final = 0x10
CAP_ID_MSIX: Final = 0x11
EXT_CAP_ID_ATS: Final = 0x000F

STATUS_CAPABILITY_LIST: Final = 0x0010

COMMAND_MASK: Final = 0x0547
"""I/O, memory, bus master, parity, SERR and INTx disable.

The other bits are hardwired to 0 (PCIe 7.5.1.1.3).
"""

MSIX_ENABLE: Final = 0x8000
MSIX_FUNCTION_MASK: Final = 0x4000
MSIX_ENTRY_SIZE: Final = 16
MSIX_MAX_VECTORS: Final = 0x800

DEVICE_CONTROL_INITIATE_FLR: Final = 0x8000
DEVICE_CAPABILITIES: Final = 1 << 28 | 1 << 15
"""Function Level Reset; role-based error reporting; 128 bytes of payload (PCIe 7.5.3.3)."""
DEVICE_CONTROL_RESET: Final = 0x2810
"""Relaxed ordering and no-snoop enabled, 512 bytes of read request (PCIe 7.5.3.4)."""
LINK_2_5GT_X1: Final = 0x11

ATS_ENABLE: Final = 0x8000
ATS_PAGE_ALIGNED: Final = 0x20

_RO = Access.RO
_HEADER = "PCIe 7.5.1.1"

HEADER: Final = RegisterMap(
    "pci",
    (
        Register("vendor_id", 0x00, 2, _RO, clause=_HEADER),
        Register("device_id", 0x02, 2, _RO, clause=_HEADER),
        Register("command", 0x04, 2, clause=_HEADER, writable_mask=COMMAND_MASK),
        Register("status", 0x06, 2, _RO, reset=STATUS_CAPABILITY_LIST, clause=_HEADER),
        Register("revision_id", 0x08, 1, _RO, clause=_HEADER),
        Register("prog_if", 0x09, 1, _RO, clause=_HEADER),
        Register("subclass", 0x0A, 1, _RO, clause=_HEADER),
        Register("base_class", 0x0B, 1, _RO, clause=_HEADER),
        Register("cache_line_size", 0x0C, 1, clause=_HEADER),
        Register("latency_timer", 0x0D, 1, _RO, clause=_HEADER),
        Register("header_type", 0x0E, 1, _RO, clause=_HEADER),
        Register("bist", 0x0F, 1, _RO, clause=_HEADER),
        Register("subsystem_vendor_id", 0x2C, 2, _RO, clause="PCIe 7.5.1.2.3"),
        Register("subsystem_id", 0x2E, 2, _RO, clause="PCIe 7.5.1.2.3"),
        Register("expansion_rom", 0x30, 4, _RO, clause="PCIe 7.5.1.2.4"),
        Register("capabilities_pointer", 0x34, 1, _RO, clause="PCIe 7.5.1.1.11"),
        Register("interrupt_line", 0x3C, 1, clause="PCIe 7.5.1.1.12"),
        Register("interrupt_pin", 0x3D, 1, _RO, clause="PCIe 7.5.1.1.13"),
    ),
)

PCIE_CAPABILITY: Final = RegisterMap(
    "pcie",
    (
        Register("cap_id", 0x00, 1, _RO, reset=CAP_ID_PCIE, clause="PCIe 7.5.3.1"),
        Register("cap_next", 0x01, 1, _RO, clause="PCIe 7.5.3.1"),
        Register("capabilities", 0x02, 2, _RO, reset=0x0002, clause="PCIe 7.5.3.2"),
        Register("device_capabilities", 0x04, 4, _RO, reset=DEVICE_CAPABILITIES, clause="PCIe 7.5.3.3"),
        Register("device_control", 0x08, 2, reset=DEVICE_CONTROL_RESET, clause="PCIe 7.5.3.4"),
        Register("device_status", 0x0A, 2, _RO, clause="PCIe 7.5.3.5"),
        Register("link_capabilities", 0x0C, 4, _RO, reset=LINK_2_5GT_X1, clause="PCIe 7.5.3.6"),
        Register("link_control", 0x10, 2, clause="PCIe 7.5.3.7", writable_mask=0x00C3),
        Register("link_status", 0x12, 2, _RO, reset=LINK_2_5GT_X1, clause="PCIe 7.5.3.8"),
        Register("slot_registers", 0x14, 8, _RO, clause="PCIe 7.5.3.9"),
        Register("root_registers", 0x1C, 8, _RO, clause="PCIe 7.5.3.12"),
        Register("device_capabilities_2", 0x24, 4, _RO, clause="PCIe 7.5.3.15"),
        Register("device_control_2", 0x28, 2, _RO, clause="PCIe 7.5.3.16"),
        Register("device_status_2", 0x2A, 2, _RO, clause="PCIe 7.5.3.17"),
        Register("link_capabilities_2", 0x2C, 4, _RO, reset=0x2, clause="PCIe 7.5.3.18"),
        Register("link_control_2", 0x30, 2, _RO, reset=0x1, clause="PCIe 7.5.3.19"),
        Register("link_status_2", 0x32, 2, _RO, clause="PCIe 7.5.3.20"),
        Register("slot_registers_2", 0x34, 8, _RO, clause="PCIe 7.5.3.21"),
    ),
)

_BAR_AND_OFFSET = (BitField("bar", 0, 3), BitField("offset/8", 3, 29))

MSIX_CAPABILITY: Final = RegisterMap(
    "msix",
    (
        Register("cap_id", 0x0, 1, _RO, reset=CAP_ID_MSIX, clause="PCIe 7.7.2.1"),
        Register("cap_next", 0x1, 1, _RO, clause="PCIe 7.7.2.1"),
        Register(
            "message_control", 0x2, 2, clause="PCIe 7.7.2.2", writable_mask=MSIX_ENABLE | MSIX_FUNCTION_MASK
        ),
        Register("table", 0x4, 4, _RO, clause="PCIe 7.7.2.3", fields=_BAR_AND_OFFSET),
        Register("pba", 0x8, 4, _RO, clause="PCIe 7.7.2.4", fields=_BAR_AND_OFFSET),
    ),
)

ATS_CAPABILITY: Final = RegisterMap(
    "ats",
    (
        Register("header", 0x0, 4, _RO, reset=EXT_CAP_ID_ATS | 1 << 16, clause="PCIe 10.5.1.1"),
        Register("capability", 0x4, 2, _RO, reset=ATS_PAGE_ALIGNED, clause="PCIe 10.5.1.2"),
        Register(
            "control",
            0x6,
            2,
            clause="PCIe 10.5.1.3",
            writable_mask=ATS_ENABLE | 0x1F,
            fields=(BitField("ENABLE", 15, 1), BitField("STU", 0, 5)),
        ),
    ),
)


def msix_table(vectors: int) -> RegisterMap:
    """The MSI-X table of this many vectors (PCIe 7.7.2.5 to 7.7.2.8).

    Every vector is masked after a reset.
    """
    return RegisterMap(
        "msix_table", tuple(register for vector in range(vectors) for register in _msix_entry(vector))
    )


def _msix_entry(vector: int) -> tuple[Register, ...]:
    base = vector * MSIX_ENTRY_SIZE
    return (
        Register(f"address[{vector}]", base, 8, clause="PCIe 7.7.2.5", writable_mask=(1 << 64) - 4),
        Register(f"data[{vector}]", base + 8, 4, clause="PCIe 7.7.2.7"),
        Register(f"vector_control[{vector}]", base + 12, 4, reset=1, clause="PCIe 7.7.2.8", writable_mask=1),
    )
