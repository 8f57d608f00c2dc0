# SPDX-License-Identifier: Apache-2.0
"""The properties that are known: each one of QEMU's for its tap and its virtio-net-pci, and ours.

Those of `virtio-net-pci` are of four kinds: what the device does (`DEVICE`), what the VMM's side of a
vfio-user device does (`VMM_SIDE`, which go into the printed arguments), what the device does anyway, and what
it can't do, which is refused with the reason.
"""

from __future__ import annotations

from typing import Final

from vdpa_net.backend import MAX_QUEUE_PAIRS, MAX_TAP_QUEUES
from vdpa_net.option_syntax import (
    NOT_YET,
    Properties,
    mac,
    number,
    octets,
    one_of,
    only,
    refuse,
    script,
    switch,
    zero_or,
)
from vdpa_net.wire.virtio_net import MTU_MAX, MTU_MIN, QEMU_PROPERTIES, QUEUE_SIZE_MAX

_NO_VHOST = "the kernel's vhost would move packets past the device, so no page would be logged; expected off"
_BRIDGE = "a script puts the tap on a bridge here: script=PROGRAM, which gets the tap's name"

TAP: Final[Properties] = {
    "id": None,
    "ifname": None,
    "script": script,
    "downscript": script,
    "vhost": only(False, _NO_VHOST),
    "vhostforce": only(False, _NO_VHOST),
    "vhostfd": refuse(_NO_VHOST),
    "vhostfds": refuse(_NO_VHOST),
    "queues": number(1, MAX_TAP_QUEUES, reason="more queues a tap can't have"),
    "fd": refuse(f"an inherited file descriptor {NOT_YET}; name the tap with ifname="),
    "fds": refuse(f"inherited file descriptors {NOT_YET}; name the tap with ifname="),
    "vnet_hdr": only(True, "without IFF_VNET_HDR a tap takes no offloads; use csum=off,guest_csum=off"),
    "sndbuf": one_of(("0",), "the tap's send buffer is not limited"),
    "br": refuse(_BRIDGE),
    "helper": refuse(_BRIDGE),
    "poll-us": one_of(("0",), "it is vhost's; the device polls as long as it pays"),
}

_QUEUES = number(1, MAX_QUEUE_PAIRS, reason="with a control queue they are 1023 virtqueues")

LOOPBACK: Final[Properties] = {"id": None, "depth": number(1, 65536), "queues": _QUEUES}

NULL: Final[Properties] = {
    "id": None,
    "queues": _QUEUES,
    "source": switch,
    "packet_bytes": number(60, 14 + 65535),
    "rate_pps": number(0, 1 << 40),
    "flows": number(1, 256),
    "destination": octets,
}

PCAP: Final[Properties] = {"id": None, "file": None, "queues": _QUEUES}

VMM_SIDE: Final[Properties] = {
    "acpi-index": number(0, 0x3FFF),
    "bootindex": number(0, 0x7FFFFFFF),
    "busnr": None,
    "failover_pair_id": None,
    "multifunction": switch,
    "rombar": number(0, 1),
    "romfile": None,
    "romsize": number(0, 0xFFFFFFFF),
    "x-max-bounce-buffer-size": None,
    "x-pcie-ari-nextfn-1": switch,
    "x-pcie-err-unc-mask": switch,
    "x-pcie-ext-tag": switch,
    "x-pcie-lnksta-dllla": switch,
}
"""What QEMU does with any PCI device, a vfio-user one included."""

_GSO = "VIRTIO_NET_F_GSO is a legacy bit that a modern device never offers; use host_tso4 and host_tso6"
_LEGACY = "a legacy feature, which a modern device never offers (virtio 1.3, 6.3)"
_MODERN = "the device is a modern virtio device only (virtio 1.3 §4.1)"
_UFO = "Linux' taps take no UFO any more"
_USO = "the device has no UDP segmentation offload"
_TUNNEL = "the device has no tunnel offload"
_RSS = "the device has no RSS feature"
_HASH = "the device has no hash reports"
_QEMUS_LOOP = "it is about QEMU's own transmit loop, which this device does not have"
_COMPAT = "it exists for migration between versions of QEMU's own device"

