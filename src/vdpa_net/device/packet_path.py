# SPDX-License-Identifier: Apache-2.0
"""What of a packet's way through the device the driver decides: offloads, receive filter, active pairs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vdpa_net.backend import Backend
from vdpa_net.device.active_pairs import ActivePairs
from vdpa_net.device.net_config import NetConfig
from vdpa_net.device.receive_filter import ReceiveFilter
from vdpa_net.wire import virtio_net as net

if TYPE_CHECKING:
    from vdpa_net._native import DataPlane


class PacketPath:
    """Keeps data plane and back end as the driver wants them. The caller holds the device's lock."""

    def __init__(self, plane: DataPlane, backend: Backend, config: NetConfig, pairs: ActivePairs) -> None:
        self._plane = plane
        self._backend = backend
        self._config = config
        self.pairs = pairs
        self.features = 0
        self.filter = ReceiveFilter()

    def negotiated(self, features: int) -> None:
        """Begin anew with these features. Raises BackendError if the back end can't have them."""
        self._backend.set_offloads(features)
        self.features = features
        self.set_filter(ReceiveFilter.of_features(features))

    def reset(self) -> None:
        """One pair, everything passes, as it is. Raises BackendError.

        What comes while the link waits for a driver must be something that any driver understands.
        """
        had, self.features = self.features, 0
        self.set_filter(ReceiveFilter())
        self.pairs.reset()
        if had:
            self._backend.set_offloads(0)

    def set_filter(self, wanted: ReceiveFilter) -> None:
        """On return it holds for every packet that comes."""
        self.filter = wanted
        mtu = self._config.mtu if self.features >> net.F_MTU & 1 else None
        self._plane.set_receive_filter(wanted.native(self._config.mac, mtu))

    def set_mac(self, mac: bytes) -> None:
        """Change the station's address."""
        self._config.mac = mac
        self.set_filter(self.filter)

    def set_offloads(self, offloads: int) -> None:
        """Let the back end hand over these of the negotiated GUEST_ offloads only. Raises BackendError."""
        self._backend.set_offloads((self.features & ~net.GUEST_OFFLOADS) | offloads)

    def acknowledge_announcement(self) -> None:
        """The driver has seen VIRTIO_NET_S_ANNOUNCE."""
        self._config.announce = False
