# SPDX-License-Identifier: Apache-2.0
"""QEMU's option strings: what is understood, and how the rest is refused."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vdpa_net.backend.loopback import Loopback
from vdpa_net.errors import OptionError
from vdpa_net.option_syntax import split_options
from vdpa_net.option_tables import DEVICE, VMM_SIDE
from vdpa_net.options import (
    LoopbackNetdev,
    NicDevice,
    NullNetdev,
    PcapNetdev,
    TapNetdev,
    VhostSocket,
    check_pair,
    parse_device,
    parse_netdev,
    parse_vhost_socket,
)
from vdpa_net.processes import make_device
from vdpa_net.qemu_arguments import attach_arguments
from vdpa_net.record import Record

SOURCE_NETDEV = "tap,id=hostnet1,script=no,downscript=no,vhost=off"
SOURCE_DEVICE = (
    "virtio-net-pci,netdev=hostnet1,id=net1,mac=56:4a:b7:4f:4d:a9,bus=pci.6,addr=0x0,"
    "iommu_platform=on,ats=on,vdpa=on"
)


def test_the_source_documents_netdev_is_accepted_as_it_stands() -> None:
    assert parse_netdev(SOURCE_NETDEV) == TapNetdev(id="hostnet1", ifname="tap%d")


def test_the_source_documents_device_is_accepted_as_it_stands() -> None:
    assert parse_device(SOURCE_DEVICE) == NicDevice(
        netdev="hostnet1",
        id="net1",
        mac="56:4a:b7:4f:4d:a9",
        bus="pci.6",
        addr="0x0",
        iommu_platform=True,
        ats=True,
        vdpa=True,
    )


def test_defaults_are_qemus() -> None:
    device = parse_device("virtio-net-pci")
    assert (device.vdpa, device.iommu_platform, device.ats) == (False, False, False)
    assert (device.rx_queue_size, device.tx_queue_size, device.host_mtu) == (256, 256, 1500)
    assert device.mac == "52:54:00:12:34:56"


def test_a_key_without_a_value_means_on() -> None:
    assert parse_device("virtio-net-pci,vdpa").vdpa is True


def test_two_commas_are_one_in_the_value() -> None:
    assert parse_netdev("tap,script=/opt/up,,now").script == "/opt/up,now"  # type: ignore[union-attr]


def test_the_last_of_equal_keys_counts() -> None:
    assert parse_device("virtio-net-pci,ats=on,ats=off").ats is False


def test_the_implied_key_may_be_written() -> None:
    assert parse_netdev("type=loopback,id=a") == LoopbackNetdev(id="a")
    assert parse_netdev("null,id=a,queues=511,source,rate_pps=10") == NullNetdev(
        id="a", queues=511, source=True, rate_pps=10
    )
    assert parse_netdev("pcap,file=a.pcapng,queues=2") == PcapNetdev(file="a.pcapng", queues=2)
    assert parse_netdev("tap,queues=256") == TapNetdev(queues=256)
    assert parse_device("driver=virtio-net-pci,id=n").id == "n"


QEMU_LISTS = """
    acpi-index addr aer any_layout ats bootindex busnr csum ctrl_guest_offloads ctrl_mac_addr
    ctrl_rx ctrl_rx_extra ctrl_vlan ctrl_vq disable-legacy disable-modern duplex ebpf-rss-fds
    event_idx failover failover_pair_id gso guest_announce guest_csum guest_ecn guest_rsc_ext
    guest_tso4 guest_tso6 guest_tunnel guest_tunnel_csum guest_ufo guest_uso4 guest_uso6 hash
    hash-ipv4 hash-ipv6 hash-ipv6ex hash-tcp4 hash-tcp6 hash-tcp6ex hash-udp4 hash-udp6 hash-udp6ex
    host_ecn host_mtu host_tso4 host_tso6 host_tunnel host_tunnel_csum host_ufo host_uso in_order
    indirect_desc ioeventfd iommu_platform mac migrate-extra modern-pio-notify mq mrg_rxbuf
    multifunction netdev notify_on_empty packed page-per-vq queue_reset rombar romfile romsize
    rsc_interval rss rx_queue_size speed sriov-pf status tx tx_queue_size use-disabled-flag
    use-started vectors virtio-backend virtio-pci-bus-master-bug-migration x-ats-page-aligned
    x-disable-legacy-check x-disable-pcie x-ignore-backend-features x-max-bounce-buffer-size
    x-mtu-bypass-backend x-pcie-ari-nextfn-1 x-pcie-deverr-init x-pcie-err-unc-mask x-pcie-ext-tag
    x-pcie-extcap-init x-pcie-flr-init x-pcie-lnkctl-init x-pcie-lnksta-dllla x-pcie-pm-init
    x-pcie-pm-no-soft-reset x-txburst x-txtimer