_REFUSED: dict[str, str] = {
    "page-per-vq": "notify_off_multiplier is 4",
    "modern-pio-notify": "doorbells are in memory space only",
    "failover": "the device has no STANDBY feature",
    "aer": "the device has no AER capability",
    "guest_rsc_ext": "the device does not coalesce",
    "rss": _RSS,
    "notify_on_empty": _LEGACY,
    "gso": _GSO,
    "guest_ufo": _UFO,
    "host_ufo": _UFO,
    **dict.fromkeys(("guest_uso4", "guest_uso6", "host_uso"), _USO),
    **dict.fromkeys(("guest_tunnel", "guest_tunnel_csum", "host_tunnel", "host_tunnel_csum"), _TUNNEL),
    "hash": _HASH,
    **{f"hash-{kind}": _HASH for kind in ("ipv4", "ipv6", "ipv6ex", "tcp4", "tcp6", "tcp6ex", "udp4")},
    **dict.fromkeys(("hash-udp6", "hash-udp6ex"), _HASH),
    "migrate-extra": _COMPAT,
    "virtio-pci-bus-master-bug-migration": _COMPAT,
    "x-disable-legacy-check": _COMPAT,
    "x-disable-pcie": "the function has a PCI Express capability",
    "x-ignore-backend-features": _COMPAT,
    "x-pcie-pm-no-soft-reset": "the device has no power management capability",
}
"""Switches that can be off only."""

_ALWAYS: dict[str, str] = {
    "any_layout": "VIRTIO_F_VERSION_1 includes it",
    "ioeventfd": "whether a doorbell is an eventfd is decided by who attaches the device",
    "use-started": _COMPAT,
    "use-disabled-flag": _COMPAT,
    "x-ats-page-aligned": "the device's pages are aligned",
    "x-mtu-bypass-backend": _COMPAT,
    "x-pcie-flr-init": "the device takes a Function Level Reset",
    "x-pcie-deverr-init": "its registers are there",
    "x-pcie-extcap-init": "the list of extended capabilities is there",
    "x-pcie-lnkctl-init": "its register is there",
}
"""Switches that can be on only."""

DEVICE: Final[Properties] = {
    "netdev": None,
    "id": None,
    "mac": mac,
    "bus": None,
    "addr": None,
    "vdpa": switch,
    "iommu_platform": switch,
    "ats": switch,
    "host_mtu": zero_or(number(MTU_MIN, MTU_MAX)),
    "rx_queue_size": number(2, QUEUE_SIZE_MAX, power_of_two=True),
    "tx_queue_size": number(2, QUEUE_SIZE_MAX, power_of_two=True),
    "vectors": number(1, 2048),
    "mq": switch,
    "queues": refuse("belongs to --netdev, as in QEMU; the device has mq=on"),
    **{name: only(False, reason) for name, reason in _REFUSED.items()},
    **{name: only(True, reason) for name, reason in _ALWAYS.items()},
    **dict.fromkeys((name for name in QEMU_PROPERTIES if name != "gso"), switch),
    "disable-legacy": one_of(("on", "auto", "yes", "true", "y"), _MODERN),
    "disable-modern": only(False, _MODERN),
    "x-pcie-pm-init": only(False, "the device has no power management capability"),
    "tx": one_of(("bh",), _QEMUS_LOOP),
    "x-txtimer": refuse(_QEMUS_LOOP),
    "x-txburst": refuse(_QEMUS_LOOP),
    "speed": one_of(("-1",), "the device has no SPEED_DUPLEX feature"),
    "duplex": refuse("the device has no SPEED_DUPLEX feature"),
    "rsc_interval": refuse("the device does not coalesce"),
    "ebpf-rss-fds": refuse(_RSS),
    "sriov-pf": refuse("the device is no virtual function"),
    "virtio-backend": refuse("it is a child object of QEMU's own device"),
}
