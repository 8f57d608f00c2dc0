# SPDX-License-Identifier: Apache-2.0
"""The DeviceHandle on kernel VFIO: what it asks of the kernel, and what it tells people."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vdpa_net.backend.loopback import Loopback
from vdpa_net.device.net_device import NetDevice
from vdpa_net.driver.handle import DeviceHandle
from vdpa_net.driver.vfio import VfioHandle
from vdpa_net.driver.vfio_sysfs import PciAddress, PciFunction
from vdpa_net.errors import DmaError, OptionError, PeerError, PeerGone, ProtocolError
from vdpa_net.testing.vfio_kernel import (
    DEVICE_IOEVENTFD,
    DEVICE_RESET,
    GROUP_SET_CONTAINER,
    SET_IOMMU,
    FakeVfioKernel,
)

DEADLINE_S = 20
DOORBELL = 0x3000


@pytest.fixture
def device() -> Iterator[NetDevice]:
    with NetDevice(Loopback(), mac="52:54:00:00:00:2a") as made:
        yield made


@pytest.fixture
def kernel(device: NetDevice, tmp_path: Path) -> FakeVfioKernel:
    return FakeVfioKernel(device, tmp_path)


def connect(kernel: FakeVfioKernel) -> VfioHandle:
    return VfioHandle(kernel.address, system=kernel, sysfs=kernel.sysfs)


def test_handle_is_a_device_handle(kernel: FakeVfioKernel) -> None:
    with connect(kernel) as handle:
        as_declared: DeviceHandle = handle
        assert as_declared.region_size(4) > DOORBELL
        assert as_declared.region_size(5) == 0
        assert as_declared.read(7, 0, 4) == bytes.fromhex("f41a4110")
        with pytest.raises(PeerError, match="region 4"):
            handle.read(4, as_declared.region_size(4) - 2, 4)


@pytest.mark.usefixtures("no_fd_leak")
def test_everything_is_given_back_on_close(tmp_path: Path) -> None:
    with NetDevice(Loopback(), mac="52:54:00:00:00:2a") as device:
        kernel = FakeVfioKernel(device, tmp_path)
        handle = connect(kernel)
        fd = os.memfd_create("ram")
        os.ftruncate(fd, 1 << 16)
        handle.dma_map(0, 1 << 16, fd, 0)
        kick = os.eventfd(0)
        handle.set_irqs(0, [kick])
        handle.attach_kick(0, kick, 4, DOORBELL)
        os.close(fd)
        os.close(kick)
        handle.close()
        handle.close()
        assert kernel.opened == {}
        assert kernel.vectors == 0
        assert not device.space.mappings()


def test_container_is_set_up_in_the_order_that_the_kernel_asks_for(kernel: FakeVfioKernel) -> None:
    with connect(kernel):
        assert kernel.requests.index(GROUP_SET_CONTAINER) < kernel.requests.index(SET_IOMMU)


def test_reset_is_the_devices_own(kernel: FakeVfioKernel) -> None:
    with connect(kernel) as handle:
        handle.reset()
        assert DEVICE_RESET in kernel.requests


# --- DMA ---------------------------------------------------------------------------------------------


@pytest.fixture
def ram() -> Iterator[int]:
    fd = os.memfd_create("ram")
    os.ftruncate(fd, 1 << 20)
    os.pwrite(fd, b"here", 0x5000)
    yield fd
    os.close(fd)


def test_mapped_file_is_what_the_device_sees_at_the_iova(
    kernel: FakeVfioKernel, device: NetDevice, ram: int
) -> None:
    with connect(kernel) as handle:
        handle.dma_map(1 << 44, 0x2000, ram, 0x4000, writable=False)
        assert device.space.read((1 << 44) + 0x1000, 4) == b"here"
        assert not device.space.is_mapped(1 << 44, 4096, writable=True)
        handle.dma_unmap(1 << 44, 0x2000)
        assert not device.space.mappings()


def test_address_behind_the_iommus_width_is_refused_with_what_it_takes(
    kernel: FakeVfioKernel, ram: int
) -> None:
    kernel.iova_end = 1 << 39
    with connect(kernel) as handle:
        with pytest.raises(DmaError, match=r"\[0xfef00000, 0x7fffffffff\].*aw-bits=48") as caught:
            handle.dma_map(1 << 44, 0x1000, ram, 0)
        assert caught.value.errno == errno.EINVAL
        # Nothing is left of it: the same range can be tried again.
        kernel.iova_end = 1 << 48
        handle.dma_map(1 << 44, 0x1000, ram, 0)


def test_unmap_of_what_is_not_mapped_like_this_is_refused(kernel: FakeVfioKernel, ram: int) -> None:
    with connect(kernel) as handle:
        handle.dma_map(0, 0x2000, ram, 0)
        with pytest.raises(DmaError, match="no map"):
            handle.dma_unmap(0, 0x1000)
        handle.dma_unmap(0, 0x2000)


def test_file_that_is_too_short_is_refused_before_the_kernel_sees_it(
    kernel: FakeVfioKernel, ram: int
) -> None:
    with connect(kernel) as handle, pytest.raises(DmaError):
        handle.dma_map(0, 2 << 20, ram, 0)


# --- interrupts and doorbells ---------------------------------------------------------------------------


@pytest.mark.parametrize("resizes", [True, False])
def test_vectors_can_be_bound_one_by_one(kernel: FakeVfioKernel, device: NetDevice, resizes: bool) -> None:
    kernel.resizes_irqs = resizes
    fd = os.eventfd(0)
    with connect(kernel) as handle:
        for vector in range(device.num_vectors):
            handle.set_irqs(vector, [fd])
            handle.set_irqs(vector, [None])
        with pytest.raises(ProtocolError, match=f"the device has {device.num_vectors}"):
            handle.set_irqs(device.num_vectors, [fd])
    os.close(fd)


def test_kernel_rings_the_doorbells_until_it_is_told_not_to(kernel: FakeVfioKernel) -> None:
    fd = os.eventfd(0)
    with connect(kernel) as handle:
        handle.attach_kick(0, fd, 4, DOORBELL)
        handle.attach_kick(1, fd, 4, DOORBELL + 4)
        handle.attach_kick(0, None, 4, DOORBELL)
        assert kernel.requests.count(DEVICE_IOEVENTFD) == 3
        with pytest.raises(PeerError, match="region 4"):
            handle.attach_kick(0, fd, 4, 1 << 30)
    os.close(fd)


def test_thread_rings_the_doorbells_of_a_kernel_that_does_not(kernel: FakeVfioKernel) -> None:
    kernel.has_ioeventfd = False
    fds = [os.eventfd(0) for _ in range(2)]
    with connect(kernel) as handle:
        (device_fd,) = (fd for fd, what in kernel.opened.items() if what == "device")
        offsets = [(4 << 40) + DOORBELL + 4 * queue for queue in range(2)]
        for queue, fd in enumerate(fds):
            handle.attach_kick(queue, fd, 4, DOORBELL + 4 * queue)
        os.eventfd_write(fds[1], 1)
        wait_for(lambda: os.pread(device_fd, 2, offsets[1]) == b"\1\0")
        handle.attach_kick(1, None, 4, DOORBELL + 4)
        os.pwrite(device_fd, b"\xff\xff", offsets[1])
        os.eventfd_write(fds[1], 1)
        os.eventfd_write(fds[0], 1)
        wait_for(lambda: os.fstat(device_fd).st_size > 0 and os.eventfd_read(fds[1]) == 1)
        assert os.pread(device_fd, 2, offsets[1]) == b"\xff\xff"
    for fd in fds:
        os.close(fd)


def wait_for(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.001)


# --- on the way to VFIO ----------------------------------------------------------------------------------


def test_function_without_iommu_group_says_how_to_switch_the_iommu_on(kernel: FakeVfioKernel) -> None:
    (kernel.sysfs / "bus/pci/devices" / kernel.address / "iommu_group").unlink()
    with pytest.raises(OptionError, match=r"no IOMMU group.*intel_iommu=on"):
        connect(kernel)


@pytest.mark.parametrize("driver", ["virtio-pci", None])
def test_function_of_another_driver_says_how_to_bind_it(
    device: NetDevice, tmp_path: Path, driver: str | None
) -> None:
    kernel = FakeVfioKernel(device, tmp_path, driver=driver)
    with pytest.raises(OptionError) as caught:
        connect(kernel)
    message = str(caught.value)
    assert f"is bound to {driver or 'no driver'}, expected vfio-pci" in message
    steps = ["modprobe vfio-pci", "driver_override", "driver/unbind", "drivers_probe"]
    expected = [step for step in steps if driver or step != "driver/unbind"]
    assert [step for step in steps if step in message] == expected
    assert sorted(expected, key=message.index) == expected


def test_binding_writes_what_the_message_says(kernel: FakeVfioKernel) -> None:
    entry = kernel.sysfs / "bus/pci/devices" / kernel.address
    (entry / "driver").unlink()
    other = kernel.sysfs / "bus/pci/drivers/virtio-pci"
    other.mkdir(parents=True)
    (entry / "driver").symlink_to(other)
    PciFunction(PciAddress.parse("01:00.0"), kernel.sysfs).bind()
    assert (entry / "driver_override").read_text() == "vfio-pci"
    assert (other / "unbind").read_text() == kernel.address
    assert (kernel.sysfs / "bus/pci/drivers_probe").read_text() == kernel.address


def test_group_that_is_not_viable_names_who_is_in_the_way(kernel: FakeVfioKernel) -> None:
    kernel.viable = False
    neighbour = kernel.sysfs / "kernel/iommu_groups/7/devices/0000:01:00.1"
    neighbour.mkdir(parents=True)
    driver = kernel.sysfs / "bus/pci/drivers/e1000e"
    driver.mkdir(parents=True)
    (neighbour / "driver").symlink_to(driver)
    with pytest.raises(OptionError, match=r"not viable.*0000:01:00.1 \(e1000e\)"):
        connect(kernel)
    assert kernel.opened == {}


def test_missing_function_and_missing_module_are_told_apart(kernel: FakeVfioKernel) -> None:
    with pytest.raises(PeerGone, match=r"no PCI function 0000:02:00.0"):
        VfioHandle("0000:02:00.0", system=kernel, sysfs=kernel.sysfs)
    kernel.open = missing  # type: ignore[method-assign]
    with pytest.raises(OptionError, match="modprobe vfio-pci"):
        connect(kernel)


def missing(path: str) -> int:
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)


@pytest.mark.parametrize(
    ("number", "kind", "what"),
    [(errno.EACCES, OptionError, "chown"), (errno.EBUSY, PeerError, "another process uses the group")],
)
def test_group_that_can_not_be_opened_says_why(
    kernel: FakeVfioKernel, number: int, kind: type[Exception], what: str
) -> None:
    def refuse(path: str) -> int:
        raise OSError(number, os.strerror(number), path)

    kernel.open = refuse  # type: ignore[method-assign]
    with pytest.raises(kind, match=what):
        connect(kernel)


def test_device_that_has_gone_is_told_as_gone(kernel: FakeVfioKernel) -> None:
    handle = connect(kernel)

    def gone(fd: int, size: int, offset: int) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    kernel.pread = gone  # type: ignore[method-assign]
    with pytest.raises(PeerGone, match=r"0000:01:00.0: read"):
        handle.read(4, 0, 4)
    handle.close()


@pytest.mark.parametrize("text", ["", "01:00", "0000:01:00.8", "0000:01:00.0x", "eth0"])
def test_address_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(OptionError, match=r"expected one like 0000:01:00.0"):
        PciAddress.parse(text)
