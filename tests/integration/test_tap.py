# SPDX-License-Identifier: Apache-2.0
"""The tap back end on the kernel's own taps, in a network namespace of the test's own."""

import contextlib
import errno
import fcntl
import os
import select
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import NetworkNamespace
from integration.vhost_steps import await_true
from vdpa_net.backend.tap import (
    ETHTOOL_GLINK,
    IFF_RUNNING,
    IFF_UP,
    VNET_HEADER_BYTES,
    Tap,
    ethtool,
    interface_flags,
)
from vdpa_net.errors import BackendError
from vdpa_net.wire import virtio_net

pytestmark = pytest.mark.tap

ETH_P_ALL = 3
PROTOCOL = 0x88B5  # IEEE 802.1 local experimental EtherType 1
FRAME = bytes.fromhex("ffffffffffff 020000000001") + struct.pack(">H", PROTOCOL) + bytes(range(46))
DEADLINE_SECONDS = 20
ETHTOOL_GTXCSUM = 0x16
ETHTOOL_GTSO = 0x1E
TUNSETPERSIST = 0x400454CB


@pytest.fixture
def tap(netns: NetworkNamespace) -> Iterator[Tap]:
    made = netns.run(Tap, "vt0")
    made.set_carrier(True)
    yield made
    made.close()


def packet_socket(ifname: str) -> socket.socket:
    opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(PROTOCOL))
    opened.bind((ifname, PROTOCOL))
    opened.settimeout(DEADLINE_SECONDS)
    return opened


def read_frame(tap: Tap) -> bytes:
    """The next frame of our protocol, with its header; the kernel's own (IPv6) don't count."""
    while True:
        ready, _, _ = select.select([tap], [], [], DEADLINE_SECONDS)
        assert ready, "nothing arrived on the tap"
        packet = os.read(tap.fileno(), 65536)
        if packet[VNET_HEADER_BYTES + 12 :][:2] == struct.pack(">H", PROTOCOL):
            return packet


def flags_of(netns: NetworkNamespace, name: str) -> int:
    def ask() -> int:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
            return interface_flags(control, name)

    return netns.run(ask)


def test_a_tap_is_created_and_up(netns: NetworkNamespace, tap: Tap) -> None:
    assert tap.name == "vt0"
    assert flags_of(netns, "vt0") & IFF_UP


def test_a_name_without_a_number_takes_the_first_free_one(netns: NetworkNamespace) -> None:
    first, second = netns.run(Tap), netns.run(Tap)
    assert (first.name, second.name) == ("tap0", "tap1")
    first.close()
    second.close()


def test_a_frame_of_the_host_arrives_behind_a_header_of_12_bytes(netns: NetworkNamespace, tap: Tap) -> None:
    with netns.run(packet_socket, "vt0") as host:
        host.send(FRAME)
        packet = read_frame(tap)
    assert packet[VNET_HEADER_BYTES:] == FRAME
    assert virtio_net.NET_HEADER.size == VNET_HEADER_BYTES


def test_a_frame_of_the_device_arrives_at_the_host_without_its_header(
    netns: NetworkNamespace, tap: Tap
) -> None:
    with netns.run(packet_socket, "vt0") as host:
        os.write(tap.fileno(), bytes(VNET_HEADER_BYTES) + FRAME)
        assert host.recv(65536) == FRAME


def test_an_empty_tap_does_not_block_its_reader(netns: NetworkNamespace, tap: Tap) -> None:
    with pytest.raises(BlockingIOError):
        while True:
            os.read(tap.fileno(), 65536)


def test_a_new_tap_has_no_carrier_until_it_is_given_one(netns: NetworkNamespace) -> None:
    made = netns.run(Tap, "vt0")
    assert not ask_ethtool(netns, "vt0", ETHTOOL_GLINK)
    made.set_carrier(True)
    assert ask_ethtool(netns, "vt0", ETHTOOL_GLINK)
    # The kernel's own thread sets this one.
    assert await_true(lambda: bool(flags_of(netns, "vt0") & IFF_RUNNING))
    made.close()


def test_without_carrier_nothing_is_queued_for_the_device(netns: NetworkNamespace) -> None:
    made = netns.run(Tap, "vt0")
    with netns.run(packet_socket, "vt0") as host:
        # The frame goes nowhere, which not every kernel calls an error.
        with contextlib.suppress(OSError):
            host.send(FRAME)
        made.set_carrier(True)
        host.send(FRAME[:-1] + b"\xaa")
        assert read_frame(made)[-1:] == b"\xaa"
    made.close()


