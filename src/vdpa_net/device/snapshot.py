# SPDX-License-Identifier: Apache-2.0
"""The state of a device as a tree of JSON values, for `inspect`, reports and tests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from vdpa_net.device.net_config import format_mac
from vdpa_net.device.queues import Queue
from vdpa_net.device.virtio_device import VirtioNet
from vdpa_net.migration.violations import ViolationLog
from vdpa_net.wire.lm import unpack_ring_state
from vdpa_net.wire.virtio_net import feature_names
from vdpa_net.wire.virtio_pci import Status

if TYPE_CHECKING:
    from vdpa_net._native import DataPlane, DmaSpace


def take(
    virtio: VirtioNet,
    plane: DataPlane,
    space: DmaSpace,
    *,
    dma_maps: int,
    ats_enabled: bool | None,
    faults: Mapping[str, int],
    violations: ViolationLog,
) -> dict[str, object]:
    """The snapshot. The caller holds the device's lock; no worker is disturbed."""
    common = virtio.common
    return {
        "profile": virtio.options.profile.name,
        "vdpa": virtio.options.vdpa,
        "mac": format_mac(virtio.config.mac),
        "mtu": virtio.options.mtu,
        "status": int(common.status),
        "status_names": [str(bit.name) for bit in Status if bit & common.status],
        "features_offered": feature_names(common.offered),
        "features": feature_names(common.features),
        "queues": [_queue(virtio, plane, queue) for queue in virtio.queues],
        "receive_filter": virtio.path.filter.as_json(),
        "active_pairs": virtio.pairs.count,
        "dma_maps": dma_maps,
        "ats": None if ats_enabled is None else {"enabled": ats_enabled},
        "lm": None if virtio.lm is None else virtio.lm.registers(),
        "logging": virtio.lm is not None and virtio.lm.logging,
        "log": space.log_counters(),
        "faults": dict(faults),
        "violation_count": violations.count,
        "violation_kinds": violations.kinds,
        "violations": violations.as_json(),
    }


def _queue(virtio: VirtioNet, plane: DataPlane, queue: Queue) -> dict[str, object]:
    last_avail_idx, used_idx = unpack_ring_state(virtio.queues.ring_state(queue.index))
    return {
        "index": queue.index,
        "size": queue.size,
        "enabled": queue.enabled,
        "running": plane.is_running(queue.index),
        "msix_vector": queue.msix_vector,
        "desc": queue.desc,
        "driver": queue.driver,
        "device": queue.device,
        "last_avail_idx": last_avail_idx,
        "used_idx": used_idx,
        "counters": plane.queue_counters(queue.index),
    }
