# SPDX-License-Identifier: Apache-2.0
"""What `vdpa-net lab boot` makes of its options, and the lab's DHCP server."""

from __future__ import annotations

import struct

import pytest

from vdpa_net.errors import OptionError
from vdpa_net.lab.boot.dhcp import message_type
from vdpa_net.lab.boot.options import BootOptions
from vdpa_net.options import TapNetdev, check_pair, parse_device, parse_netdev


def test_default_device_is_the_source_documents_line() -> None:
    options = BootOptions()
    device, netdev = parse_device(options.device_words), parse_netdev(options.netdev_words)
    check_pair(netdev, device)
    assert (device.mac, device.bus, device.addr) == ("56:4a:b7:4f:4d:a9", "pci.6", "0x0")
    assert device.vdpa
    assert device.iommu_platform
    assert device.ats
    assert options.cpus == 1


def test_options_reach_the_device_and_properties_of_the_user_count_before_ours() -> None:
    options = BootOptions(queues=4, packed=True, device="ats=off,rx_queue_size=1024", netdev="ifname=mine")
    device, netdev = parse_device(options.device_words), parse_netdev(options.netdev_words)
    assert device.mq
    assert device.rx_queue_size == 1024
    assert not device.ats
    assert isinstance(netdev, TapNetdev)
    assert (netdev.queues, netdev.ifname) == (4, "mine")
    assert options.cpus == 4


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"machine": "pc", "iommu": True}, "needs the machine q35"),
        ({"machine": "pc", "guest": "testpmd"}, "needs the machine q35"),
        ({"reference": True, "guest": "uefi"}, "--reference is for the guest linux"),
    ],
)
def test_what_does_not_go_together_is_refused(words: dict[str, object], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        BootOptions(**words)  # type: ignore[arg-type]


def test_dhcp_message_type_is_found_among_other_options() -> None:
    head = bytes(236) + bytes((99, 130, 83, 99))
    assert message_type(head + bytes((0, 61, 2, 1, 1, 53, 1, 3, 255))) == 3
    assert message_type(head + bytes((255,))) == 0
    assert message_type(head + bytes((53,))) == 0
    assert message_type(head[:-1]) == 0
    assert message_type(struct.pack("240x")) == 0