"""
"""Properties that QEMU 7.2 and 11.1 list for `-device virtio-net-pci,help`."""

QEMUS_PROPERTIES = QEMU_LISTS.split()


@pytest.mark.parametrize("name", QEMUS_PROPERTIES)
def test_every_property_of_qemus_device_is_known(name: str) -> None:
    """Accepted, or refused with a reason of its own."""
    try:
        parse_device(f"virtio-net-pci,{name}=0")
    except OptionError as error:
        assert "unknown" not in str(error)


def test_every_property_that_is_known_is_qemus_or_ours() -> None:
    ours = {"id", "bus", "vdpa", "queues", "order_platform"}
    assert set(DEVICE) | set(VMM_SIDE) == {*QEMUS_PROPERTIES, *ours}


@pytest.mark.parametrize(
    "off", ["gso", "guest_ufo", "host_ufo", "hash", "guest_rsc_ext", "aer", "page-per-vq"]
)
def test_what_the_device_lacks_may_be_switched_off(off: str) -> None:
    assert parse_device(f"virtio-net-pci,{off}=off") == NicDevice()


def test_json_says_the_same() -> None:
    """libvirt writes its arguments so."""
    text = (
        '{"driver":"virtio-net-pci","netdev":"n","rx_queue_size":1024,"vdpa":true,"csum":false,"bus":"pci.6"}'
    )
    assert parse_device(text) == parse_device(
        "virtio-net-pci,netdev=n,rx_queue_size=1024,vdpa=on,csum=off,bus=pci.6"
    )
    assert parse_netdev('{"type":"tap","id":"n","vhost":false}') == TapNetdev(id="n")


@pytest.mark.parametrize("name", ["virtio-net-pci-non-transitional", "virtio-net"])
def test_qemus_other_names_of_the_device_are_known(name: str) -> None:
    assert parse_device(f"{name},id=n") == NicDevice(id="n")


def test_what_the_vmm_does_goes_into_its_arguments() -> None:
    device = parse_device("virtio-net-pci,bootindex=1,romfile=,rombar=0,multifunction=on")
    assert device.vmm_side == {"bootindex": 1, "romfile": "", "rombar": 0, "multifunction": True}
    (last,) = [argument for argument in attach_arguments(device, "/s") if "vfio-user-pci" in argument]
    assert '"bootindex":1' in last
    assert '"multifunction":true' in last
    assert '"rombar":0' in last


def test_mtu_0_is_none_as_in_qemu() -> None:
    device = make_device(parse_device("virtio-net-pci,host_mtu=0"), Loopback())
    with device:
        assert "MTU" not in device.snapshot()["features_offered"]  # type: ignore[operator]
        assert device.region_read(4, 0x200A, 2) == b"\0\0"


@pytest.mark.parametrize("word", ["on", "yes", "true", "y"])
def test_every_spelling_of_on(word: str) -> None:
    assert parse_device(f"virtio-net-pci,vdpa={word}").vdpa is True


@pytest.mark.parametrize("word", ["off", "no", "false", "n"])
def test_every_spelling_of_off(word: str) -> None:
    assert parse_device(f"virtio-net-pci,vdpa=on,vdpa={word}").vdpa is False


def test_feature_switches_that_are_off_are_collected() -> None:
    device = parse_device("virtio-net-pci,csum=off,mrg_rxbuf=off,host_tso4=on,gso=off")
    assert device.disabled_features == {"csum", "mrg_rxbuf"}


def test_sizes_and_vectors_are_numbers() -> None:
    device = parse_device("virtio-net-pci,rx_queue_size=1024,tx_queue_size=0x100,vectors=4,host_mtu=9000")
    assert (device.rx_queue_size, device.tx_queue_size) == (1024, 256)
    assert (device.vectors, device.host_mtu) == (4, 9000)


def test_properties_that_ask_for_what_the_device_does_anyway_are_accepted() -> None:
    asked = "virtio-net-pci,disable-legacy=on,disable-modern=off,mq=off,rss=off,tx=bh"
    assert parse_device(asked) == NicDevice()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("tap,ifnam=vt0", ["tap", "'ifnam'", "did you mean 'ifname'?"]),
        ("tap,vhost=on", ["vhost=on", "no page would be logged"]),
        ("tap,vhost=maybe", ["vhost=maybe", "expected on or off"]),
        ("tap,queues=257", ["queues=257", "from 1 to 256"]),
        ("tap,fd=3", ["fd=3", "ifname="]),
        ("tab,id=a", ["'tab'", "did you mean 'tap'?"]),
        ("user,id=a", ["'user'", "expected tap or loopback or null or pcap"]),
        ("loopback,depth=0", ["depth=0", "from 1 to 65536"]),
        ("loopback,queues=512", ["queues=512", "from 1 to 511"]),
        ("null,queues=0", ["queues=0", "from 1 to 511"]),
        ("null,packet_bytes=59", ["packet_bytes=59", "from 60 to 65549"]),
        ("pcap,id=a", ["needs file=PATH"]),
        ("null,destination=1:2", ["destination=1:2", "six octets"]),
        ("", ["does not begin with a name"]),
        ("tap,", ["empty property name"]),
        ("tap,=x", ["empty property name"]),
        ('{"ifname":"vt0"}', ["does not have 'type'"]),
        ('{"type":"tap"', ["delimiter"]),
        ('{"type":"tap","ifname":["a"]}', ["ifname", "a text, a number or a boolean"]),
        ("tap,vhostfd=3", ["vhostfd=3", "no page would be logged"]),
        ("tap,br=br0", ["br=br0", "script=PROGRAM"]),
        ("tap,vnet_hdr=off", ["vnet_hdr=off", "csum=off"]),
        ("tap,sndbuf=1048576", ["sndbuf=1048576", "expected 0"]),
    ],
)
def test_a_bad_netdev_is_refused_by_name(text: str, words: list[str]) -> None:
    with pytest.raises(OptionError) as caught:
        parse_netdev(text)
    assert "--netdev" in str(caught.value)
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("e1000,netdev=a", ["'e1000'", "expected virtio-net-pci"]),
        ("virtio-net-pci,vpda=on", ["'vpda'", "did you mean 'vdpa'?"]),
        ("virtio-net-pci,bogus=1", ["unknown property 'bogus'"]),
        ("virtio-net-pci,mq=on,queues=2", ["queues=2", "belongs to --netdev"]),
        ("virtio-net-pci,disable-modern=on", ["disable-modern=on", "modern"]),
        ("virtio-net-pci,disable-legacy=off", ["disable-legacy=off", "modern"]),
        ("virtio-net-pci,gso=on", ["gso=on", "legacy"]),
        ("virtio-net-pci,rombar=2", ["rombar=2", "from 0 to 1"]),
        ("virtio-net-pci,rss=on", ["rss=on", "no RSS"]),
        ("virtio-net-pci,tx=timer", ["tx=timer", "expected bh"]),
        ("virtio-net-pci,page-per-vq=on", ["page-per-vq=on", "multiplier is 4"]),
        ("virtio-net-pci,evnt_idx=off", ["'evnt_idx'", "did you mean 'event_idx'?"]),
        ("virtio-net-pci-transitional", ["transitional", "expected virtio-net-pci"]),
        ("virtio-net-pcj", ["did you mean 'virtio-net-pci'?"]),
        ("virtio-net-pci,mac=52:54:00:12:34", ["mac=52:54:00:12:34", "six octets"]),
        ("virtio-net-pci,mac=53:54:00:12:34:56", ["mac=53:54:00:12:34:56", "multicast"]),
        ("virtio-net-pci,rx_queue_size=100", ["rx_queue_size=100", "power of two"]),
        ("virtio-net-pci,tx_queue_size=65536", ["tx_queue_size=65536", "32768"]),
        ("virtio-net-pci,host_mtu=67", ["host_mtu=67", "from 68 to 65535"]),
        ("virtio-net-pci,vectors=many", ["vectors=many", "a number"]),
        ("virtio-net-pci,ats=enabled", ["ats=enabled", "expected on or off"]),
    ],
)
def test_a_bad_device_is_refused_by_name(text: str, words: list[str]) -> None:
    with pytest.raises(OptionError) as caught:
        parse_device(text)
    assert "--device" in str(caught.value)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_a_device_that_names_another_netdev_is_refused() -> None:
    with pytest.raises(OptionError, match=r"netdev=hostnet2 .*id=hostnet1"):
        check_pair(parse_netdev(SOURCE_NETDEV), parse_device("virtio-net-pci,netdev=hostnet2"))


def test_a_device_that_names_its_netdev_or_none_is_accepted() -> None:
    netdev = parse_netdev(SOURCE_NETDEV)
    check_pair(netdev, parse_device(SOURCE_DEVICE))
    check_pair(netdev, parse_device("virtio-net-pci"))


NAMES = st.text(st.characters(codec="ascii", exclude_characters=",=\0", min_codepoint=33), min_size=1)
VALUES = st.text(st.characters(codec="ascii", exclude_characters="\0", min_codepoint=32))


@given(st.dictionaries(NAMES, VALUES))
def test_any_value_survives_the_escape(pairs: dict[str, str]) -> None:
    text = "tap" + "".join(f",{key}={value.replace(',', ',,')}" for key, value in pairs.items())
    assert split_options("--netdev", text, "type") == ("tap", pairs)


@given(st.text())
def test_no_text_raises_anything_but_an_option_error(text: str) -> None:
    for parse in (parse_netdev, parse_device):
        try:
            assert isinstance(parse(text), Record)
        except OptionError:
            continue


@given(st.text())
def test_no_property_raises_anything_but_an_option_error(text: str) -> None:
    for beginning in (
        "tap,",
        "loopback,",
        "virtio-net-pci,",
        "virtio-net-pci,mac=",
        "virtio-net-pci,vectors=",
    ):
        try:
            (parse_device if beginning.startswith("virtio") else parse_netdev)(beginning + text)
        except OptionError:
            continue


@pytest.mark.parametrize(
    ("text", "client", "server"),
    [
        ("/run/v.sock", False, True),
        ("/run/v.sock,server=on", False, True),
        ("/run/v.sock,server=off", False, False),
        ("/run/v.sock", True, False),
        ("/run/v.sock,server=off", True, False),
    ],
)
def test_a_vhost_socket_is_listened_on_or_connected_to(text: str, client: bool, server: bool) -> None:
    assert parse_vhost_socket(text, client=client) == VhostSocket(Path("/run/v.sock"), server)


@pytest.mark.parametrize(
    ("text", "client", "what"),
    [
        ("/run/v.sock,server=on", True, "exclude each other"),
        ("/run/v.sock,reconnect=1", False, "reconnect"),
        ("/run/v.sock,server=maybe", False, "server=maybe"),
        (",server=off", False, "does not begin with a name"),
    ],
)
def test_an_impossible_vhost_socket_is_refused_by_name(text: str, client: bool, what: str) -> None:
    with pytest.raises(OptionError, match=what):
        parse_vhost_socket(text, client=client)


def test_features_that_are_off_by_default_are_switched_on_by_name() -> None:
    device = parse_device("virtio-net-pci,packed=on,in_order=on,order_platform=on,queue_reset=on,csum=on")
    assert device.enabled_features == {"packed", "in_order", "order_platform"}
    assert device.disabled_features == set()
    assert parse_device("virtio-net-pci,packed=off,queue_reset=off").disabled_features == {
        "packed",
        "queue_reset",
    }
