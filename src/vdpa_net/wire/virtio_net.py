# SPDX-License-Identifier: Apache-2.0
"""The network device (virtio 1.3, 5.1): feature bits, device configuration, header, control commands."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from vdpa_net.errors import OptionError
from vdpa_net.wire import virtio_pci as _virtio
from vdpa_net.wire.layout import Access, Field, Layout, Register, RegisterMap

DEVICE_ID: Final = 1

F_CSUM: Final = 0
F_GUEST_CSUM: Final = 1
F_CTRL_GUEST_OFFLOADS: Final = 2
F_MTU: Final = 3
F_MAC: Final = 5
F_GSO: Final = 6
F_GUEST_TSO4: Final = 7
F_GUEST_TSO6: Final = 8
F_GUEST_ECN: Final = 9
F_HOST_TSO4: Final = 11
F_HOST_TSO6: Final = 12
F_HOST_ECN: Final = 13
F_MRG_RXBUF: Final = 15
F_STATUS: Final = 16
F_CTRL_VQ: Final = 17
F_CTRL_RX: Final = 18
F_CTRL_VLAN: Final = 19
F_CTRL_RX_EXTRA: Final = 20
F_GUEST_ANNOUNCE: Final = 21
F_MQ: Final = 22
F_CTRL_MAC_ADDR: Final = 23

FEATURES: Final[Mapping[int, str]] = {
    F_CSUM: "CSUM",
    F_GUEST_CSUM: "GUEST_CSUM",
    F_CTRL_GUEST_OFFLOADS: "CTRL_GUEST_OFFLOADS",
    F_MTU: "MTU",
    F_MAC: "MAC",
    F_GSO: "GSO",
    F_GUEST_TSO4: "GUEST_TSO4",
    F_GUEST_TSO6: "GUEST_TSO6",
    F_GUEST_ECN: "GUEST_ECN",
    10: "GUEST_UFO",
    F_HOST_TSO4: "HOST_TSO4",
    F_HOST_TSO6: "HOST_TSO6",
    F_HOST_ECN: "HOST_ECN",
    14: "HOST_UFO",
    F_MRG_RXBUF: "MRG_RXBUF",
    F_STATUS: "STATUS",
    F_CTRL_VQ: "CTRL_VQ",
    F_CTRL_RX: "CTRL_RX",
    F_CTRL_VLAN: "CTRL_VLAN",
    F_CTRL_RX_EXTRA: "CTRL_RX_EXTRA",
    F_GUEST_ANNOUNCE: "GUEST_ANNOUNCE",
    F_MQ: "MQ",
    F_CTRL_MAC_ADDR: "CTRL_MAC_ADDR",
    _virtio.F_INDIRECT_DESC: "RING_INDIRECT_DESC",
    _virtio.F_EVENT_IDX: "RING_EVENT_IDX",
    _virtio.F_VERSION_1: "VERSION_1",
    _virtio.F_ACCESS_PLATFORM: "ACCESS_PLATFORM",
    _virtio.F_RING_PACKED: "RING_PACKED",
    _virtio.F_IN_ORDER: "IN_ORDER",
    _virtio.F_ORDER_PLATFORM: "ORDER_PLATFORM",
    37: "SR_IOV",
    38: "NOTIFICATION_DATA",
    39: "NOTIF_CONFIG_DATA",
    _virtio.F_RING_RESET: "RING_RESET",
}
"""Names of the feature bits (5.1.3 and 6), without VIRTIO_F_ and VIRTIO_NET_F_."""

QEMU_PROPERTIES: Final[Mapping[str, int]] = {
    "csum": F_CSUM,
    "guest_csum": F_GUEST_CSUM,
    "gso": F_GSO,
    "guest_tso4": F_GUEST_TSO4,
    "guest_tso6": F_GUEST_TSO6,
    "guest_ecn": F_GUEST_ECN,
    "host_tso4": F_HOST_TSO4,
    "host_tso6": F_HOST_TSO6,
    "host_ecn": F_HOST_ECN,
    "mrg_rxbuf": F_MRG_RXBUF,
    "status": F_STATUS,
    "ctrl_vq": F_CTRL_VQ,
    "ctrl_rx": F_CTRL_RX,
    "ctrl_mac_addr": F_CTRL_MAC_ADDR,
    "ctrl_vlan": F_CTRL_VLAN,
    "ctrl_rx_extra": F_CTRL_RX_EXTRA,
    "guest_announce": F_GUEST_ANNOUNCE,
    "ctrl_guest_offloads": F_CTRL_GUEST_OFFLOADS,
    "indirect_desc": _virtio.F_INDIRECT_DESC,
    "event_idx": _virtio.F_EVENT_IDX,
    "packed": _virtio.F_RING_PACKED,
    "in_order": _virtio.F_IN_ORDER,
    "queue_reset": _virtio.F_RING_RESET,
    "order_platform": _virtio.F_ORDER_PLATFORM,
}
"""Features that can be switched, by the name of QEMU's virtio-net-pci property (`order_platform` is ours).

