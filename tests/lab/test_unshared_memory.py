# SPDX-License-Identifier: Apache-2.0
"""RAM that QEMU does not share: its maps come without a file, and the device says what to change."""

from __future__ import annotations

import contextlib
import subprocess
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest

from vdpa_net.backend.null import Null
from vdpa_net.device.net_device import NetDevice
from vdpa_net.driver.handle import DeviceHandle
from vdpa_net.driver.in_process import InProcessHandle
from vdpa_net.driver.pci_scan import scan
from vdpa_net.lab import image
from vdpa_net.lab.machine import vfio_user_arguments
from vdpa_net.transport.vfio_user.server import VfioUserServer
from vdpa_net.wire.virtio_pci import COMMON_CFG, Status

pytestmark = [pytest.mark.vm, pytest.mark.timeout(120)]

DEADLINE_SECONDS = 60
RING_IOVA = 0x100_0000
"""Within the RAM of the machine, above what its firmware and option ROMs take."""


class Watched(NetDevice):
    """Tells when RAM has come, whether or not with a file."""

    def __init__(self, backend: Null) -> None:
        self.has_ram = threading.Event()
        super().__init__(backend, mac="52:54:00:00:00:01")

    def dma_map(
        self, iova: int, size: int, fd: int | None, offset: int, *, readable: bool, writable: bool
    ) -> None:
        super().dma_map(iova, size, fd, offset, readable=readable, writable=writable)
        if iova <= RING_IOVA < iova + size:
            self.has_ram.set()


def enable_queue(handle: DeviceHandle) -> None:
    """What a driver does whose ring lies in that RAM."""
    common = scan(handle).common

    def write(name: str, value: int) -> None:
        register = COMMON_CFG[name]
        data = value.to_bytes(register.width, "little")
        handle.write(common.region, common.offset + register.offset, data)

    for half, features in ((0, 0), (1, 1)):
        write("driver_feature_select", half)
        write("driver_feature", features)
    for bits in (0x1, 0x3, 0xB):
        write("device_status", bits)
    for name, address in (("desc", 0), ("driver", 0x4000), ("device", 0x8000)):
        write(f"queue_{name}", RING_IOVA + address)
    write("queue_enable", 1)
    write("device_status", 0xF)


def test_memory_of_a_real_qemu_that_is_not_shared_is_told_with_what_to_change(socket_dir: Path) -> None:
    qemu = image.require().qemu()
    with ExitStack() as stack:
        backend = stack.enter_context(contextlib.closing(Null()))
        device = stack.enter_context(Watched(backend))
        server = stack.enter_context(VfioUserServer(socket_dir / "vfio", device))
        words = qemu.argv(
            *("-machine", "q35,accel=tcg", "-m", "64", "-display", "none", "-nodefaults", "-S"),
            *("-object", "memory-backend-ram,id=ram,size=64M,share=off", "-numa", "node,memdev=ram"),
            *vfio_user_arguments(server.path),
        )
        log = stack.enter_context((socket_dir / "qemu.log").open("w+"))
        machine = subprocess.Popen(words, env=qemu.env(), stdout=log, stderr=log)
        stack.callback(machine.wait, DEADLINE_SECONDS)
        stack.callback(machine.terminate)
        assert device.has_ram.wait(DEADLINE_SECONDS), Path(log.name).read_text()
        handle = stack.enter_context(contextlib.closing(InProcessHandle(device)))
        enable_queue(handle)
        failed = [entry for entry in device.violations.entries if entry.what == "queue_start_failed"]
        assert len(failed) == 1, device.violations.entries
        assert "without a file descriptor" in failed[0].detail
        assert "share=on" in failed[0].detail
        common = scan(handle).common
        status = handle.read(common.region, common.offset + COMMON_CFG["device_status"].offset, 1)[0]
        assert status & Status.DEVICE_NEEDS_RESET
