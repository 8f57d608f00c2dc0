# SPDX-License-Identifier: Apache-2.0
"""QEMU's option strings for `--netdev` and `--device`.

    tap,id=hostnet1,ifname=vt0,script=no,downscript=no,vhost=off
    virtio-net-pci,netdev=hostnet1,id=net1,mac=56:4a:b7:4f:4d:a9,iommu_platform=on,ats=on,vdpa=on

Syntax: a name, then `key=value` or `key` (which means `key=on`), separated by commas; two commas are one that
belongs to the value; the last of equal keys counts. Property names and defaults are QEMU's; `loopback` and
`vdpa` are ours. What the device does not have is refused by name, never ignored: OptionError.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from vdpa_net.errors import OptionError
from vdpa_net.wire.lm import Profile
from vdpa_net.wire.virtio_net import MTU_MAX, MTU_MIN, QEMU_PROPERTIES, QUEUE_SIZE_MAX

Reader = Callable[[str], object]

_SWITCH = dict.fromkeys(("on", "yes", "true", "y"), True) | dict.fromkeys(("off", "no", "false", "n"), False)
_NOT_YET = "is not supported yet"


@dataclass(frozen=True)
class TapNetdev:
    """`tap`: a tap device of this host. `ifname` may hold `%d` for a free number; scripts get the name."""

    id: str = ""
    ifname: str = "tap%d"
    script: str | None = None
    downscript: str | None = None


@dataclass(frozen=True)
class LoopbackNetdev:
    """`loopback`: what the guest transmits comes back to it. `depth` is in packets."""

    id: str = ""
    depth: int = 1024


Netdev = TapNetdev | LoopbackNetdev


@dataclass(frozen=True)
class NicDevice:
    """`virtio-net-pci`: what the guest is to see. `bus` and `addr` go into the printed QEMU arguments.

    `disabled_features` are the property names of the features that are switched off; `profile` is no property
    of QEMU's, so it comes from an option of its own.
    """

    netdev: str = ""
    id: str = ""
    mac: str = "52:54:00:12:34:56"
    bus: str = ""
    addr: str = ""
    vdpa: bool = False
    iommu_platform: bool = False
    ats: bool = False
    host_mtu: int = 1500
    rx_queue_size: int = 256
    tx_queue_size: int = 256
    vectors: int | None = None
    disabled_features: frozenset[str] = field(default_factory=frozenset)
    profile: str | Profile = "vdpa"


@dataclass(frozen=True)
class VhostSocket:
    """Where front end and back end meet: with `server` the back end listens, else it connects."""

    path: Path
    server: bool = True


def parse_vhost_socket(text: str, *, client: bool = False) -> VhostSocket:
    """The socket of `PATH[,server=on|off]`; `client` means server=off. Raises OptionError."""
    path, pairs = split_options("--vhost-socket", text, "path")
    values = _read_all("--vhost-socket", {"server": _switch}, pairs)
    if client and values.get("server"):
        raise OptionError("--vhost-socket: server=on and --client exclude each other")
    return VhostSocket(Path(path), server=not client and bool(values.get("server", True)))


def parse_netdev(text: str) -> Netdev:
    """The back end that a `--netdev` string describes. Raises OptionError."""
    name, pairs = split_options("--netdev", text, "type")
    if name not in _NETDEVS:
        near = _near(name, _NETDEVS)
        raise OptionError(f"--netdev: unknown back end {name!r}{near}; expected tap or loopback")
    make, table = _NETDEVS[name]
    return make(**_read_all(f"--netdev {name}", table, pairs))


def parse_device(text: str) -> NicDevice:
    """The device that a `--device` string describes. Raises OptionError."""
    name, pairs = split_options("--device", text, "driver")
    if name != "virtio-net-pci":
        raise OptionError(f"--device: unknown device {name!r}; expected virtio-net-pci")
    values = _read_all(f"--device {name}", _DEVICE, pairs)
    switches = {name: values.pop(name) for name in QEMU_PROPERTIES if name in values}
    disabled = frozenset(name for name, on in switches.items() if not on)
    return NicDevice(**values, disabled_features=disabled)  # type: ignore[arg-type]


def check_pair(netdev: Netdev, device: NicDevice) -> None:
    """Does the device hang on this netdev? Raises OptionError."""
    if device.netdev and device.netdev != netdev.id:
        raise OptionError(
            f"--device: netdev={device.netdev} is not the id of the netdev given"
            f" ({f'id={netdev.id}' if netdev.id else 'it has no id'})"
        )


def split_options(option: str, text: str, implied: str) -> tuple[str, dict[str, str]]:
    """The name and the pairs of an option string; `implied` is the key that the name may be written with.

    Raises OptionError on an empty name or key."""
    if text.lstrip().startswith("{"):
        raise OptionError(f"{option}: JSON {_NOT_YET}; write it as name,key=value,...")
    parts = [part.replace("\0", ",") for part in text.replace(",,", "\0").split(",")]
    name = parts[0].removeprefix(f"{implied}=")
    pairs: dict[str, str] = {}
    for part in parts[1:]:
        key, equals, value = part.partition("=")
        if not key:
            raise OptionError(f"{option}: empty property name in {text!r}")
        pairs[key] = value if equals else "on"
    if not name:
        raise OptionError(f"{option}: {text!r} does not begin with a name")
    return name, pairs


def _read_all(where: str, table: Mapping[str, Reader | None], pairs: Mapping[str, str]) -> dict[str, object]:
    values: dict[str, object] = {}
    for key, text in pairs.items():
        if key not in table:
            raise OptionError(f"{where}: unknown property {key!r}{_near(key, table)}")
        read = table[key]
        try:
            value = read(text) if read else text
        except ValueError as error:
            raise OptionError(f"{where}: {key}={text}: {error}") from None
        if value is not _NOTHING:
            values[key] = value
    return values


def _near(name: str, known: Mapping[str, object]) -> str:
    match = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f" (did you mean {match[0]!r}?)" if match else ""


# --- readers: text in, value out; ValueError says what was expected ---------------------------------------

_NOTHING = object()  # the value is accepted and needs nothing done


def _switch(text: str) -> bool:
    if text not in _SWITCH:
        raise ValueError("expected on or off")
    return _SWITCH[text]


def _only(value: bool, reason: str) -> Reader:
    """A switch that has one position here."""

    def read(text: str) -> object:
        if _switch(text) is not value:
            raise ValueError(reason)
        return _NOTHING

    return read


def _number(low: int, high: int, *, power_of_two: bool = False) -> Reader:
    def read(text: str) -> int:
        kind = "a power of two" if power_of_two else "a number"
        try:
            value = int(text, 0)
        except ValueError:
            value = -1
        if not low <= value <= high or (power_of_two and value & (value - 1)):
            raise ValueError(f"expected {kind} from {low} to {high}")
        return value

    return read


def _one(what: str) -> Reader:
    def read(text: str) -> object:
        if text != "1":
            raise ValueError(f"{what} {_NOT_YET}")
        return _NOTHING

    return read


def _mac(text: str) -> str:
    if not re.fullmatch(r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}", text):
        raise ValueError("expected six octets like 52:54:00:12:34:56")
    if int(text[:2], 16) & 1:
        raise ValueError("a multicast address; expected a unicast one (lowest bit of the first octet 0)")
    return text.lower()


def _script(text: str) -> str | None:
    return None if text in ("no", "") else text


def _empty(reason: str) -> Reader:
    def read(text: str) -> object:
        if text:
            raise ValueError(reason)
        return _NOTHING

    return read


def _refuse(reason: str) -> Reader:
    def read(_text: str) -> object:
        raise ValueError(reason)

    return read


# --- the tables -------------------------------------------------------------------------------------------

_NO_VHOST = "the kernel's vhost would move packets past the device, so no page would be logged; expected off"
_TAP: dict[str, Reader | None] = {
    "id": None,
    "ifname": None,
    "script": _script,
    "downscript": _script,
    "vhost": _only(False, _NO_VHOST),
    "vhostforce": _only(False, _NO_VHOST),
    "queues": _one("more than one queue pair"),
    "fd": _refuse(f"an inherited file descriptor {_NOT_YET}; name the tap with ifname="),
    "fds": _refuse(f"inherited file descriptors {_NOT_YET}; name the tap with ifname="),
}
_LOOPBACK: dict[str, Reader | None] = {"id": None, "depth": _number(1, 65536)}
_NETDEVS: dict[str, tuple[Callable[..., Netdev], dict[str, Reader | None]]] = {
    "tap": (TapNetdev, _TAP),
    "loopback": (LoopbackNetdev, _LOOPBACK),
}

_GSO = "VIRTIO_NET_F_GSO is a legacy bit that a modern device never offers; use host_tso4 and host_tso6"
_MODERN = "the device is a modern virtio device only (virtio 1.3 §4.1)"
_DEVICE: dict[str, Reader | None] = {
    "netdev": None,
    "id": None,
    "mac": _mac,
    "bus": None,
    "addr": None,
    "vdpa": _switch,
    "iommu_platform": _switch,
    "ats": _switch,
    "host_mtu": _number(MTU_MIN, MTU_MAX),
    "rx_queue_size": _number(2, QUEUE_SIZE_MAX, power_of_two=True),
    "tx_queue_size": _number(2, QUEUE_SIZE_MAX, power_of_two=True),
    "vectors": _number(1, 2048),
    **dict.fromkeys(QEMU_PROPERTIES, _switch),
    "gso": _only(False, _GSO),
    "disable-legacy": _only(True, _MODERN),
    "disable-modern": _only(False, _MODERN),
    "romfile": _empty("the device has no ROM BAR; expected romfile="),
    "rombar": _empty("the device has no ROM BAR; leave it out"),
    "packed": _only(False, f"the packed ring {_NOT_YET}"),
    "mq": _only(False, f"multi-queue {_NOT_YET}"),
    "queue_reset": _only(False, f"VIRTIO_F_RING_RESET {_NOT_YET}"),
    "in_order": _only(False, f"VIRTIO_F_IN_ORDER {_NOT_YET}"),
    "page-per-vq": _only(False, "notify_off_multiplier is 4"),
    "failover": _only(False, "the device has no STANDBY feature"),
    "rss": _only(False, "the device has no RSS feature"),
    "hash": _only(False, "the device has no hash reports"),
}
