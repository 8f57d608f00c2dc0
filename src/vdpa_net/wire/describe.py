# SPDX-License-Identifier: Apache-2.0
"""What the bits of a register say, in words: for traces and reports.

Names are `block.register` without an index, as register tables have them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Final

from vdpa_net.wire import lm, pci, virtio_net, virtio_pci
from vdpa_net.wire.layout import BitField

Describe = Callable[[int], str]


def flags(names: Mapping[int, str]) -> Describe:
    """Names of the bits (by mask) that are set; other bits as a number."""

    def describe(value: int) -> str:
        found = [name for mask, name in names.items() if value & mask]
        rest = value & ~sum(names)
        return "|".join([*found, *([f"{rest:#x}"] if rest else [])]) or "none"

    return describe


def fields(parts: Iterable[BitField]) -> Describe:
    """Each field as name=value."""

    def describe(value: int) -> str:
        return " ".join(f"{part.name}={part.of(value)}" for part in parts)

    return describe


def features(value: int, half: int = 0) -> str:
    """Names of the bits of one 32-bit half of a feature word."""
    return "|".join(virtio_net.feature_names(value << 32 * half)) or "none"


def _vector(value: int) -> str:
    return "no vector" if value == virtio_pci.MSI_NO_VECTOR else f"vector {value}"


def _mac(value: int) -> str:
    return value.to_bytes(virtio_net.MAC_BYTES, "little").hex(":")


def _on_off(value: int) -> str:
    # 3 is on in the IFC layouts (wire/lm.py).
    return {0: "off", 1: "on", 3: "on"}.get(value, "neither on nor off")


_COMMAND: Final = {
    0x1: "IO",
    0x2: "MEMORY",
    0x4: "BUS_MASTER",
    0x40: "PARITY",
    0x100: "SERR",
    0x400: "INTX_DISABLE",
}
_CFG_TYPES: Final = {1: "COMMON_CFG", 2: "NOTIFY_CFG", 3: "ISR_CFG", 4: "DEVICE_CFG", 5: "PCI_CFG"}

DESCRIPTIONS: Final[Mapping[str, Describe]] = {
    "common_cfg.device_status": flags({int(bit): str(bit.name) for bit in virtio_pci.Status}),
    "common_cfg.config_msix_vector": _vector,
    "common_cfg.queue_msix_vector": _vector,
    "isr.isr_status": flags({virtio_pci.ISR_QUEUE: "QUEUE", virtio_pci.ISR_CONFIG: "CONFIG"}),
    "device_cfg.mac": _mac,
    "device_cfg.status": flags({virtio_net.S_LINK_UP: "LINK_UP", 2: "ANNOUNCE"}),
    "config.pci.command": flags(_COMMAND),
    "config.msix.message_control": lambda value: joined(
        (
            flags({pci.MSIX_ENABLE: "ENABLE", pci.MSIX_FUNCTION_MASK: "MASK_ALL"})(value & 0xC000),
            f"table_size={(value & 0x7FF) + 1}" if value & 0x7FF else "",
        )
    ),
    "config.pcie.device_control": lambda value: (
        "INITIATE_FLR" if value & pci.DEVICE_CONTROL_INITIATE_FLR else ""
    ),
    "msix_table.vector_control": lambda value: "masked" if value & 1 else "unmasked",
    "lm.LM_LOGGING_CTRL": _on_off,
    "lm.LM_RING_STATE": fields(lm.SPLIT_STATE),
    **{
        f"config.{name}.{register.name}": fields(register.fields)
        for name, table in (("msix", pci.MSIX_CAPABILITY), ("ats", pci.ATS_CAPABILITY))
        for register in table
        if register.fields
    },
    **{
        f"config.virtio{number}.cfg_type": lambda value: _CFG_TYPES.get(value, "unknown")
        for number in _CFG_TYPES
    },
}


_PACKED: Final[Mapping[str, Describe]] = {"lm.LM_RING_STATE": fields(lm.PACKED_STATE)}


def describe(name: str, value: int, *, packed: bool = False) -> str:
    """What the value says, or nothing; `packed`: VIRTIO_F_RING_PACKED is negotiated."""
    key = name.partition("[")[0]
    found = (_PACKED.get(key) if packed else None) or DESCRIPTIONS.get(key)
    return found(value) if found is not None else ""


def joined(parts: Iterable[str]) -> str:
    """The parts that say something, with spaces between them."""
    return " ".join(part for part in parts if part)
