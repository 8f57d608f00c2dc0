# SPDX-License-Identifier: Apache-2.0
"""The whole chain in one process: a guest's driver, or a vhost-user front end, down to the rings and back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from vdpa_net.backend.loopback import Loopback
from vdpa_net.device.net_device import NetDevice
from vdpa_net.driver.handle import DeviceHandle
from vdpa_net.driver.in_process import InProcessHandle
from vdpa_net.driver.vfio import VfioHandle
from vdpa_net.driver.vfio_user import VfioUserHandle
from vdpa_net.errors import PeerError
from vdpa_net.testing.dirty_log import DirtyLog
from vdpa_net.testing.frames import FrameMint
from vdpa_net.testing.guest_cpu import RX, TX, Wires
from vdpa_net.testing.guest_driver import GuestDriver
from vdpa_net.testing.guest_memory import GuestMemory
from vdpa_net.testing.vfio_kernel import FakeVfioKernel
from vdpa_net.testing.vhost_guest import HIGH, LAYOUT, MAC, VhostGuest
from vdpa_net.testing.vhost_side import VhostSide
from vdpa_net.transport.vfio_user.server import VfioUserServer
from vdpa_net.wire import virtio_net, virtio_pci

LOG_IOVA = 1 << 44


# --- a guest's driver on the device ---------------------------------------------------------------


@pytest.fixture(params=["in-process", "vfio-user", "vfio"])
def handle(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[DeviceHandle]:
    with ExitStack() as stack:
        device = NetDevice(Loopback(), mac=MAC, mtu=1400)
        stack.callback(device.close)
        if request.param == "in-process":
            yield stack.enter_context(InProcessHandle(device))
        elif request.param == "vfio":
            kernel = FakeVfioKernel(device, tmp_path)
            yield stack.enter_context(VfioHandle(kernel.address, system=kernel, sysfs=kernel.sysfs))
        else:
            stack.callback(VfioUserServer(tmp_path / "socket", device).stop)
            yield stack.enter_context(VfioUserHandle(tmp_path / "socket"))


@pytest.fixture
def driver(handle: DeviceHandle) -> Iterator[GuestDriver]:
    with GuestMemory(LAYOUT) as memory, GuestDriver(handle, memory, region=1) as made:
        yield made


def test_driver_finds_the_device_and_reads_its_configuration(driver: GuestDriver) -> None:
    driver.start()
    assert virtio_pci.Status.DRIVER_OK in driver.status
    config = virtio_net.DEVICE_CFG
    assert driver.read_device_config(config["mac"].offset, 6) == bytes.fromhex(MAC.replace(":", ""))
    assert driver.read_device_config(config["mtu"].offset, 2) == (1400).to_bytes(2, "little")
    assert driver.read_device_config(config["status"].offset, 2)[0] & virtio_net.S_LINK_UP
    assert driver.read_common("num_queues") == 3


def test_frames_travel_through_rings_and_back(driver: GuestDriver) -> None:
    driver.start()
    mint = FrameMint(1)
    for turn in range(20):
        frames = [mint.frame(10 * turn + n, 60 + 140 * n) for n in range(10)]
        assert driver.send(frames) == 10
        assert driver.receive(10) == frames
        driver.finish_transmit()


def test_control_queue_acknowledges_what_it_knows_and_refuses_the_rest(driver: GuestDriver) -> None:
    driver.start()
    promiscuous = (virtio_net.CTRL_RX, virtio_net.CTRL_RX_PROMISC)
    assert driver.control(*promiscuous, b"\1") == virtio_net.CTRL_OK
    address = bytes.fromhex("5254000000aa")
    assert driver.control(virtio_net.CTRL_MAC, virtio_net.CTRL_MAC_ADDR_SET, address) == virtio_net.CTRL_OK
    assert driver.read_device_config(virtio_net.DEVICE_CFG["mac"].offset, 6) == address
    assert driver.control(0x77, 0, b"") == virtio_net.CTRL_ERR


def test_stopped_queue_resumes_where_it_stood(driver: GuestDriver) -> None:
    driver.start()
    mint = FrameMint(1)
    driver.send([mint.frame(0, 500)])
    assert driver.receive(1) == [mint.frame(0, 500)]
    states = driver.stop_queues((TX, RX))
    assert states == {RX: (1, 1), TX: (1, 1)}
    driver.queues.transmit(mint.frame(1, 500))
    driver.publish()
    assert driver.ring_state(TX) == (1, 1)
    for queue in (RX, TX):
        driver.write_common("queue_select", queue)
        driver.write_common("queue_enable", 1)
    assert driver.receive(1) == [mint.frame(1, 500)]


def test_failed_log_start_leaves_the_queues_running(driver: GuestDriver, handle: DeviceHandle) -> None:
    driver.start()
    assert not driver.start_logging(LOG_IOVA, LOG_IOVA + 4096)
    assert not driver.start_logging(LOG_IOVA + 4096, LOG_IOVA)
    frame = FrameMint(1).frame(0, 800)
    driver.send([frame])
    assert driver.receive(1) == [frame]


def test_reset_clears_the_lm_block(driver: GuestDriver, handle: DeviceHandle) -> None:
    driver.start()
    log = DirtyLog.for_memory_end(HIGH + (8 << 20))
    size = -(-log.size_bytes // 4096) * 4096
    handle.dma_map(LOG_IOVA, size, log.fd, 0)
    assert driver.start_logging(LOG_IOVA, LOG_IOVA + log.size_bytes)
    driver.send([FrameMint(1).frame(0, 800)])
    driver.receive(1)
    driver.reset()
    marked = log.harvest()
    assert set(driver.rings[RX].device_pages()) <= marked
    assert [driver.read_lm(offset) for offset in (0, 0x10, 0x14, 0x18, 0x1C, 0x20, 0x24)] == [0] * 7
    log.close()


# --- a front end on the vhost socket --------------------------------------------------------------


@pytest.fixture
def guest(side: VhostSide) -> Iterator[VhostGuest]:
    made = VhostGuest(side.path)
    yield made
    made.close()


def test_front_end_carries_traffic(guest: VhostGuest, side: VhostSide) -> None:
    guest.front_end.connect()
    guest.run(200)
    bases = guest.front_end.stop()
    assert bases == [ring.used_idx for ring in guest.rings]
    assert side.violations() == []


def test_log_that_grows_replaces_the_old_one_at_once(guest: VhostGuest) -> None:
    guest.front_end.connect()
    small, large = (DirtyLog.for_memory_end(HIGH + (size << 20)) for size in (8, 64))
    guest.front_end.start_logging(small)
    guest.run(20)
    guest.front_end.start_logging(large)
    small.harvest()
    guest.run(20)
    guest.front_end.stop()
    assert small.harvest() == set()
    assert set(guest.rings[RX].device_pages()) <= large.harvest()
    small.close()
    large.close()


def test_clearing_log_all_stops_logging(guest: VhostGuest) -> None:
    guest.front_end.connect()
    log = DirtyLog.for_memory_end(HIGH + (8 << 20), 4096)
    guest.front_end.start_logging(log)
    guest.run(20)
    guest.front_end.stop_logging()
    assert set(guest.rings[RX].device_pages()) <= log.harvest()
    guest.run(20)
    assert log.harvest() == set()
    log.close()


def test_next_front_end_finds_a_fresh_device_after_one_hung_up_in_mid_traffic(side: VhostSide) -> None:
    for _ in range(3):
        guest = VhostGuest(side.path)
        guest.front_end.connect()
        guest.cpu.run(Wires(guest.front_end.kick, guest.front_end.call_fds))
        assert guest.cpu.wait_for_frames(30)
        guest.cpu.pause(leave_unsent=4)
        guest.close()
    assert side.violations() == []


def test_rings_outside_of_the_memory_table_are_refused_and_the_device_lives(side: VhostSide) -> None:
    guest = VhostGuest(side.path)
    guest.front_end.negotiate()
    guest.front_end.user_address = lambda gpa: 0x1000 + gpa  # type: ignore[method-assign]
    with pytest.raises(PeerError):
        guest.front_end.start()
    guest.close()
    healthy = VhostGuest(side.path)
    healthy.front_end.connect()
    healthy.run(20)
    healthy.close()


def test_stop_and_start_on_the_same_connection_goes_on(guest: VhostGuest) -> None:
    guest.front_end.connect()
    for _ in range(3):
        guest.run(30)
        guest.front_end.start(guest.front_end.stop())
    guest.run(30)
    assert guest.cpu.ledger.corrupted == []
    assert guest.cpu.ledger.received == sorted(set(guest.cpu.ledger.received))
