# SPDX-License-Identifier: Apache-2.0
"""What the driver wants to receive (virtio 1.3, 5.1.6.5.1 to 5.1.6.5.3). The data plane applies it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vdpa_net.device.net_config import format_mac
from vdpa_net.record import Record
from vdpa_net.wire import virtio_net as net

if TYPE_CHECKING:
    from vdpa_net import _native


class ReceiveFilter(Record):
    """Receive modes and tables, as the commands set them.

    `vlans` None lets every VLAN pass. Without further ado everything passes: promiscuous mode is on until a
    driver switches it off, as in QEMU.
    """

    promisc: bool = True
    allmulti: bool = False
    alluni: bool = False
    nomulti: bool = False
    nouni: bool = False
    nobcast: bool = False
    unicast: tuple[bytes, ...] = ()
    multicast: tuple[bytes, ...] = ()
    vlans: frozenset[int] | None = None

    @classmethod
    def of_features(cls, features: int) -> ReceiveFilter:
        """What holds before any command, with these features negotiated.

        Without CTRL_RX there is no promiscuous mode: every address passes, but CTRL_VLAN's table holds.
        """
        modes = bool(features >> net.F_CTRL_RX & 1)
        vlans = frozenset[int]() if features >> net.F_CTRL_VLAN & 1 else None
        return cls(promisc=modes, allmulti=not modes, alluni=not modes, vlans=vlans)

    def native(self, mac: bytes, mtu: int | None) -> _native.ReceiveFilter:
        """For the data plane: of a station with this address, which takes no larger packets than `mtu`."""
        # Not at the top: importing the device must not need the extension.
        from vdpa_net import _native  # noqa: PLC0415

        return _native.ReceiveFilter(
            promisc=self.promisc,
            allmulti=self.allmulti,
            alluni=self.alluni,
            nomulti=self.nomulti,
            nouni=self.nouni,
            nobcast=self.nobcast,
            mac=mac,
            table=[*self.unicast, *self.multicast],
            vlans=None if self.vlans is None else sorted(self.vlans),
            mtu=mtu,
        )

    def as_json(self) -> dict[str, object]:
        """For reports."""
        modes = ("promisc", "allmulti", "alluni", "nomulti", "nouni", "nobcast")
        return {
            **{mode: getattr(self, mode) for mode in modes},
            "unicast": [format_mac(mac) for mac in self.unicast],
            "multicast": [format_mac(mac) for mac in self.multicast],
            "vlans": None if self.vlans is None else sorted(self.vlans),
        }
