# SPDX-License-Identifier: Apache-2.0
"""What holds for a device whatever was done to it, and guest memory that it may reach."""

from __future__ import annotations

import os
from collections.abc import Callable

from vdpa_net import Loopback, NetDevice
from vdpa_net.errors import VdpaNetError
from vdpa_net.wire.lm import ring_state_name
from vdpa_net.wire.virtio_pci import COMMON_CFG, Status

MEMORY_BYTES = 1 << 20
CONFIG = 7
_IDENTITY_BYTES = 4
_SELECTS = ("device_feature_select", "driver_feature_select", "queue_select")


def make_device(profile: str) -> NetDevice:
    """A device with everything switched on, on a loopback."""
    return NetDevice(Loopback(), mac="52:54:00:12:34:56", profile=profile, ats=True)


def expected(error: BaseException) -> None:
    """Raises AssertionError unless this may be the answer to something that a stranger did."""
    if not isinstance(error, VdpaNetError):
        raise AssertionError(f"{type(error).__name__} is no answer: {error}") from error


class Memory:
    """The files that a client may hand over: memory, and things that are not what they should be."""

    def __init__(self) -> None:
        self.ram = os.memfd_create("ram")
        os.ftruncate(self.ram, MEMORY_BYTES)
        self.small = os.memfd_create("small")
        os.ftruncate(self.small, 4096)
        self.eventfd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        self.read_only = os.open(f"/proc/self/fd/{self.ram}", os.O_RDONLY | os.O_CLOEXEC)
        self.all = (self.ram, self.eventfd, self.small, self.null, self.read_only)

    def pick(self, number: int) -> int:
        """One of them; most numbers are RAM."""
        return self.all[number] if number < len(self.all) else self.ram

    def clear(self) -> None:
        """Zeros, as at the beginning."""
        os.ftruncate(self.ram, 0)
        os.ftruncate(self.ram, MEMORY_BYTES)


class Invariants:
    """Checks one device. `fresh` compares it with what it was when it was made."""

    def __init__(self, device: NetDevice) -> None:
        self.device = device
        self.virtio_bar = device.options.profile.virtio_bar
        profile = device.options.profile
        # The registers' files are asked, not the BARs: this is what a run spends most of its time on.
        self._common_cfg = device._virtio.common
        assert device._virtio.lm is not None
        self._lm = device._virtio.lm
        self._logging_ctrl = profile.registers["LM_LOGGING_CTRL"]
        self._queues = len(device._virtio.queues)
        absent = {ring_state_name(queue) for queue in range(self._queues, profile.max_queues)}
        self._lm_registers = [item for item in profile.registers if item.name not in absent]
        self._identity = device.region_read(CONFIG, 0, _IDENTITY_BYTES)
        self._image = self._registers()

    def hold(self) -> None:
        """After every step."""
        device, lm = self.device, self._lm
        logging = lm.load(self._logging_ctrl)
        assert logging == 0 or logging in device.options.profile.logging_on, f"LM_LOGGING_CTRL {logging:#x}"
        assert bool(logging) == (device.space.log_range() is not None), "the log and its register disagree"
        status = Status(self._common("device_status"))
        assert Status.FEATURES_OK in status or not self._running(), "a queue runs without FEATURES_OK"

    def fresh(self) -> None:
        """After a reset that the client was told of, or after it has left."""
        image = self._registers()
        changed = [name for name, value in image.items() if value != self._image[name]]
        assert not changed, f"a reset left {', '.join(changed)}"
        assert not self._running(), "a queue runs after a reset"
        assert self.device.space.log_range() is None

    def abandoned(self) -> None:
        """After the client has left."""
        self.fresh()
        assert self.device.region_read(CONFIG, 0, _IDENTITY_BYTES) == self._identity
        assert self.device._dma.count == 0
        assert not self.device.space.mappings()

    def _running(self) -> list[int]:
        # A snapshot tells it, too, but takes long: it lists every violation.
        plane = self.device._plane
        return [queue for queue in range(self._queues) if plane.is_running(queue)]

    def _common(self, name: str) -> int:
        return self._common_cfg.load(COMMON_CFG[name])

    def _select(self, name: str, value: int) -> None:
        self._common_cfg.store(COMMON_CFG[name], value, (1 << 8 * COMMON_CFG[name].width) - 1)

    def _registers(self) -> dict[str, int | bytes]:
        """Every register that a reset puts back, those behind selectors for each queue."""
        image: dict[str, int | bytes] = {name: self._common(name) for name in _SELECTS}
        image |= {name: self._common(name) for name in ("config_msix_vector", "device_status", "num_queues")}
        for queue in range(self._common("num_queues")):
            self._select("queue_select", queue)
            for register in COMMON_CFG:
                if register.name.startswith("queue_") and register.name != "queue_select":
                    image[f"{register.name}[{queue}]"] = self._common(register.name)
        for half in range(2):
            for whose in ("device", "driver"):
                self._select(f"{whose}_feature_select", half)
                image[f"{whose}_feature[{half}]"] = self._common(f"{whose}_feature")
        for name in _SELECTS:
            self._select(name, 0)
        image |= {register.name: self._lm.load(register) for register in self._lm_registers}
        return {**image, "mac": self.device._virtio.config.mac}


def tolerant(call: Callable[..., object], *arguments: object, **named: object) -> object:
    """The result of a call, None if it was refused."""
    try:
        return call(*arguments, **named)
    except Exception as error:
        expected(error)
        return None
