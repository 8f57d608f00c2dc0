# SPDX-License-Identifier: Apache-2.0
"""QEMU's option strings for `--netdev` and `--device`.

    tap,id=hostnet1,ifname=vt0,script=no,downscript=no,vhost=off
    virtio-net-pci,netdev=hostnet1,id=net1,mac=56:4a:b7:4f:4d:a9,iommu_platform=on,ats=on,vdpa=on

or the same as JSON. Property names and defaults are QEMU's (but for `host_mtu`); `loopback` and `vdpa` are
ours. What the device does not have is refused by name, never ignored: OptionError. `option_syntax` has the
syntax, `option_tables` the properties.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from vdpa_net.cli.parser import near
from vdpa_net.errors import OptionError
from vdpa_net.option_syntax import Properties, read_all, split_options, switch
from vdpa_net.option_tables import DEVICE, LOOPBACK, NULL, PCAP, TAP, VMM_SIDE
from vdpa_net.record import Record
from vdpa_net.wire.lm import Profile
from vdpa_net.wire.virtio_net import OFF_BY_DEFAULT, QEMU_PROPERTIES

DEFAULT_MTU = 1500
"""Bytes. QEMU's own default is none, as 0 is here."""


class TapNetdev(Record):
    """`tap`: a tap device of this host. `ifname` may hold `%d` for a free number; scripts get the name."""

    id: str = ""
    ifname: str = "tap%d"
    script: str | None = None
    downscript: str | None = None
    queues: int = 1


class LoopbackNetdev(Record):
    """`loopback`: what the guest transmits comes back to it. `depth` is in packets, per queue pair."""

    id: str = ""
    depth: int = 1024
    queues: int = 1


class NullNetdev(Record):
    """`null`: what the guest transmits is gone. With `source` packets come: `rate_pps` per second in all
    (0: as many as there are buffers for) of `packet_bytes` bytes, in `flows` UDP flows, to `destination`.
    """

    id: str = ""
    queues: int = 1
    source: bool = False
    packet_bytes: int = 60
    rate_pps: int = 0
    flows: int = 16
    destination: str = "ff:ff:ff:ff:ff:ff"


class PcapNetdev(Record):
    """`pcap`: what the guest transmits is written to a pcapng file, and gone."""

    id: str = ""
    file: str = ""
    queues: int = 1


Netdev = TapNetdev | LoopbackNetdev | NullNetdev | PcapNetdev


class NicDevice(Record):
    """`virtio-net-pci`: what the guest is to see. `bus` and `addr` go into the printed QEMU arguments.

    `host_mtu` 0 is none. `disabled_features` are the property names of the features that are switched off,
    `enabled_features` of those that QEMU has off and that are switched on. `vmm_side` are properties for the
    VMM that attaches the device. `profile`, `poll_us` and `coalesce_us` are no properties of QEMU's, so
    they come from options of their own.
    """

    netdev: str = ""
    id: str = ""
    mac: str = "52:54:00:12:34:56"
    bus: str = ""
    addr: str = ""
    vdpa: bool = False
    iommu_platform: bool = False
    ats: bool = False
    host_mtu: int = DEFAULT_MTU
    rx_queue_size: int = 256
    tx_queue_size: int = 256
    vectors: int | None = None
    mq: bool = False
    disabled_features: frozenset[str] = frozenset()
    enabled_features: frozenset[str] = frozenset()
    vmm_side: Mapping[str, object] = MappingProxyType({})
    profile: str | Profile = "vdpa"
    poll_us: int | None = None
    coalesce_us: int | None = None


class VhostSocket(Record):
    """Where front end and back end meet: with `server` the back end listens, else it connects."""

    path: Path
    server: bool = True


_NETDEVS: dict[str, tuple[Callable[..., Netdev], Properties]] = {
    "tap": (TapNetdev, TAP),
    "loopback": (LoopbackNetdev, LOOPBACK),
    "null": (NullNetdev, NULL),
    "pcap": (PcapNetdev, PCAP),
}

_DEVICES = ("virtio-net-pci", "virtio-net-pci-non-transitional", "virtio-net")
"""QEMU's names for it; the last one is its alias."""


def parse_vhost_socket(text: str, *, client: bool = False) -> VhostSocket:
    """The socket of `PATH[,server=on|off]`; `client` means server=off. Raises OptionError."""
    path, pairs = split_options("--vhost-socket", text, "path")
    values = read_all("--vhost-socket", {"server": switch}, pairs)
    if client and values.get("server"):
        raise OptionError("--vhost-socket: server=on and --client exclude each other")
    return VhostSocket(Path(path), server=not client and bool(values.get("server", True)))


def parse_netdev(text: str) -> Netdev:
    """The back end that a `--netdev` string describes. Raises OptionError."""
    name, pairs = split_options("--netdev", text, "type")
    if name not in _NETDEVS:
        expected = " or ".join(_NETDEVS)
        raise OptionError(f"--netdev: unknown back end {name!r}{near(name, _NETDEVS)}; expected {expected}")
    make, table = _NETDEVS[name]
    values = read_all(f"--netdev {name}", table, pairs)
    if make is PcapNetdev and not values.get("file"):
        raise OptionError("--netdev pcap: needs file=PATH")
    return make(**values)


def parse_device(text: str) -> NicDevice:
    """The device that a `--device` string describes. Raises OptionError."""
    name, pairs = split_options("--device", text, "driver")
    if name == "virtio-net-pci-transitional":
        raise OptionError(f"--device: {name}: the device is a modern one only; expected virtio-net-pci")
    if name not in _DEVICES:
        raise OptionError(f"--device: unknown device {name!r}{near(name, _DEVICES)}; expected virtio-net-pci")
    values = read_all(f"--device {name}", {**DEVICE, **VMM_SIDE}, pairs)
    switches = {name: values.pop(name) for name in QEMU_PROPERTIES if name in values}
    disabled = frozenset(name for name, on in switches.items() if not on)
    vmm_side = {name: values.pop(name) for name in VMM_SIDE if name in values}
    enabled = frozenset(
        name for name, on in switches.items() if on and QEMU_PROPERTIES[name] in OFF_BY_DEFAULT
    )
    return NicDevice(
        **values,  # type: ignore[arg-type]
        disabled_features=disabled,
        enabled_features=enabled,
        vmm_side=vmm_side,
    )


def check_pair(netdev: Netdev, device: NicDevice) -> None:
    """Does the device hang on this netdev? Raises OptionError."""
    if device.netdev and device.netdev != netdev.id:
        raise OptionError(
            f"--device: netdev={device.netdev} is not the id of the netdev given"
            f" ({f'id={netdev.id}' if netdev.id else 'it has no id'})"
        )
