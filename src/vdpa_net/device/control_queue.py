# SPDX-License-Identifier: Apache-2.0
"""The control queue's commands (virtio 1.3, 5.1.6.5): receive modes and MAC addresses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from vdpa_net.device.active_pairs import ActivePairs
from vdpa_net.device.net_config import NetConfig, format_mac, is_unicast
from vdpa_net.errors import BackendError
from vdpa_net.migration.violations import ViolationLog
from vdpa_net.wire import virtio_net as net

_COUNT_BYTES = 4
_PAIRS_BYTES = 2
_MAC_TABLES = 2
_OK = bytes([net.CTRL_OK])
_ERR = bytes([net.CTRL_ERR])


class CommandError(ValueError):
    """A command's data is not what the specification says; the driver gets VIRTIO_NET_ERR."""


@dataclass
class ReceiveFilter:
    """What the driver asked to receive. Recorded; every frame is passed on, which 5.1.6.5.1 allows."""

    promisc: bool = True
    allmulti: bool = False
    unicast: list[bytes] = field(default_factory=list)
    multicast: list[bytes] = field(default_factory=list)

    def as_json(self) -> dict[str, object]:
        """For reports."""
        return {
            "promisc": self.promisc,
            "allmulti": self.allmulti,
            "unicast": [format_mac(mac) for mac in self.unicast],
            "multicast": [format_mac(mac) for mac in self.multicast],
        }


class ControlQueue:
    """Serves control commands: `handle(command) -> ack`. `features` returns the negotiated feature word."""

    def __init__(
        self,
        config: NetConfig,
        features: Callable[[], int],
        violations: ViolationLog,
        pairs: ActivePairs,
    ) -> None:
        self._pairs = pairs
        self._config = config
        self._features = features
        self._violations = violations
        self.filter = ReceiveFilter()
        self._commands: dict[tuple[int, int], tuple[int, Callable[[bytes], None]]] = {
            (net.CTRL_RX, net.CTRL_RX_PROMISC): (net.F_CTRL_RX, self._set_promisc),
            (net.CTRL_RX, net.CTRL_RX_ALLMULTI): (net.F_CTRL_RX, self._set_allmulti),
            (net.CTRL_MAC, net.CTRL_MAC_TABLE_SET): (net.F_CTRL_RX, self._set_mac_table),
            (net.CTRL_MQ, net.CTRL_MQ_VQ_PAIRS_SET): (net.F_MQ, self._set_pairs),
            (net.CTRL_MAC, net.CTRL_MAC_ADDR_SET): (net.F_CTRL_MAC_ADDR, self._set_mac),
        }

    def reset(self) -> None:
        """Forget what the driver asked for."""
        self.filter = ReceiveFilter()

    def handle(self, command: bytes) -> bytes:
        """The ack byte for the readable bytes of one chain. Never raises."""
        if len(command) < net.CTRL_HEADER.size:
            return self._refuse(command, f"{len(command)} bytes, a command has a header of 2")
        header = net.CTRL_HEADER.unpack(command)
        known = self._commands.get((header["class"], header["command"]))
        if known is None:
            return self._refuse(command, "no such class and command here")
        feature, act = known
        if not self._features() >> feature & 1:
            return self._refuse(command, f"needs {net.FEATURES[feature]}, which was not negotiated")
        try:
            act(command[net.CTRL_HEADER.size :])
        except (CommandError, BackendError) as error:
            return self._refuse(command, str(error))
        return _OK

    def _refuse(self, command: bytes, detail: str) -> bytes:
        value = int.from_bytes(command[: net.CTRL_HEADER.size], "little")
        self._violations.record("control queue", "control_command", value, "5.1.6.5", detail)
        return _ERR

    def _set_promisc(self, data: bytes) -> None:
        self.filter.promisc = _switch(data)

    def _set_allmulti(self, data: bytes) -> None:
        self.filter.allmulti = _switch(data)

    def _set_mac(self, data: bytes) -> None:
        if len(data) != net.MAC_BYTES or not is_unicast(data):
            raise CommandError(f"MAC_ADDR_SET takes one unicast address, got {data[:32].hex(':')}")
        self._config.mac = data

    def _set_pairs(self, data: bytes) -> None:
        count = int.from_bytes(data, "little")
        if len(data) != _PAIRS_BYTES or not 1 <= count <= self._pairs.max_count:
            raise CommandError(
                f"VQ_PAIRS_SET takes 16 bits from 1 to {self._pairs.max_count}, got {data[:32].hex(':')}"
            )
        self._pairs.command(count)

    def _set_mac_table(self, data: bytes) -> None:
        tables = []
        rest = data
        for _ in range(_MAC_TABLES):
            table, rest = _split_table(rest)
            tables.append(table)
        if rest:
            raise CommandError(f"{len(rest)} bytes behind the two tables of MAC_TABLE_SET")
        self.filter.unicast, self.filter.multicast = tables


def _switch(data: bytes) -> bool:
    if len(data) != 1:
        raise CommandError(f"a receive mode is 1 byte, got {len(data)}")
    return bool(data[0])


def _split_table(data: bytes) -> tuple[list[bytes], bytes]:
    """The addresses of one table, and the bytes behind it."""
    count = int.from_bytes(data[:_COUNT_BYTES], "little")
    end = _COUNT_BYTES + count * net.MAC_BYTES
    if len(data) < max(end, _COUNT_BYTES):
        raise CommandError(f"MAC_TABLE_SET of {count} addresses takes {end} bytes, got {len(data)}")
    addresses = data[_COUNT_BYTES:end]
    step = net.MAC_BYTES
    return [addresses[start : start + step] for start in range(0, len(addresses), step)], data[end:]
