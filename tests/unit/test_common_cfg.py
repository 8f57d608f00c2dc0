# SPDX-License-Identifier: Apache-2.0
"""Common configuration, status machine, start and reset of the device, on a fake data plane."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from fake_dataplane import FakeRig

from vdpa_net.device.announce import rarp_frame
from vdpa_net.errors import BackendError, DmaError, OptionError
from vdpa_net.wire import virtio_net, virtio_pci

LM = 0x4000
RING_STATE_1 = LM + 0x24
DEADLINE_SECONDS = 10


@pytest.fixture
def rig() -> Iterator[FakeRig]:
    made = FakeRig()
    yield made
    made.close()


def test_feature_select_beyond_one_reads_zero(rig: FakeRig) -> None:
    assert rig.offered() >> virtio_pci.F_VERSION_1 & 1
    for name in ("device_feature", "driver_feature"):
        rig.set_common(f"{name}_select", 2)
        assert rig.common(name) == 0


def test_driver_feature_shows_what_was_written(rig: FakeRig) -> None:
    rig.negotiate()
    word = 0
    for half in range(2):
        rig.set_common("driver_feature_select", half)
        word |= rig.common("driver_feature") << 32 * half
    assert word == rig.offered()


def test_features_ok_is_refused_for_a_feature_that_is_not_offered(rig: FakeRig) -> None:
    assert not rig.negotiate(rig.offered() | 1 << 34)
    assert rig.kinds() == ["features_not_offered"]
    assert "RING_PACKED" in rig.violations.entries[0].detail


def test_features_ok_is_refused_without_version_1(rig: FakeRig) -> None:
    assert not rig.negotiate(rig.offered() & ~(1 << virtio_pci.F_VERSION_1))
    assert rig.kinds() == ["no_version_1"]


def test_features_ok_is_refused_for_a_feature_without_its_requirement(rig: FakeRig) -> None:
    assert not rig.negotiate(rig.offered() & ~(1 << virtio_net.F_CSUM))
    assert rig.kinds() == ["features_unmet"]
    assert "HOST_TSO4 requires CSUM" in rig.violations.entries[0].detail


@pytest.mark.parametrize("keep", [True, False])
def test_features_ok_is_granted_with_and_without_access_platform(rig: FakeRig, keep: bool) -> None:
    bit = 1 << virtio_pci.F_ACCESS_PLATFORM
    assert rig.offered() & bit
    assert rig.negotiate(rig.offered() if keep else rig.offered() & ~bit)
    assert rig.kinds() == []


def test_features_ok_is_refused_when_the_back_end_can_not(rig: FakeRig) -> None:
    rig.backend.fail = BackendError("no offloads here")
    assert not rig.negotiate()
    assert rig.violations.entries[0].detail == "no offloads here"


def test_features_are_fixed_after_features_ok(rig: FakeRig) -> None:
    rig.negotiate()
    rig.set_common("driver_feature", 0)
    assert rig.common("driver_feature") != 0
    assert rig.kinds() == ["driver_feature_after_features_ok"]


def test_status_bits_are_not_cleared_by_a_write(rig: FakeRig) -> None:
    rig.set_common("device_status", 3)
    rig.set_common("device_status", 1)
    assert rig.common("device_status") == 3
    assert rig.kinds() == ["status_bits_cleared"]


def test_driver_ok_without_features_ok_starts_nothing(rig: FakeRig) -> None:
    rig.set_up_queue(0)
    rig.set_common("device_status", 7)
    assert rig.common("device_status") == 3
    assert rig.kinds() == ["status_out_of_order"]
    assert not rig.plane.running


@pytest.mark.parametrize("value", [0, 3, 512, 0x8000, 0xFFFF])
def test_bad_queue_size_is_recorded_without_effect(rig: FakeRig, value: int) -> None:
    rig.set_common("queue_size", value)
    assert rig.common("queue_size") == 256
    assert rig.kinds() == ["bad_queue_size"]


def test_queue_setup_is_stored_per_queue(rig: FakeRig) -> None:
    for queue in range(3):
        rig.set_common("queue_select", queue)
        rig.set_common("queue_size", 16 << queue)
        rig.set_common("queue_desc", 0x1234_5678_9000 + queue)
    for queue in range(3):
        rig.set_common("queue_select", queue)
        assert rig.common("queue_size") == 16 << queue
        assert rig.common("queue_desc") == 0x1234_5678_9000 + queue
        assert rig.common("queue_notify_off") == queue


def test_queue_that_does_not_exist_reads_zero_and_refuses_writes(rig: FakeRig) -> None:
    rig.set_common("queue_select", 3)
    for name in ("queue_size", "queue_enable", "queue_notify_off", "queue_msix_vector", "queue_desc"):
        assert rig.common(name) == 0
    rig.set_common("queue_enable", 1)
    rig.set_common("queue_size", 16)
    assert rig.kinds() == ["queue_enable_no_such_queue", "queue_size_no_such_queue"]
    assert rig.common("num_queues") == 3


def test_enabled_queue_does_not_take_a_new_setup(rig: FakeRig) -> None:
    rig.set_up_queue(1)
    rig.set_common("queue_desc", 0)
    assert rig.common("queue_desc") == 0x11000
    assert rig.kinds() == ["queue_desc_while_enabled"] * 2, "8 bytes are two accesses"


@pytest.mark.parametrize(
    "name",
    [
        "device_feature",
        "num_queues",
        "config_generation",
        "queue_notify_off",
        "queue_notif_config_data",
        "admin_queue_index",
        "admin_queue_num",
    ],
)
def test_write_to_a_register_that_is_the_devices_own_is_recorded(rig: FakeRig, name: str) -> None:
    before = rig.common(name)
    rig.set_common(name, before ^ 1)
    assert rig.common(name) == before
    assert rig.kinds() == [f"read_only {name}"]


def test_driver_ok_opens_the_network_before_it_starts_the_queues(rig: FakeRig) -> None:
    rig.backend.calls.clear()
    rig.start()
    interesting = [call for call in rig.backend.calls if call[0] in ("flush", "carrier", "start", "offloads")]
    assert interesting == [
        ("offloads", rig.offered()),
        ("flush",),
        ("carrier", True),
        ("start", 0),
        ("start", 1),
        ("start", 2),
    ]
    size, desc, driver, device, last_avail_idx, used_idx, features = rig.plane.running[1]
    assert (size, desc, driver, device) == (256, 0x11000, 0x12000, 0x13000)
    assert (last_avail_idx, used_idx, features) == (0, 0, rig.offered())


def test_queue_enabled_after_driver_ok_starts_at_once(rig: FakeRig) -> None:
    rig.start(queues=(0,))
    assert list(rig.plane.running) == [0]
    rig.set_up_queue(1)
    assert list(rig.plane.running) == [0, 1]


def test_reset_stops_the_queues_and_then_takes_the_carrier_down(rig: FakeRig) -> None:
    rig.start()
    rig.backend.calls.clear()
    rig.set_common("device_status", 0)
    stops = [("stop", 0), ("stop", 1), ("stop", 2)]
    assert [call for call in rig.backend.calls if call[0] in ("stop", "carrier")] == [
        *stops,
        ("carrier", False),
    ]
    assert rig.common("device_status") == 0
    rig.set_common("queue_select", 1)
    assert rig.common("queue_enable") == rig.common("queue_desc") == 0
    assert rig.common("queue_msix_vector") == rig.common("config_msix_vector") == 0xFFFF


def test_queue_stop_needs_vdpa() -> None:
    rig = FakeRig(vdpa=False)
    try:
        rig.start()
        rig.set_common("queue_select", 0)
        rig.set_common("queue_enable", 0)
        assert rig.common("queue_enable") == 1
        assert 0 in rig.plane.running
        assert rig.kinds() == ["bad_queue_enable"]
        assert rig.read(0x3FFC, 4) == 0
    finally:
        rig.close()


def test_queue_that_can_not_start_sets_needs_reset_and_says_why(rig: FakeRig) -> None:
    rig.plane.fail_start = DmaError("0x1000 is not mapped")
    rig.device.dma_map(0x1000, 0x1000, None, 0, readable=True, writable=True)
    rig.start(queues=(0,))
    assert rig.common("device_status") & 64
    assert rig.kinds() == ["queue_start_failed"]
    assert "0x1000 is not mapped" in rig.violations.entries[0].detail
    assert "share=on" in rig.violations.entries[0].detail
    assert rig.read(0x1000, 1) == 2, "ISR: configuration interrupt"


def test_broken_queue_sets_needs_reset_from_the_monitor_thread(rig: FakeRig) -> None:
    told = threading.Event()
    rig.device.on_event(lambda name, _: told.set() if name == "needs_reset" else None)
    rig.start()
    rig.plane.running.pop(1)
    rig.plane.broken = [1]
    rig.plane.signal()
    assert told.wait(DEADLINE_SECONDS)
    assert rig.common("device_status") & 64
    rig.set_common("device_status", 0)
    assert rig.plane.broken == [], "a reset mends it"
    assert rig.common("device_status") == 0


def test_restored_start_announces_the_station(rig: FakeRig) -> None:
    announced = threading.Event()
    rig.plane.on_transmit = lambda _: announced.set()
    rig.negotiate()
    rig.set_up_queue(1, enable=False)
    rig.write(RING_STATE_1, 4, 0x0005_0005)
    rig.set_common("queue_enable", 1)
    rig.set_common("device_status", 15)
    assert rig.plane.running[1][4:6] == (5, 5)
    assert announced.wait(DEADLINE_SECONDS)
    assert rig.plane.frames[0] == rarp_frame(bytes.fromhex("525400aabbcc"))


def test_fresh_start_announces_nothing(rig: FakeRig) -> None:
    events: list[str] = []
    rig.device.on_event(lambda name, _: events.append(name))
    rig.negotiate()
    rig.set_up_queue(1, enable=False)
    rig.write(RING_STATE_1, 4, 0)
    rig.set_common("queue_enable", 1)
    rig.set_common("device_status", 15)
    assert "restored" not in events
    assert events[-1] == "started"


def test_detached_client_leaves_a_device_for_the_next_one(rig: FakeRig) -> None:
    rig.device.dma_map(0, 4096, 0, 0, readable=True, writable=True)
    rig.start()
    rig.device.detach_client()
    assert rig.common("device_status") == 0
    assert not rig.plane.running
    assert rig.space.maps == {}
    assert rig.plane.kick_override == {0: None, 1: None}
    assert set(rig.plane.call_fds.values()) == {None}
    rig.start()
    assert sorted(rig.plane.running) == [0, 1, 2]


@pytest.mark.parametrize(
    ("disabled", "gone"),
    [
        ({"csum"}, {"CSUM", "HOST_TSO4", "HOST_TSO6", "HOST_ECN"}),
        ({"GUEST_CSUM"}, {"GUEST_CSUM", "GUEST_TSO4", "GUEST_TSO6", "GUEST_ECN"}),
        ({"guest_tso4"}, {"GUEST_TSO4"}),
        (
            {"ctrl_vq"},
            {"CTRL_VQ", "CTRL_RX", "CTRL_RX_EXTRA", "CTRL_VLAN", "CTRL_MAC_ADDR", "GUEST_ANNOUNCE"}
            | {"CTRL_GUEST_OFFLOADS"},
        ),
        ({"mrg_rxbuf", "event_idx"}, {"MRG_RXBUF", "RING_EVENT_IDX"}),
        ({"RING_INDIRECT_DESC"}, {"RING_INDIRECT_DESC"}),
        ({"gso"}, set()),
    ],
)
def test_disabled_feature_takes_along_what_requires_it(disabled: set[str], gone: set[str]) -> None:
    plain, reduced = FakeRig(), FakeRig(disabled_features=frozenset(disabled))
    try:
        names = virtio_net.feature_names(plain.offered() & ~reduced.offered())
        assert set(names) == gone
        assert reduced.common("num_queues") == (2 if "ctrl_vq" in disabled else 3)
    finally:
        plain.close()
        reduced.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"disabled_features": frozenset({"guest_tso"})}, "did you mean guest_tso"),
        ({"mac": "52:54:00:aa:bb"}, "six bytes"),
        ({"mac": "53:54:00:aa:bb:cc"}, "unicast"),
        ({"mac": "00:00:00:00:00:00"}, "unicast"),
        ({"mtu": 67}, "68 to 65535"),
        ({"rx_queue_size": 300}, "power of 2"),
        ({"tx_queue_size": 65536}, "power of 2"),
        ({"vectors": 0}, "1 to 2048"),
        ({"profile": "ifc"}, "there are vdpa, ifcvf, ifcvf-linux"),
    ],
)
def test_impossible_options_are_refused_by_name(options: dict[str, object], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        FakeRig(**options)


def test_two_threads_can_use_a_device_at_once(rig: FakeRig) -> None:
    failed: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(30):
                rig.start()
                rig.device.snapshot()
                rig.device.reset()
        except BaseException as error:
            failed.append(error)

    # Register sequences of two drivers mix here, so only what every access guarantees by itself can hold.
    threads = [threading.Thread(target=rig.device.snapshot), threading.Thread(target=work)]
    for thread in threads:
        thread.start()
    for _ in range(200):
        rig.device.region_read(4, 0, 64)
    for thread in threads:
        thread.join(DEADLINE_SECONDS)
    assert not failed
