# SPDX-License-Identifier: Apache-2.0
"""The reference: the same guest, traffic and taps, with QEMU's own virtio-net in place of the device.

Its gap and downtime are what figures of the device are compared with. QEMU marks what its own device writes,
so there is nothing here that a driver could be asked.
"""

from __future__ import annotations

from vdpa_net.lab.migrate.topology import FlatTopology
from vdpa_net.lab.network import LabNetwork
from vdpa_net.lab.side import Side, SideOptions

NOT_OURS = {
    "ring state": "QEMU moves the state of its own device",
    "dirty audit": "QEMU marks what its own device writes",
    "violations": "QEMU records none for us",
}
"""Claims about the device that can't be examined in QEMU's own, and why."""


class ReferenceTopology(FlatTopology):
    """The flat topology with taps that QEMU opens itself."""

    def _enter_side(self, network: LabNetwork, options: SideOptions) -> Side:
        network.make_tap(options.tap)
        return Side.unwatched(options)

    def _netdev(self, side: Side) -> tuple[str, ...]:
        return ("-netdev", f"tap,id=net0,ifname={side.options.tap},script=no,downscript=no,vhost=off")