def test_offloads_follow_the_features_and_need_checksums(netns: NetworkNamespace, tap: Tap) -> None:
    csum, tso4 = 1 << virtio_net.F_GUEST_CSUM, 1 << virtio_net.F_GUEST_TSO4
    assert offloads(netns, tap, csum | tso4) == {"tx-checksum-ip-generic": True, "tx-tcp-segmentation": True}
    assert offloads(netns, tap, csum) == {"tx-checksum-ip-generic": True, "tx-tcp-segmentation": False}
    assert offloads(netns, tap, tso4) == {"tx-checksum-ip-generic": False, "tx-tcp-segmentation": False}


def offloads(netns: NetworkNamespace, tap: Tap, features: int) -> dict[str, bool]:
    """Set the offloads, and read back from the interface what the host would leave to the guest."""
    tap.set_offloads(features)
    names = {"tx-checksum-ip-generic": ETHTOOL_GTXCSUM, "tx-tcp-segmentation": ETHTOOL_GTSO}
    return {name: bool(ask_ethtool(netns, tap.name, command)) for name, command in names.items()}


def ask_ethtool(netns: NetworkNamespace, name: str, command: int) -> int:
    def ask() -> int:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
            return ethtool(control, name, command)

    return netns.run(ask)


def test_a_tap_that_exists_is_taken_over_by_name(netns: NetworkNamespace) -> None:
    netns.run(make_persistent, "vt7")
    taken = netns.run(Tap, "vt7")
    assert taken.name == "vt7"
    taken.close()
    assert flags_of(netns, "vt7") & IFF_UP, "the tap is not ours, so it stays"


def make_persistent(name: str) -> None:
    made = Tap(name)
    fcntl.ioctl(made.fileno(), TUNSETPERSIST, 1)
    made.close()


def test_a_tap_in_use_is_refused(netns: NetworkNamespace, tap: Tap) -> None:
    with pytest.raises(BackendError, match=r"vt0.*another process uses it") as caught:
        netns.run(Tap, "vt0")
    assert caught.value.errno == errno.EBUSY


def test_an_interface_that_is_no_tap_is_refused(netns: NetworkNamespace) -> None:
    with pytest.raises(BackendError, match=r"lo.*is no tap"):
        netns.run(Tap, "lo")


def test_without_the_right_to_make_a_tap_the_message_says_what_to_do(netns: NetworkNamespace) -> None:
    def without_rights() -> int:
        if (child := os.fork()) == 0:
            code = 1
            try:
                os.setresuid(65534, 65534, 65534)
                Tap("vt0")
            except BackendError as error:
                code = 0 if "root" in str(error) else 2
            finally:
                os._exit(code)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    assert netns.run(without_rights) == 0


@pytest.mark.parametrize("name", ["", "a" * 16, "a/b", "a b", "..", "a:b"])
def test_an_impossible_name_is_refused_before_the_kernel_is_asked(name: str) -> None:
    with pytest.raises(BackendError, match="interface name") as caught:
        Tap(name)
    assert caught.value.errno == errno.EINVAL


def test_scripts_are_run_with_the_name(netns: NetworkNamespace, tmp_path: Path) -> None:
    script = tmp_path / "note"
    script.write_text(f'#!/bin/sh\necho "$0 $1" >> {tmp_path}/log\n')
    script.chmod(0o755)
    netns.run(Tap, "vt0", script=str(script), downscript=str(script)).close()
    assert (tmp_path / "log").read_text().splitlines() == [f"{script} vt0"] * 2


def test_a_script_that_fails_gives_the_tap_back(netns: NetworkNamespace) -> None:
    with pytest.raises(BackendError, match="exit code 1; expected 0"):
        netns.run(Tap, "vt0", script="/bin/false")
    netns.run(Tap, "vt0").close()


def test_a_script_that_is_not_there_is_named(netns: NetworkNamespace) -> None:
    with pytest.raises(BackendError, match=r"/no/such/script: No such file"):
        netns.run(Tap, "vt0", script="/no/such/script")


def test_closing_twice_does_no_harm_and_leaks_nothing(netns: NetworkNamespace, no_fd_leak: None) -> None:
    made = netns.run(Tap, "vt0")
    made.close()
    made.close()
