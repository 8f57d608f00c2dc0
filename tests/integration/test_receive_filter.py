# SPDX-License-Identifier: Apache-2.0
"""What a driver asks for on the control queue, and which frames it then gets."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from vdpa_net.backend.loopback import Loopback
from vdpa_net.device.net_device import NetDevice
from vdpa_net.driver.in_process import InProcessHandle
from vdpa_net.testing.guest_driver import WANTED, GuestDriver
from vdpa_net.testing.guest_memory import GuestMemory
from vdpa_net.wire import virtio_net as net

OWN = bytes.fromhex("520000000001")
OTHER = bytes.fromhex("520000000002")
GROUP = bytes.fromhex("01005e000001")
BROADCAST = b"\xff" * 6
CONTROL = net.bits((net.F_CTRL_VLAN, net.F_CTRL_RX_EXTRA, net.F_GUEST_ANNOUNCE, net.F_CTRL_GUEST_OFFLOADS))
DONE = OTHER + OTHER + b"\x88\xb5"


class Station:
    """A device on a loopback and its driver: what it sends is what arrives, if it is wanted."""

    def __init__(self, device: NetDevice, driver: GuestDriver) -> None:
        self.device = device
        self.driver = driver

    def command(self, kind: int, number: int, data: bytes) -> None:
        assert self.driver.control(kind, number, data) == net.CTRL_OK

    def mode(self, number: int, on: bool) -> None:
        self.command(net.CTRL_RX, number, bytes([on]))

    def arriving(self, *frames: bytes) -> list[bytes]:
        """Those of the frames that come, in order."""
        before = self.counters()
        assert self.driver.send(frames) == len(frames)
        self.driver.finish_transmit()
        while True:
            now = self.counters()
            done = sum(now[name] - before[name] for name in ("packets", "drops_filtered", "drops_too_long"))
            if done == len(frames):
                break
        return self.driver.receive(now["packets"] - before["packets"])

    def counters(self) -> dict[str, int]:
        queues = self.device.snapshot()["queues"]
        return queues[0]["counters"]  # type: ignore[index, no-any-return]


@contextlib.contextmanager
def station(features: int = WANTED | CONTROL, mtu: int = 1500) -> Iterator[Station]:
    with ExitStack() as stack:
        device = stack.enter_context(NetDevice(Loopback(), mac=OWN.hex(":"), mtu=mtu))
        handle = stack.enter_context(contextlib.closing(InProcessHandle(device)))
        memory = stack.enter_context(GuestMemory([(0, 4 << 20)]))
        driver = stack.enter_context(GuestDriver(handle, memory, features=features))
        driver.start()
        yield Station(device, driver)
        assert device.violations.count == 0


def frame(destination: bytes, tag: int | None = None, payload: int = 46) -> bytes:
    tagging = b"" if tag is None else b"\x81\x00" + tag.to_bytes(2, "big")
    return destination + OTHER + tagging + b"\x88\xb5" + bytes(payload)


ALL = [frame(destination) for destination in (OWN, OTHER, GROUP, BROADCAST)]


def test_everything_passes_until_the_driver_switches_promiscuous_mode_off() -> None:
    with station() as guest:
        assert guest.arriving(*ALL) == ALL
        guest.mode(net.CTRL_RX_PROMISC, False)
        assert guest.arriving(*ALL) == [frame(OWN), frame(BROADCAST)]
        assert guest.counters()["drops_filtered"] == 2
        guest.mode(net.CTRL_RX_PROMISC, True)
        assert guest.arriving(*ALL) == ALL


def test_a_reset_lets_everything_pass_again() -> None:
    with station() as guest:
        guest.mode(net.CTRL_RX_PROMISC, False)
        guest.driver.reset()
        handle = guest.driver.handle
        with GuestMemory([(1 << 40, 4 << 20)]) as memory, GuestDriver(handle, memory) as next_driver:
            next_driver.start()
            assert Station(guest.device, next_driver).arriving(*ALL) == ALL
            next_driver.reset()


def test_receive_modes_decide_by_kind_of_address() -> None:
    with station() as guest:
        guest.mode(net.CTRL_RX_PROMISC, False)
        for number, wanted in (
            (net.CTRL_RX_ALLMULTI, [OWN, GROUP, BROADCAST]),
            (net.CTRL_RX_ALLUNI, [OWN, OTHER, GROUP, BROADCAST]),
            (net.CTRL_RX_NOMULTI, [OWN, OTHER, BROADCAST]),
            (net.CTRL_RX_NOUNI, [BROADCAST]),
            (net.CTRL_RX_NOBCAST, []),
        ):
            guest.mode(number, True)
            assert guest.arriving(*ALL) == [frame(destination) for destination in wanted]


def test_mac_tables_and_the_mac_address_are_followed() -> None:
    with station() as guest:
        guest.mode(net.CTRL_RX_PROMISC, False)
        count = (1).to_bytes(4, "little")
        guest.command(net.CTRL_MAC, net.CTRL_MAC_TABLE_SET, count + OTHER + count + GROUP)
        assert guest.arriving(*ALL) == ALL
        guest.command(net.CTRL_MAC, net.CTRL_MAC_TABLE_SET, bytes(8))
        guest.command(net.CTRL_MAC, net.CTRL_MAC_ADDR_SET, OTHER)
        assert guest.arriving(*ALL) == [frame(OTHER), frame(BROADCAST)]


@pytest.mark.parametrize("with_ctrl_rx", [True, False])
def test_the_vlan_table_is_followed(with_ctrl_rx: bool) -> None:
    without = net.bits((net.F_CTRL_RX, net.F_CTRL_RX_EXTRA))
    with station(WANTED | CONTROL if with_ctrl_rx else (WANTED | CONTROL) & ~without) as guest:
        if with_ctrl_rx:
            guest.mode(net.CTRL_RX_PROMISC, False)
        frames = [frame(OWN), *(frame(OWN, tag) for tag in (0, 5, 6, 0xE005))]
        assert guest.arriving(*frames) == [frame(OWN), frame(OWN, 0)]
        guest.command(net.CTRL_VLAN, net.CTRL_VLAN_ADD, b"\5\0")
        assert guest.arriving(*frames) == [frame(OWN), frame(OWN, 0), frame(OWN, 5), frame(OWN, 0xE005)]
        guest.command(net.CTRL_VLAN, net.CTRL_VLAN_DEL, b"\5\0")
        assert guest.arriving(*frames) == [frame(OWN), frame(OWN, 0)]


def test_without_ctrl_vlan_every_vlan_passes() -> None:
    with station(WANTED) as guest:
        guest.mode(net.CTRL_RX_PROMISC, False)
        assert guest.arriving(frame(OWN, 5)) == [frame(OWN, 5)]


def test_frames_beyond_a_negotiated_mtu_do_not_come() -> None:
    fits, exceeds = frame(OWN, payload=1000), frame(OWN, payload=1001)
    with station(mtu=1000) as guest:
        assert guest.arriving(fits, exceeds) == [fits]
        assert guest.counters()["drops_too_long"] == 1
    with station(WANTED & ~(1 << net.F_MTU), mtu=1000) as guest:
        assert guest.arriving(fits, exceeds) == [fits, exceeds]


def status_bits(guest: Station) -> int:
    register = net.DEVICE_CFG["status"]
    return int.from_bytes(guest.driver.read_device_config(register.offset, register.width), "little")


def test_after_a_restored_start_the_guest_is_asked_to_announce_itself_until_it_has() -> None:
    with station() as guest:
        generation = guest.driver.read_common("config_generation")
        assert status_bits(guest) == net.S_LINK_UP
        guest.arriving(frame(OWN))
        states = {queue: index * 0x10001 for queue, (index, _) in guest.driver.stop_queues((0, 1)).items()}
        guest.driver.start(states)
        assert status_bits(guest) == net.S_LINK_UP | net.S_ANNOUNCE
        assert guest.driver.read_common("config_generation") != generation
        guest.command(net.CTRL_ANNOUNCE, net.CTRL_ANNOUNCE_ACK, b"")
        assert status_bits(guest) == net.S_LINK_UP


@pytest.mark.parametrize("missing", [net.F_GUEST_ANNOUNCE, net.F_STATUS])
def test_a_guest_that_can_not_announce_itself_is_not_asked(missing: int) -> None:
    with station((WANTED | CONTROL) & ~(1 << missing)) as guest:
        guest.arriving(frame(OWN))
        states = {queue: index * 0x10001 for queue, (index, _) in guest.driver.stop_queues((0, 1)).items()}
        guest.driver.start(states)
        assert not status_bits(guest) & net.S_ANNOUNCE
