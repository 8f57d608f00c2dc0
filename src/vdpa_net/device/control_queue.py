# SPDX-License-Identifier: Apache-2.0
"""The control queue's commands (virtio 1.3, 5.1.6.5): receive filter, announcement, pairs, offloads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from vdpa_net.device.net_config import is_unicast
from vdpa_net.device.packet_path import PacketPath
from vdpa_net.errors import BackendError
from vdpa_net.migration.violations import ViolationLog
from vdpa_net.record import Record, replace
from vdpa_net.wire import virtio_net as net

_OK = bytes([net.CTRL_OK])
_ERR = bytes([net.CTRL_ERR])
_COUNT_BYTES = 4


class CommandError(ValueError):
    """A command's data is not what the specification says; the driver gets VIRTIO_NET_ERR."""


class Command(Record):
    """One command: name, the feature that it needs, clause, how long its data is (None: it varies)."""

    name: str
    feature: int
    clause: str
    data_bytes: int | None
    act: Callable[[PacketPath, bytes], None]


def _mode(field: str) -> Callable[[PacketPath, bytes], None]:
    def set_mode(path: PacketPath, data: bytes) -> None:
        if data[0] > 1:
            raise CommandError(f"0 or 1 switches a receive mode, got {data[0]}")
        path.set_filter(replace(path.filter, **{field: bool(data[0])}))

    return set_mode


def _set_mac(path: PacketPath, data: bytes) -> None:
    if not is_unicast(data):
        raise CommandError(f"a station's address is unicast and not 0, got {data.hex(':')}")
    path.set_mac(data)


def _set_mac_table(path: PacketPath, data: bytes) -> None:
    unicast, rest = _split_table(data)
    multicast, rest = _split_table(rest)
    if rest:
        raise CommandError(f"{len(rest)} bytes behind the two tables")
    for kind, table, group in (("unicast", unicast, 0), ("multicast", multicast, 1)):
        for mac in table:
            if mac[0] & 1 != group:
                raise CommandError(f"{mac.hex(':')} in the {kind} table")
    path.set_filter(replace(path.filter, unicast=unicast, multicast=multicast))


def _split_table(data: bytes) -> tuple[tuple[bytes, ...], bytes]:
    """The addresses of one table, and the bytes behind it."""
    count = int.from_bytes(data[:_COUNT_BYTES], "little")
    end = _COUNT_BYTES + count * net.MAC_BYTES
    if len(data) < end:
        raise CommandError(f"a table of {count} addresses takes {end} bytes, got {len(data)}")
    step = net.MAC_BYTES
    return tuple(data[at : at + step] for at in range(_COUNT_BYTES, end, step)), data[end:]


def _vlan(*, present: bool) -> Callable[[PacketPath, bytes], None]:
    def set_vlan(path: PacketPath, data: bytes) -> None:
        vlan = int.from_bytes(data, "little")
        if vlan >= net.VLANS:
            raise CommandError(f"VLANs are 0 to {net.VLANS - 1}, got {vlan}")
        vlans = path.filter.vlans or frozenset()
        path.set_filter(replace(path.filter, vlans=vlans | {vlan} if present else vlans - {vlan}))

    return set_vlan


def _acknowledge(path: PacketPath, _data: bytes) -> None:
    path.acknowledge_announcement()


def _set_pairs(path: PacketPath, data: bytes) -> None:
    count = int.from_bytes(data, "little")
    if not 1 <= count <= path.pairs.max_count:
        raise CommandError(f"virtqueue_pairs takes 1 to {path.pairs.max_count}, got {count}")
    path.pairs.command(count)


def _set_offloads(path: PacketPath, data: bytes) -> None:
    offloads = int.from_bytes(data, "little")
    if extra := offloads & ~(path.features & net.GUEST_OFFLOADS):
        raise CommandError(f"not negotiated: {', '.join(net.feature_names(extra))}")
    path.set_offloads(offloads)


