# SPDX-License-Identifier: Apache-2.0
"""What a network device is made of, checked: the arguments of NetDevice as one value."""

from __future__ import annotations

from vdpa_net.backend import MAX_QUEUE_PAIRS
from vdpa_net.device.net_config import parse_mac
from vdpa_net.errors import OptionError
from vdpa_net.record import Record
from vdpa_net.wire import pci, virtio_net, virtio_pci
from vdpa_net.wire.lm import Profile, profile_by_name

CONTROL_QUEUE_SIZE = 64
DEFAULT_POLL_US = 20
"""A kick costs its sender more than this."""

MAX_POLL_US = 1_000_000
DEFAULT_COALESCE_US = 150
"""As long as QEMU's tx=timer."""

MAX_COALESCE_US = 10_000
_OFFERED = virtio_net.bits(
    (
        virtio_net.F_CSUM,
        virtio_net.F_GUEST_CSUM,
        virtio_net.F_MTU,
        virtio_net.F_MAC,
        virtio_net.F_GUEST_TSO4,
        virtio_net.F_GUEST_TSO6,
        virtio_net.F_GUEST_ECN,
        virtio_net.F_HOST_TSO4,
        virtio_net.F_HOST_TSO6,
        virtio_net.F_HOST_ECN,
        virtio_net.F_MRG_RXBUF,
        virtio_net.F_STATUS,
        virtio_net.F_CTRL_VQ,
        virtio_net.F_CTRL_RX,
        virtio_net.F_CTRL_MAC_ADDR,
        virtio_net.F_CTRL_VLAN,
        virtio_net.F_CTRL_RX_EXTRA,
        virtio_net.F_GUEST_ANNOUNCE,
        virtio_net.F_CTRL_GUEST_OFFLOADS,
        virtio_pci.F_INDIRECT_DESC,
        virtio_pci.F_EVENT_IDX,
        virtio_pci.F_VERSION_1,
        virtio_pci.F_RING_RESET,
    )
)


class NetOptions(Record):
    """Options of a NetDevice after they were checked. Sizes in descriptors, `mtu` in bytes."""

    mac: bytes
    mtu: int
    profile: Profile
    vdpa: bool
    ats: bool
    rx_queue_size: int
    tx_queue_size: int
    vectors: int
    features: int
    queue_pairs: int = 1

    @property
    def control_queue(self) -> int | None:
        """Index of the control queue with VIRTIO_NET_F_MQ, and of its doorbell (virtio 1.3, 5.1.2)."""
        return 2 * self.queue_pairs if self.features >> virtio_net.F_CTRL_VQ & 1 else None

    @property
    def num_queues(self) -> int:
        """How many virtqueues there are at most."""
        return 2 * self.queue_pairs + (self.control_queue is not None)

    def queue_sizes(self, queue_pairs: int) -> list[int]:
        """Largest size of each queue where so many pairs can be used."""
        control = [] if self.control_queue is None else [CONTROL_QUEUE_SIZE]
        return [self.rx_queue_size, self.tx_queue_size] * queue_pairs + control


def check_options(
    *,
    mac: str,
    mtu: int,
    profile: str | Profile,
    vdpa: bool,
    iommu_platform: bool,
    ats: bool,
    rx_queue_size: int,
    tx_queue_size: int,
    vectors: int | None,
    mq: bool,
    backend_pairs: int,
    disabled_features: frozenset[str],
    enabled_features: frozenset[str] = frozenset(),
) -> NetOptions:
    """The options, checked. Raises OptionError, which names the one that is impossible."""
    if not virtio_net.MTU_MIN <= mtu <= virtio_net.MTU_MAX:
        raise OptionError(
            f"mtu takes {virtio_net.MTU_MIN} to {virtio_net.MTU_MAX} (virtio 1.3, 5.1.4.1), got {mtu}"
        )
    for name, size in (("rx_queue_size", rx_queue_size), ("tx_queue_size", tx_queue_size)):
        if size & (size - 1) or not 0 < size <= virtio_net.QUEUE_SIZE_MAX:
            raise OptionError(f"{name} takes a power of 2 up to {virtio_net.QUEUE_SIZE_MAX}, got {size}")
    # As in QEMU: without mq=on one pair is used, whatever the back end has.
    queue_pairs = backend_pairs if mq else 1
    if not 1 <= queue_pairs <= MAX_QUEUE_PAIRS:
        raise OptionError(f"a device has 1 to {MAX_QUEUE_PAIRS} queue pairs, the back end {backend_pairs}")
    default_vectors = 2 * queue_pairs + 2
    options = NetOptions(
        mac=parse_mac(mac),
        mtu=mtu,
        profile=profile if isinstance(profile, Profile) else profile_by_name(profile),
        vdpa=vdpa,
        ats=ats,
        rx_queue_size=rx_queue_size,
        tx_queue_size=tx_queue_size,
        vectors=default_vectors if vectors is None else vectors,
        features=_offered(iommu_platform, mq, disabled_features, enabled_features),
        queue_pairs=queue_pairs,
    )
    _check_profile(options)
    if not 1 <= options.vectors <= pci.MSIX_MAX_VECTORS:
        raise OptionError(
            f"vectors takes 1 to {pci.MSIX_MAX_VECTORS} (virtio 1.3, 4.1.5.1.2.1), got {vectors}"
        )
    return options


def _check_profile(options: NetOptions) -> None:
    profile, queues = options.profile, options.num_queues
    if not options.vdpa:
        return
    if queues > profile.max_queues:
        raise OptionError(
            f"profile {profile.name} has room for {profile.max_queues} queues,"
            f" {options.queue_pairs} pairs and the control queue are {queues}"
        )
    if profile.control_queue and options.control_queue is None:
        raise OptionError(
            f"profile {profile.name} needs ctrl_vq=on: its driver offers (num_queues - 1) / 2 queue pairs"
        )


def _offered(
    iommu_platform: bool, mq: bool, disabled_features: frozenset[str], enabled_features: frozenset[str]
) -> int:
    features = _OFFERED | iommu_platform << virtio_pci.F_ACCESS_PLATFORM | mq << virtio_net.F_MQ
    for name in enabled_features:
        bit = virtio_net.feature_bit(name)
        if not features >> bit & 1 and bit not in virtio_net.OFF_BY_DEFAULT:
            raise OptionError(f"the device has no {name} to switch on")
        features |= 1 << bit
    features &= ~virtio_net.bits(virtio_net.feature_bit(name) for name in disabled_features)
    if not features >> virtio_net.F_CTRL_VQ & 1:
        features &= ~virtio_net.USELESS_WITHOUT_CONTROL_QUEUE
    # A device must not offer a feature without what it requires (2.2.1), so those go too.
    return virtio_net.without_unmet(features)
