# SPDX-License-Identifier: Apache-2.0
"""Puts the function's address space together: which register block answers where in which BAR."""

from __future__ import annotations

from collections.abc import Callable

from vdpa_net.device import function
from vdpa_net.device.function import Bar
from vdpa_net.device.msix import Msix
from vdpa_net.device.notify import Notify
from vdpa_net.device.options import NetOptions
from vdpa_net.device.page_requests import PageRequests
from vdpa_net.device.pci import BarAccess, ConfigSpace
from vdpa_net.device.registers import RegisterBlock
from vdpa_net.device.virtio_device import VirtioNet
from vdpa_net.migration.violations import ViolationLog
from vdpa_net.wire import virtio_net, virtio_pci
from vdpa_net.wire.page_requests import PAGE_REQUESTS


def make_config(
    options: NetOptions,
    msix: Msix,
    bars: BarAccess,
    violations: ViolationLog,
    on_flr: Callable[[], None],
) -> ConfigSpace:
    """The configuration space of a device with these options."""
    return ConfigSpace(function.function_layout(options, msix), bars, violations, on_flr)


def make_bars(
    virtio: VirtioNet, msix: Msix, violations: ViolationLog, requests: PageRequests
) -> dict[int, Bar]:
    """The BARs by index, with the register blocks in their places."""
    profile = virtio.options.profile
    sizes = function.bar_sizes(virtio.options, msix.bar_size)
    bars = {index: Bar(f"bar{index}", size, violations) for index, size in sizes.items()}
    bar = bars[profile.virtio_bar]
    for offset, table, file in (
        (function.COMMON_OFFSET, virtio_pci.COMMON_CFG, virtio.common),
        (function.ISR_OFFSET, virtio_pci.ISR, virtio.isr),
        (function.DEVICE_CFG_OFFSET, virtio_net.DEVICE_CFG, virtio.config),
    ):
        bar.add(offset, function.REGION_BYTES, RegisterBlock(table, file, violations))
    notify = Notify(virtio.queues.total, virtio.kick, violations)
    bar.add(function.NOTIFY_OFFSET, function.NOTIFY_BYTES, notify)
    bars[profile.msix_bar].add(0, msix.bar_size, msix)
    if virtio.lm is not None:
        lm_bar, lm_offset = function.lm_place(profile)
        lm_block = RegisterBlock(profile.registers, virtio.lm, violations)
        bars[lm_bar].add(lm_offset, profile.registers.size, lm_block)
    if (place := function.page_requests_offset(virtio.options)) is not None:
        bar.add(place, PAGE_REQUESTS.size, RegisterBlock(PAGE_REQUESTS, requests, violations))
    return bars
