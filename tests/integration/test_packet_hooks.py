# SPDX-License-Identifier: Apache-2.0
"""Hooks that see, change and drop packets, between a guest's driver and a loopback."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from vdpa_net import DROP, Loopback, NetDevice, Packet
from vdpa_net.device.packet_hooks import PacketAnswer
from vdpa_net.driver.in_process import InProcessHandle
from vdpa_net.errors import StateError
from vdpa_net.record import replace
from vdpa_net.testing.frames import FrameMint, read_stamp
from vdpa_net.testing.guest_driver import GuestDriver
from vdpa_net.testing.guest_memory import GuestMemory

MAC = "52:54:00:00:00:01"
MINT = FrameMint(1)
FRAMES = [MINT.frame(number, 60 + 97 * number) for number in range(12)]
DEADLINE_SECONDS = 30


@contextlib.contextmanager
def guest(device: NetDevice, pairs: int = 1) -> Iterator[GuestDriver]:
    with ExitStack() as stack:
        stack.enter_context(device)
        handle = stack.enter_context(contextlib.closing(InProcessHandle(device)))
        memory = stack.enter_context(GuestMemory([(0, 8 << 20)]))
        driver = stack.enter_context(GuestDriver(handle, memory, pairs=pairs))
        driver.start()
        if pairs > 1:
            driver.set_active_pairs(pairs)
        yield driver


def counters(device: NetDevice, queue: int) -> dict[str, int]:
    queues = device.snapshot()["queues"]
    return queues[queue]["counters"]  # type: ignore[index, no-any-return]


def test_a_hook_sees_each_packet_both_ways_with_its_pair() -> None:
    device, seen = NetDevice(Loopback(2), mac=MAC, mq=True), list[Packet]()
    device.on_packet(seen.append)
    with guest(device, 2) as driver:
        for pair in (0, 1):
            driver.send(FRAMES, pair)
            assert driver.receive(len(FRAMES), pair=pair) == FRAMES
            driver.finish_transmit(pair=pair)
    for pair in (0, 1):
        for to_guest in (False, True):
            frames = [packet.frame for packet in seen if (packet.pair, packet.to_guest) == (pair, to_guest)]
            assert frames == FRAMES
    assert {len(packet.header) for packet in seen} == {12}


def test_a_hook_changes_and_drops_packets() -> None:
    device = NetDevice(Loopback(), mac=MAC)

    def hook(packet: Packet) -> PacketAnswer:
        number = read_stamp(packet.frame)
        if not packet.to_guest:
            return DROP if number == 0 else MINT.frame(100 + (number or 0), 1514)
        if number == 101:
            return DROP
        return replace(packet, frame=packet.frame, header=bytes(12))

    device.on_packet(hook)
    with guest(device) as driver:
        driver.send(FRAMES[:4])
        assert driver.receive(2) == [MINT.frame(102, 1514), MINT.frame(103, 1514)]
        driver.finish_transmit()
        assert (counters(device, 1)["drops_hook"], counters(device, 0)["drops_hook"]) == (1, 1)
        assert counters(device, 1)["packets"] == 3


def test_a_subclass_overrides_a_method() -> None:
    class Odd(NetDevice):
        def packet_from_guest(self, packet: Packet) -> PacketAnswer:
            return None if (read_stamp(packet.frame) or 0) % 2 else DROP

    with guest(Odd(Loopback(), mac=MAC)) as driver:
        driver.send(FRAMES)
        assert driver.receive(6) == FRAMES[1::2]


def test_hooks_are_asked_in_order_until_they_are_taken_away() -> None:
    device = NetDevice(Loopback(), mac=MAC)
    remove_first = device.on_packet(lambda packet: packet.frame + b"a" if packet.to_guest else None)
    remove_second = device.on_packet(lambda packet: packet.frame + b"b" if packet.to_guest else None)
    with guest(device) as driver:
        for suffix, remove in ((b"ab", remove_first), (b"b", remove_second), (b"", remove_second)):
            driver.send(FRAMES[:2])
            assert driver.receive(2) == [frame + suffix for frame in FRAMES[:2]]
            remove()


@pytest.mark.parametrize("answer", [b"", bytes(70000), 7, Packet(False, 0, bytes(10), bytes(60))])
def test_a_hook_that_fails_drops_its_packet_and_the_device_lives_on(
    answer: object, caplog: pytest.LogCaptureFixture
) -> None:
    device = NetDevice(Loopback(), mac=MAC)
    remove = device.on_packet(lambda _: answer)  # type: ignore[arg-type, return-value]
    with guest(device) as driver:
        driver.send(FRAMES[:1])
        driver.finish_transmit()
        assert counters(device, 1)["drops_hook"] == 1
        assert "a packet hook failed" in caplog.text
        remove()
        driver.send(FRAMES)
        assert driver.receive(len(FRAMES)) == FRAMES


def test_a_hook_may_use_its_device_but_not_close_it() -> None:
    device, found = NetDevice(Loopback(), mac=MAC), list[object]()

    def hook(packet: Packet) -> None:
        if packet.to_guest:
            return
        found.append(device.snapshot()["active_pairs"])
        with pytest.raises(StateError, match="packet hook"):
            device.close()

    device.on_packet(hook)
    with guest(device) as driver:
        driver.send(FRAMES[:3])
        assert driver.receive(3) == FRAMES[:3]
    assert found == [1, 1, 1]


def test_a_hook_may_reset_its_device() -> None:
    device = NetDevice(Loopback(), mac=MAC)
    done = threading.Event()

    def hook(_: Packet) -> None:
        device.reset()
        done.set()

    device.on_packet(hook)
    with guest(device) as driver:
        driver.send(FRAMES[:1])
        assert done.wait(DEADLINE_SECONDS)
        assert not driver.status


def held(device: NetDevice) -> tuple[threading.Event, threading.Event, Callable[[], None]]:
    """A hook that stands still at the first packet of the guest until it is let go."""
    entered, let_go = threading.Event(), threading.Event()

    def hook(packet: Packet) -> None:
        if not packet.to_guest and not entered.is_set():
            entered.set()
            assert let_go.wait(DEADLINE_SECONDS)

    return entered, let_go, device.on_packet(hook)


def test_a_packet_that_a_hook_looks_at_during_a_stop_is_sent_once_after_the_next_start() -> None:
    device = NetDevice(Loopback(), mac=MAC)
    entered, let_go, _ = held(device)
    with guest(device) as driver:
        driver.send(FRAMES)
        assert entered.wait(DEADLINE_SECONDS)
        states = driver.stop_queues((1, 0))
        assert states[1] == (0, 0), "not taken, so not lost"
        let_go.set()
        driver.start({queue: used << 16 | avail for queue, (avail, used) in states.items()})
        assert driver.receive(len(FRAMES)) == FRAMES
        driver.finish_transmit()
        assert counters(device, 1)["packets"] == len(FRAMES)


def test_closing_waits_for_a_hook_and_not_for_ever() -> None:
    device = NetDevice(Loopback(), mac=MAC)
    entered, let_go, _ = held(device)
    with guest(device) as driver:
        driver.send(FRAMES)
        assert entered.wait(DEADLINE_SECONDS)
        closing = threading.Thread(target=device.close)
        closing.start()
        let_go.set()
        closing.join(DEADLINE_SECONDS)
        assert not closing.is_alive()


def test_a_hook_comes_and_goes_under_traffic() -> None:
    device = NetDevice(Loopback(), mac=MAC)
    with guest(device) as driver:
        for turn in range(20):
            remove = device.on_packet(lambda _: None)
            driver.send(FRAMES)
            if turn % 2:
                remove()
            assert driver.receive(len(FRAMES)) == FRAMES
            driver.finish_transmit()
            remove()
        assert counters(device, 0)["packets"] == 20 * len(FRAMES)
