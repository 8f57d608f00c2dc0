# SPDX-License-Identifier: Apache-2.0
"""The ISR status and the device configuration of a network device (virtio 1.3, 4.1.4.5 and 5.1.4)."""

from __future__ import annotations

from collections.abc import Callable

from vdpa_net.errors import OptionError
from vdpa_net.wire import virtio_net
from vdpa_net.wire.layout import Register


class IsrStatus:
    """The ISR status register: bits are set by the device and cleared by a read."""

    def __init__(self) -> None:
        self.bits = 0

    def load(self, register: Register) -> int:  # noqa: ARG002
        """The bits, which are 0 afterwards."""
        bits, self.bits = self.bits, 0
        return bits

    def store(self, register: Register, value: int, written: int) -> None:
        """Never called: the register can't be written."""


class NetConfig:
    """Device configuration. Fields read 0 whose feature is not offered.

    `on_new_generation` is called when a driver reads a configuration that has changed since the last read.
    """

    def __init__(
        self, mac: bytes, mtu: int, queue_pairs: int, offered: int, on_new_generation: Callable[[], None]
    ) -> None:
        self._offered = offered
        self._initial_mac = mac
        self._changed = False
        self._on_new_generation = on_new_generation
        self._values = {
            "mac": int.from_bytes(mac, "little"),
            "status": virtio_net.S_LINK_UP,
            "max_virtqueue_pairs": queue_pairs,
            "mtu": mtu,
        }
        self._exists = {
            "mac": True,
            "status": self._offers(virtio_net.F_STATUS),
            "max_virtqueue_pairs": self._offers(virtio_net.F_MQ),
            "mtu": self._offers(virtio_net.F_MTU),
        }

    def _offers(self, bit: int) -> bool:
        return bool(self._offered >> bit & 1)

    @property
    def mac(self) -> bytes:
        """The MAC address."""
        return self._values["mac"].to_bytes(virtio_net.MAC_BYTES, "little")

    @mac.setter
    def mac(self, mac: bytes) -> None:
        self._changed = self._changed or mac != self.mac
        self._values["mac"] = int.from_bytes(mac, "little")

    @property
    def mtu(self) -> int:
        """The largest packet of the network layer, in bytes."""
        return self._values["mtu"]

    @property
    def announce(self) -> bool:
        """VIRTIO_NET_S_ANNOUNCE: the driver shall tell the network where it is (5.1.6.5.4)."""
        return bool(self._values["status"] & virtio_net.S_ANNOUNCE)

    @announce.setter
    def announce(self, wanted: bool) -> None:
        self._changed = self._changed or wanted != self.announce
        self._values["status"] = virtio_net.S_LINK_UP | (virtio_net.S_ANNOUNCE if wanted else 0)

    def load(self, register: Register) -> int:
        """Value of a field."""
        if self._changed:
            self._changed = False
            self._on_new_generation()
        return self._values[register.name] if self._exists[register.name] else 0

    def store(self, register: Register, value: int, written: int) -> None:
        """Never called: every field is read-only."""

    def reset(self) -> None:
        """The MAC address of the device's own configuration again."""
        self.mac = self._initial_mac
        self.announce = False


def parse_mac(text: str) -> bytes:
    """The 6 bytes of a unicast MAC address `52:54:00:12:34:56`. Raises OptionError."""
    parts = text.split(":")
    try:
        mac = bytes(int(part, 16) for part in parts if len(part) == 2)
    except ValueError:
        mac = b""
    if len(mac) != virtio_net.MAC_BYTES or len(parts) != virtio_net.MAC_BYTES:
        raise OptionError(f"mac takes six bytes like 52:54:00:12:34:56, got {text!r}")
    if not is_unicast(mac):
        raise OptionError(f"mac takes a unicast address other than 0, got {text!r}")
    return mac


def format_mac(mac: bytes) -> str:
    """`52:54:00:12:34:56`."""
    return mac.hex(":")


def is_unicast(mac: bytes) -> bool:
    """Whether a station can have this address."""
    return not mac[0] & 1 and any(mac)
