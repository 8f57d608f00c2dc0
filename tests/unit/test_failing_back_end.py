# SPDX-License-Identifier: Apache-2.0
"""What a device records when the back end or the data plane below it fails."""

from __future__ import annotations

import contextlib
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from fake_dataplane import FakeBackend, FakeRig

from conftest import NetworkNamespace
from vdpa_net.backend.tap import Tap
from vdpa_net.device.net_device import NetDevice
from vdpa_net.driver.in_process import InProcessHandle
from vdpa_net.errors import BackendError, StateError
from vdpa_net.testing.guest_driver import GuestDriver
from vdpa_net.testing.guest_memory import GuestMemory

DEADLINE_SECONDS = 20


@pytest.fixture
def rig() -> Iterator[FakeRig]:
    made = FakeRig(mq=False)
    yield made
    made.close()


def failing(message: str) -> Callable[..., None]:
    def fail(*_: object) -> None:
        raise BackendError(message)

    return fail


def needs_reset(rig: FakeRig) -> bool:
    return bool(rig.common("device_status") & 64)


def test_features_that_the_back_end_refuses_are_not_granted(rig: FakeRig) -> None:
    rig.backend.fail = BackendError("TUNSETOFFLOAD failed")
    assert not rig.negotiate()
    assert rig.kinds() == ["features_refused"]
    assert "TUNSETOFFLOAD failed" in rig.violations.entries[0].detail
    assert not needs_reset(rig)


def test_a_network_that_can_not_be_opened_needs_a_reset(
    rig: FakeRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rig.backend, "set_carrier", failing("TUNSETCARRIER failed"))
    rig.start()
    assert rig.kinds() == ["needs_reset"]
    assert "TUNSETCARRIER failed" in rig.violations.entries[0].detail
    assert needs_reset(rig)


def test_a_carrier_that_stays_on_is_recorded(rig: FakeRig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.start()
    monkeypatch.setattr(rig.backend, "set_carrier", failing("TUNSETCARRIER failed"))
    rig.set_common("device_status", 0)
    assert rig.kinds() == ["carrier"]
    assert rig.common("device_status") == 0


def test_queue_pairs_that_stay_active_are_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeBackend, "queue_pairs", 2)
    with contextlib.closing(FakeRig(mq=True)) as rig:
        rig.start()
        rig.device._virtio.pairs.command(2)
        with monkeypatch.context() as broken:
            broken.setattr(rig.plane, "set_active_pairs", failing("TUNSETQUEUE failed"))
            rig.set_common("device_status", 0)
        assert rig.kinds() == ["active_pairs"]
        assert rig.common("device_status") == 0


def test_a_control_queue_that_can_not_be_served_is_recorded(
    rig: FakeRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.start()
    control = rig.device.options.control_queue
    assert control is not None
    rig.plane.running[control] = (0,) * 7

    def fail(_: object) -> int:
        raise StateError("queue 2 is broken")

    monkeypatch.setattr(rig.plane, "process_control", fail)
    rig.device._virtio.serve_control_queue()
    assert rig.kinds() == ["broken"]
    assert not needs_reset(rig), "the data plane says which queues broke"


def test_an_announcement_that_can_not_be_sent_is_recorded(rig: FakeRig) -> None:
    told = threading.Event()
    rig.device.on_event(lambda name, _: told.set() if name == "announced" else None)
    rig.plane.on_transmit = failing("write to the tap: EIO")
    rig.device.announce()
    assert told.wait(DEADLINE_SECONDS)
    # It is sent again after 5 ms, which a busy machine may have reached by now.
    assert set(rig.kinds()) == {"announce_failed"}
    assert not needs_reset(rig)


@pytest.mark.tap
def test_a_tap_that_is_gone_is_recorded_once(netns: NetworkNamespace) -> None:
    with ExitStack() as stack:
        tap = stack.enter_context(contextlib.closing(netns.run(Tap, "gone0")))
        device = stack.enter_context(NetDevice(tap, mac="52:54:00:00:00:01"))
        handle = stack.enter_context(contextlib.closing(InProcessHandle(device)))
        memory = stack.enter_context(GuestMemory([(0, 16 << 20)]))
        driver = stack.enter_context(GuestDriver(handle, memory))
        recorded = threading.Event()
        device.violations.listen(lambda _: recorded.set())
        driver.start()
        # Without a buffer nobody looks at the tap.
        driver.queues.post_receive()
        driver.publish()
        netns.run(subprocess.run, ["ip", "link", "delete", "gone0"], check=True)
        assert recorded.wait(DEADLINE_SECONDS)
        assert [entry.what for entry in device.violations.entries] == ["backend_gone"]