`gso` is the legacy bit 6, which a modern device never offers; QEMU's `gso=off` is accepted as the fact it is.
"""

OFF_BY_DEFAULT: Final = frozenset((_virtio.F_RING_PACKED, _virtio.F_IN_ORDER, _virtio.F_ORDER_PLATFORM))
"""Features that are offered on request only, as in QEMU."""

REQUIRES: Final[Mapping[int, tuple[int, ...]]] = {
    F_GUEST_TSO4: (F_GUEST_CSUM,),
    F_GUEST_TSO6: (F_GUEST_CSUM,),
    F_GUEST_ECN: (F_GUEST_TSO4, F_GUEST_TSO6),
    F_HOST_TSO4: (F_CSUM,),
    F_HOST_TSO6: (F_CSUM,),
    F_HOST_ECN: (F_HOST_TSO4, F_HOST_TSO6),
    F_CTRL_RX: (F_CTRL_VQ,),
    F_CTRL_MAC_ADDR: (F_CTRL_VQ,),
    F_MQ: (F_CTRL_VQ,),
    F_CTRL_VLAN: (F_CTRL_VQ,),
    F_GUEST_ANNOUNCE: (F_CTRL_VQ,),
}
"""Feature bits that need one of others (5.1.3.1).

Requirements stand before what requires them is required.
"""


def bits(features: Iterable[int]) -> int:
    """The 64-bit feature word with these bits set."""
    word = 0
    for bit in features:
        word |= 1 << bit
    return word


def feature_names(features: int) -> list[str]:
    """Names of the bits of a feature word, lowest bit first; `bit N` where there is no name."""
    return [FEATURES.get(bit, f"bit {bit}") for bit in range(features.bit_length()) if features >> bit & 1]


def feature_bit(name: str) -> int:
    """The bit of a feature that can be switched on or off, by QEMU's property name or the specification's.

    Raises OptionError, which names the nearest match.
    """
    names = {
        **QEMU_PROPERTIES,
        "mtu": F_MTU,
        **{FEATURES[bit].lower(): bit for bit in QEMU_PROPERTIES.values()},
    }
    key = name.lower().removeprefix("virtio_net_f_").removeprefix("virtio_f_")
    if key in names:
        return names[key]
    import difflib  # noqa: PLC0415

    near = difflib.get_close_matches(key, names, 1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise OptionError(f"no feature {name!r} that can be switched{hint}")


def unmet_requirements(features: int) -> list[tuple[int, tuple[int, ...]]]:
    """Bits in this word that need one of the given others, none of which is there (5.1.3.1)."""
    return [
        (bit, need) for bit, need in REQUIRES.items() if features >> bit & 1 and not features & bits(need)
    ]


def without_unmet(features: int) -> int:
    """The word without the bits whose requirements are not in it."""
    while unmet := unmet_requirements(features):
        features &= ~bits(bit for bit, _ in unmet)
    return features


SERVED_ELSEWHERE: Final = bits((F_MQ, F_GUEST_ANNOUNCE))
"""Features of the control queue that a vDPA driver passes on without CTRL_VQ: what is in front of it serves
that queue. A device with `vdpa=on` accepts them alone."""

USELESS_WITHOUT_CONTROL_QUEUE: Final = bits((F_CTRL_RX_EXTRA, F_CTRL_GUEST_OFFLOADS))
"""Not required to go with CTRL_VQ, but not to be offered without it either (5.1.4.1)."""

S_LINK_UP: Final = 1
S_ANNOUNCE: Final = 2
_DEVICE_CFG_CLAUSE = "5.1.4.2: the driver MUST NOT write device configuration"
_RO = Access.RO

DEVICE_CFG: Final = RegisterMap(
    "device_cfg",
    (
        Register("mac", 0x00, 6, _RO, clause=_DEVICE_CFG_CLAUSE),
        Register("status", 0x06, 2, _RO, clause=_DEVICE_CFG_CLAUSE),
        Register("max_virtqueue_pairs", 0x08, 2, _RO, clause=_DEVICE_CFG_CLAUSE),
        Register("mtu", 0x0A, 2, _RO, clause=_DEVICE_CFG_CLAUSE),
    ),
)

NET_HEADER: Final = Layout(
    "virtio_net_hdr",
    Field("flags", 1),
    Field("gso_type", 1),
    Field("hdr_len", 2),
    Field("gso_size", 2),
    Field("csum_start", 2),
    Field("csum_offset", 2),
    Field("num_buffers", 2),
)
"""Before every packet in a receive or transmit buffer (5.1.6)."""

CTRL_HEADER: Final = Layout("virtio_net_ctrl", Field("class", 1), Field("command", 1))
"""First bytes of a control command (5.1.6.5)."""

CTRL_OK: Final = 0
CTRL_ERR: Final = 1

CTRL_RX: Final = 0
CTRL_RX_PROMISC: Final = 0
CTRL_RX_ALLMULTI: Final = 1
CTRL_MAC: Final = 1
CTRL_MAC_TABLE_SET: Final = 0
CTRL_MAC_ADDR_SET: Final = 1
CTRL_RX_ALLUNI: Final = 2
CTRL_RX_NOMULTI: Final = 3
CTRL_RX_NOUNI: Final = 4
CTRL_RX_NOBCAST: Final = 5
CTRL_VLAN: Final = 2
CTRL_VLAN_ADD: Final = 0
CTRL_VLAN_DEL: Final = 1
CTRL_ANNOUNCE: Final = 3
CTRL_ANNOUNCE_ACK: Final = 0
CTRL_MQ: Final = 4
CTRL_MQ_VQ_PAIRS_SET: Final = 0
CTRL_GUEST_OFFLOADS: Final = 5
CTRL_GUEST_OFFLOADS_SET: Final = 0
GUEST_OFFLOADS: Final = bits((F_GUEST_CSUM, F_GUEST_TSO4, F_GUEST_TSO6, F_GUEST_ECN))
"""What VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET can switch here (5.1.6.5.8)."""

VLANS: Final = 4096

MAC_BYTES: Final = 6
MTU_MIN: Final = 68
MTU_MAX: Final = 65535
QUEUE_SIZE_MAX: Final = 32768
"""Largest queue_size (2.7)."""