_RX, _VLAN, _MQ = "5.1.6.5.1", "5.1.6.5.3", "5.1.6.5.6"
COMMANDS: Final = {
    (net.CTRL_RX, net.CTRL_RX_PROMISC): Command("PROMISC", net.F_CTRL_RX, _RX, 1, _mode("promisc")),
    (net.CTRL_RX, net.CTRL_RX_ALLMULTI): Command("ALLMULTI", net.F_CTRL_RX, _RX, 1, _mode("allmulti")),
    (net.CTRL_RX, net.CTRL_RX_ALLUNI): Command("ALLUNI", net.F_CTRL_RX_EXTRA, _RX, 1, _mode("alluni")),
    (net.CTRL_RX, net.CTRL_RX_NOMULTI): Command("NOMULTI", net.F_CTRL_RX_EXTRA, _RX, 1, _mode("nomulti")),
    (net.CTRL_RX, net.CTRL_RX_NOUNI): Command("NOUNI", net.F_CTRL_RX_EXTRA, _RX, 1, _mode("nouni")),
    (net.CTRL_RX, net.CTRL_RX_NOBCAST): Command("NOBCAST", net.F_CTRL_RX_EXTRA, _RX, 1, _mode("nobcast")),
    (net.CTRL_MAC, net.CTRL_MAC_TABLE_SET): Command(
        "MAC_TABLE_SET", net.F_CTRL_RX, "5.1.6.5.2", None, _set_mac_table
    ),
    (net.CTRL_MAC, net.CTRL_MAC_ADDR_SET): Command(
        "MAC_ADDR_SET", net.F_CTRL_MAC_ADDR, "5.1.6.5.2", net.MAC_BYTES, _set_mac
    ),
    (net.CTRL_VLAN, net.CTRL_VLAN_ADD): Command("VLAN_ADD", net.F_CTRL_VLAN, _VLAN, 2, _vlan(present=True)),
    (net.CTRL_VLAN, net.CTRL_VLAN_DEL): Command("VLAN_DEL", net.F_CTRL_VLAN, _VLAN, 2, _vlan(present=False)),
    (net.CTRL_ANNOUNCE, net.CTRL_ANNOUNCE_ACK): Command(
        "ANNOUNCE_ACK", net.F_GUEST_ANNOUNCE, "5.1.6.5.4", 0, _acknowledge
    ),
    (net.CTRL_MQ, net.CTRL_MQ_VQ_PAIRS_SET): Command("VQ_PAIRS_SET", net.F_MQ, _MQ, 2, _set_pairs),
    (net.CTRL_GUEST_OFFLOADS, net.CTRL_GUEST_OFFLOADS_SET): Command(
        "GUEST_OFFLOADS_SET", net.F_CTRL_GUEST_OFFLOADS, "5.1.6.5.8", 8, _set_offloads
    ),
}


class ControlQueue:
    """Serves control commands: `handle(command) -> ack`."""

    def __init__(self, path: PacketPath, violations: ViolationLog) -> None:
        self._path = path
        self._violations = violations

    def handle(self, command: bytes) -> bytes:
        """The ack byte for the readable bytes of one chain. Never raises."""
        if len(command) < net.CTRL_HEADER.size:
            return self._refuse(command, "5.1.6.5", f"{len(command)} bytes, a command has a header of 2")
        header = net.CTRL_HEADER.unpack(command)
        known = COMMANDS.get((header["class"], header["command"]))
        if known is None:
            return self._refuse(command, "5.1.6.5", "no such class and command here")
        try:
            self._act(known, command[net.CTRL_HEADER.size :])
        except (CommandError, BackendError) as error:
            return self._refuse(command, known.clause, f"{known.name}: {error}")
        return _OK

    def _act(self, command: Command, data: bytes) -> None:
        if not self._path.features >> command.feature & 1:
            raise CommandError(f"needs {net.FEATURES[command.feature]}, which was not negotiated")
        if command.data_bytes is not None and len(data) != command.data_bytes:
            raise CommandError(f"takes {command.data_bytes} bytes, got {len(data)}")
        command.act(self._path, data)

    def _refuse(self, command: bytes, clause: str, detail: str) -> bytes:
        value = int.from_bytes(command[: net.CTRL_HEADER.size], "little")
        self._violations.record("control queue", "control_command", value, clause, detail)
        return _ERR
