# SPDX-License-Identifier: Apache-2.0
"""`vdpa-net libvirt convert`, with the document's own block as its input."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from xml.etree import ElementTree

import pytest

from vdpa_net.cli import main
from vdpa_net.errors import OptionError
from vdpa_net.libvirt_domain import ARG, convert
from vdpa_net.options import parse_device, parse_netdev

BLOCK = """\
  <qemu:commandline>
    <qemu:arg value='-device'/>
    <qemu:arg value='intel-iommu,intremap=on,device-iotlb=on,aw-bits=48'/>
    <qemu:arg value='-netdev'/>
    <qemu:arg value='tap,id=hostnet1,script=no,downscript=no,vhost=off'/>
    <qemu:arg value='-device'/>
    <qemu:arg value='virtio-net-pci,netdev=hostnet1,id=net1,mac=56:4a:b7:4f:4d:a9,bus=pci.6,addr=0x0,iommu_platform=on,ats=on,vdpa=on'/>
  </qemu:commandline>
"""  # noqa: E501 - as the document has it
DOMAIN = f"""\
<domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>L1-src</name>
  <memory unit='MiB'>2048</memory>
  <os><type arch='x86_64' machine='q35'>hvm</type></os>
  <!-- kept -->
  <devices><emulator>/usr/bin/qemu-system-x86_64</emulator></devices>
{BLOCK}</domain>
"""


def arguments(xml: str) -> list[str]:
    root = ElementTree.fromstring(xml)
    return [arg.get("value", "") for arg in root.iter(ARG)]


def test_block_of_the_document_becomes_arguments_that_stock_qemu_takes() -> None:
    converted = convert(DOMAIN)
    option, viommu, device_option, device = arguments(converted.xml)
    assert (option, device_option) == ("-device", "-device")
    assert viommu == "intel-iommu,intremap=on,device-iotlb=on,aw-bits=48,caching-mode=on"
    assert json.loads(device) == {
        "driver": "vfio-user-pci",
        "bus": "pci.6",
        "id": "net1",
        "addr": "0x0",
        "socket": {"type": "unix", "path": "/run/vdpa-net/L1-src-net1.sock"},
    }
    assert "vdpa=on" not in converted.xml
    assert "<!-- kept -->" in converted.xml


def test_memory_is_shared_and_interrupts_can_be_remapped() -> None:
    root = ElementTree.fromstring(convert(DOMAIN).xml)
    assert root.find("memoryBacking/source[@type='memfd']") is not None
    assert root.find("memoryBacking/access[@mode='shared']") is not None
    assert root.find("features/ioapic[@driver='qemu']") is not None


def test_memory_that_the_domain_chose_stays() -> None:
    backing = "<memoryBacking><hugepages/><source type='file'/></memoryBacking>"
    root = ElementTree.fromstring(convert(DOMAIN.replace("<os>", backing + "<os>")).xml)
    assert len(root.findall("memoryBacking")) == 1
    assert root.find("memoryBacking/source[@type='file']") is not None
    assert root.find("memoryBacking/hugepages") is not None
    assert root.find("memoryBacking/access[@mode='shared']") is not None


def test_viommu_of_libvirt_gets_caching_mode() -> None:
    element = "<iommu model='intel'><driver intremap='on'/></iommu></devices>"
    text = re.sub(r"    <qemu:arg value='-device'/>\n    <qemu:arg value='intel.*\n", "", DOMAIN)
    root = ElementTree.fromstring(convert(text.replace("</devices>", element)).xml)
    assert root.find("devices/iommu/driver[@caching_mode='on'][@intremap='on']") is not None


def test_serve_command_is_one_that_the_command_line_takes() -> None:
    (device,) = convert(DOMAIN).devices
    words = device.command()
    assert words[:4] == ["vdpa-net", "serve", "--socket", "/run/vdpa-net/L1-src-net1.sock"]
    assert parse_netdev(words[words.index("--netdev") + 1]).id == "hostnet1"
    nic = parse_device(words[words.index("--device") + 1])
    assert (nic.mac, nic.vdpa, nic.ats, nic.iommu_platform) == ("56:4a:b7:4f:4d:a9", True, True, True)


def test_unit_runs_the_command_as_the_user_of_qemu() -> None:
    (device,) = convert(DOMAIN).devices
    unit = device.unit("/opt/bin/vdpa-net", "libvirt-qemu")
    (line,) = re.findall(r"^ExecStart=(.*)$", unit, re.M)
    assert shlex.split(line) == ["/opt/bin/vdpa-net", *device.command()[1:]]
    assert "\nUser=libvirt-qemu\n" in unit
    assert "\nAmbientCapabilities=CAP_NET_ADMIN\n" in unit


def test_other_arguments_and_netdevs_stay_where_they_are() -> None:
    more = (
        "<qemu:arg value='-netdev'/><qemu:arg value='user,id=other'/><qemu:arg value='-S'/>"
        "<qemu:arg value='-device'/><qemu:arg value='virtio-net-pci,netdev=other'/></qemu:commandline>"
    )
    words = arguments(convert(DOMAIN.replace("</qemu:commandline>", more)).xml)
    assert words[4:] == ["-netdev", "user,id=other", "-S", "-device", "virtio-net-pci,netdev=other"]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("<domain", "not XML"),
        ("<network/>", "expected <domain>"),
        ("<domain><name>a/b</name></domain>", "name 'a/b'"),
        ("<domain><name>plain</name></domain>", "vdpa=on"),
        (DOMAIN.replace("vdpa=on", "vdpa=off"), "vdpa=on"),
        (DOMAIN.replace("tap,id=hostnet1", "tap,id=hostnet2"), "no -netdev with id=hostnet1"),
        (DOMAIN.replace("ats=on", "atz=on"), "atz"),
    ],
)
def test_what_can_not_be_converted_says_why(text: str, what: str) -> None:
    with pytest.raises(OptionError, match=re.escape(what)):
        convert(text)


def test_command_writes_domain_command_and_unit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in.xml").write_text(DOMAIN)
    target = tmp_path / "out"
    argv = ["vdpa-net", "libvirt", "convert", str(tmp_path / "in.xml"), "--output", str(target)]
    monkeypatch.setattr("sys.argv", argv)
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    names = {"L1-src.xml", "L1-src-net1.sh", "vdpa-net-L1-src-net1.service"}
    assert {path.name for path in target.iterdir()} == names
    printed = capsys.readouterr().out
    assert all(name in printed for name in names)
    _, *_, made, served = (target / "L1-src-net1.sh").read_text().splitlines()
    assert made == "mkdir -p /run/vdpa-net"
    assert served.startswith("exec vdpa-net serve --socket /run/vdpa-net/")
