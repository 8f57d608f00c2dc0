# SPDX-License-Identifier: Apache-2.0
"""The state of a device as its registers tell it, in the form of `NetDevice.snapshot`."""

from __future__ import annotations

from vdpa_net.driver.handle import DeviceHandle
from vdpa_net.driver.pci_scan import Window, scan
from vdpa_net.wire import virtio_net, virtio_pci
from vdpa_net.wire.layout import RegisterMap
from vdpa_net.wire.lm import ring_state_name, unpack_ring_state


def read_state(handle: DeviceHandle) -> dict[str, object]:
    """The state of a device that nothing else drives meanwhile: it writes the select registers.

    Raises ProtocolError for a function without the virtio and LM structures, OptionError for one of no
    profile, and what the handle raises.
    """
    return _Reader(handle).state()


class _Reader:
    def __init__(self, handle: DeviceHandle) -> None:
        self._handle = handle
        self._function = scan(handle)

    def state(self) -> dict[str, object]:
        function, status = self._function, self._common("device_status")
        mac = self._handle.read(function.device.region, function.device.offset, virtio_net.MAC_BYTES)
        queues = [self._queue(index) for index in range(self._common("num_queues"))]
        control = {
            register.name: self._lm(register.name)
            for register in function.profile.registers
            if "[" not in register.name
        }
        states = {ring_state_name(index): self._ring_state(index) for index in range(len(queues))}
        return {
            "profile": function.profile.name,
            "vdpa": True,
            "mac": mac.hex(":"),
            "mtu": self._read(function.device, virtio_net.DEVICE_CFG, "mtu"),
            "status": status,
            "status_names": [str(bit.name) for bit in virtio_pci.Status if bit & status],
            "features_offered": virtio_net.feature_names(self._features("device")),
            "features": virtio_net.feature_names(self._features("driver")),
            "queues": queues,
            "lm": {**control, **states},
            "logging": control["LM_LOGGING_CTRL"] in function.profile.logging_on,
        }

    def _queue(self, index: int) -> dict[str, object]:
        self._select("queue_select", index)
        last_avail_idx, used_idx = unpack_ring_state(self._ring_state(index))
        enabled = bool(self._common("queue_enable"))
        return {
            "index": index,
            "size": self._common("queue_size"),
            "enabled": enabled,
            "running": enabled,
            "msix_vector": self._common("queue_msix_vector"),
            "desc": self._common("queue_desc"),
            "driver": self._common("queue_driver"),
            "device": self._common("queue_device"),
            "last_avail_idx": last_avail_idx,
            "used_idx": used_idx,
        }

    def _features(self, whose: str) -> int:
        word = 0
        for half in range(2):
            self._select(f"{whose}_feature_select", half)
            word |= self._common(f"{whose}_feature") << 32 * half
        return word

    def _ring_state(self, queue: int) -> int:
        return self._lm(ring_state_name(queue)) if queue < self._function.profile.max_queues else 0

    def _lm(self, name: str) -> int:
        return self._read(self._function.lm, self._function.profile.registers, name)

    def _common(self, name: str) -> int:
        return self._read(self._function.common, virtio_pci.COMMON_CFG, name)

    def _select(self, name: str, value: int) -> None:
        register, common = virtio_pci.COMMON_CFG[name], self._function.common
        data = value.to_bytes(register.width, "little")
        self._handle.write(common.region, common.offset + register.offset, data)

    def _read(self, window: Window, table: RegisterMap, name: str) -> int:
        register = table[name]
        data = self._handle.read(window.region, window.offset + register.offset, register.width)
        return int.from_bytes(data, "little")
