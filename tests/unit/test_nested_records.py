# SPDX-License-Identifier: Apache-2.0
"""What drivers in level-1 guests did, from the device's events and from the words of DPDK's vhost library."""

from __future__ import annotations

import pytest

from vdpa_net.backend.loopback import Loopback
from vdpa_net.device.net_device import NetDevice
from vdpa_net.driver.in_process import InProcessHandle
from vdpa_net.errors import OptionError
from vdpa_net.lab.migrate.observe import wire_values
from vdpa_net.lab.nested.dpdk_vdpa import eal_arguments
from vdpa_net.lab.nested.log_line import log_line
from vdpa_net.lab.nested.record import device_records
from vdpa_net.lab.nested.run import NestedOptions
from vdpa_net.lab.nested.side import vring_messages
from vdpa_net.migration.verdict import Outcome
from vdpa_net.testing.frames import FrameMint
from vdpa_net.testing.guest_driver import GuestDriver
from vdpa_net.testing.guest_memory import GuestMemory

DPDK_LOG = """\
VHOST_CONFIG: (/run/lab/vhost) read message VHOST_USER_SET_VRING_BASE
VHOST_CONFIG: (/run/lab/vhost) vring base idx:0 last_used_idx:118 last_avail_idx:118.
VHOST_CONFIG: (/run/lab/vhost) vring base idx:1 last_used_idx:7 last_avail_idx:7.
VHOST_CONFIG: (/run/lab/vhost) read message VHOST_USER_GET_VRING_BASE
VHOST_CONFIG: (/run/lab/vhost) vring base idx:0 file:140
VHOST_CONFIG: (/run/lab/vhost) vring base idx:1 file:9
"""


def test_messages_of_dpdk_are_read_from_its_log() -> None:
    log = vring_messages(DPDK_LOG.splitlines())
    assert wire_values(log, "SET_VRING_BASE") == {0: 118, 1: 7}
    assert wire_values(log, "GET_VRING_BASE") == {0: 140, 1: 9}


def test_events_of_a_real_device_become_the_drivers_record() -> None:
    events: list[dict[str, object]] = []
    with NetDevice(Loopback(), mac="52:54:00:00:00:2a") as device:
        device.on_event(lambda name, info: events.append({"event": name, **info}))
        memory = GuestMemory([(0, 4 << 20)])
        with memory, InProcessHandle(device) as handle, GuestDriver(handle, memory) as driver:
            driver.start()
            driver.send([FrameMint(1).frame(0, 500)])
            driver.receive(1)
            driver.stop_queues((1, 0))
            receive, transmit = (record for record in device_records(events) if record["queue"] < 2)
            rings = driver.rings
            assert receive["size"] == rings[0].size
            assert (receive["ring_state_after_stop"], transmit["ring_state_after_stop"]) == (0x10001, 0x10001)
    assert receive["ring_state_before_enable"] == 0
    assert receive["started_ns"] < receive["stop_requested_ns"] <= receive["stopped_ns"]
    assert {0} != {receive["descriptor"], receive["driver"], receive["device"]}


def test_queue_that_starts_again_forgets_its_earlier_stop() -> None:
    started = {"event": "queue_started", "queue": 0, "size": 256, "desc": 1, "driver": 2, "device": 3}
    started |= {"last_avail_idx": 5, "used_idx": 5, "ns": 10}
    stopped = {"event": "queue_stopped", "queue": 0, "requested_ns": 11, "ns": 12}
    stopped |= {"last_avail_idx": 6, "used_idx": 6}
    (record,) = device_records([started, stopped, {**started, "ns": 20}])
    assert (record["started_ns"], record["stopped_ns"], record["ring_state_after_stop"]) == (20, None, None)


def test_used_ring_of_dpdks_own_is_told_as_the_guests() -> None:
    started = {"event": "queue_started", "queue": 0, "size": 256, "desc": 1, "driver": 2, "device": 3}
    started |= {"last_avail_idx": 5, "used_idx": 5, "ns": 10}
    (record,) = device_records([started, {**started, "device": (1 << 45) + 0x2000, "ns": 20}])
    assert (record["device"], record["started_ns"]) == (3, 20)


def figures(control: int, base: int = 1 << 44, marked: int = 5, *, starts: bool = True) -> dict[str, object]:
    low, high = base & 0xFFFF_FFFF, base >> 32
    registers = {"LM_LOGGING_CTRL": control, "LM_BASE_ADDR_LOW": low, "LM_BASE_ADDR_HIGH": high}
    started = [{"base": base, "end": base + 4096}] if starts else []
    return {"registers": registers, "started": started, "pages_marked": marked}


@pytest.mark.parametrize(
    ("seen", "device_logs", "outcome"),
    [
        (figures(1), True, Outcome.PASS),
        (figures(0), True, Outcome.FAIL),
        (figures(1, base=1 << 43), True, Outcome.FAIL),
        (figures(1, marked=0), True, Outcome.FAIL),
        (figures(0, base=0, marked=0, starts=False), False, Outcome.PASS),
        (figures(0, base=0, marked=0, starts=True), False, Outcome.FAIL),
        (figures(1, marked=0, starts=False), False, Outcome.FAIL),
        (figures(0, base=0, marked=1, starts=False), False, Outcome.FAIL),
    ],
)
def test_log_is_kept_by_the_device_at_its_place_or_not_by_it_at_all(
    seen: dict[str, object], device_logs: bool, outcome: Outcome
) -> None:
    assert log_line(seen, device_logs=device_logs, at=1 << 44 if device_logs else None).outcome is outcome


def test_software_live_migration_is_a_device_argument_of_dpdk() -> None:
    plain = eal_arguments("0000:01:00.0", software_live_migration=False)
    software = eal_arguments("0000:01:00.0", software_live_migration=True)
    assert plain[-1] == "0000:01:00.0,vdpa=1"
    assert software[-1] == "0000:01:00.0,vdpa=1,sw-live-migration=1"


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (NestedOptions(driver="kernel"), "expected vdpa-net or dpdk"),
        (NestedOptions(software_live_migration=True), "--driver dpdk"),
        (NestedOptions(driver="dpdk", iommu=True), "ACCESS_PLATFORM"),
        (NestedOptions(driver="dpdk", packed=True), "split rings only"),
        (NestedOptions(rounds=0), "rounds 0"),
        (NestedOptions(kill="l2-src"), "expected l1-dst, l2-dst, device-dst"),
        (NestedOptions(kill="l2-dst", rounds=2), "1 round, not 2"),
    ],
)
def test_impossible_options_are_refused_by_name(options: NestedOptions, what: str) -> None:
    with pytest.raises(OptionError, match=what):
        options.check()
