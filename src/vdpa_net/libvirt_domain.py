# SPDX-License-Identifier: Apache-2.0
"""A libvirt domain with `-device virtio-net-pci,...,vdpa=on`, converted for stock QEMU and a served device.

The argument was one of a QEMU that carried the device itself. What comes out is the domain with vfio-user-pci
in its place, and for each device the command that serves it and a systemd unit for the command.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

from vdpa_net.errors import OptionError
from vdpa_net.options import NicDevice, check_pair, parse_device, parse_netdev
from vdpa_net.qemu_arguments import attach_properties

QEMU_NAMESPACE = "http://libvirt.org/schemas/domain/qemu/1.0"
COMMANDLINE = f"{{{QEMU_NAMESPACE}}}commandline"
ARG = f"{{{QEMU_NAMESPACE}}}arg"
RUN_DIRECTORY = "/run/vdpa-net"
VIOMMU_DRIVER = "intel-iommu"


@dataclass(frozen=True)
class ServedDevice:
    """A device of the domain, as `vdpa-net serve` takes it."""

    name: str
    netdev: str
    device: str
    socket: str

    def command(self) -> list[str]:
        """The command that serves it."""
        words = ["vdpa-net", "serve", "--socket", self.socket]
        return [*words, "--netdev", self.netdev, "--device", self.device]

    def unit(self, executable: str, user: str) -> str:
        """A systemd unit for the command, as the user that QEMU runs as: both open the same socket."""
        _, *words = self.command()
        command = shlex.join([executable, *words]).replace("%", "%%").replace("$", "$$")
        return f"""\
[Unit]
Description=vdpa net device {self.name}
Before=libvirt-guests.service

[Service]
ExecStart={command}
User={user}
AmbientCapabilities=CAP_NET_ADMIN
RuntimeDirectory={Path(RUN_DIRECTORY).name}
RuntimeDirectoryPreserve=yes
LimitNOFILE=65536
Restart=on-failure

[Install]
WantedBy=multi-user.target
"""


@dataclass
class Converted:
    """What came out: the domain's name and XML, its devices, and what a person should know."""

    name: str
    xml: str
    devices: list[ServedDevice] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def convert(text: str) -> Converted:
    """Convert a domain. Raises OptionError for XML that is none, or has nothing to convert."""
    domain = _parse(text)
    name = (domain.findtext("name") or "").strip()
    if not re.fullmatch(r"[\w.+-]+", name):
        raise OptionError(f"the domain's name {name!r}: expected one of letters, digits and . _ + -")
    commandline = domain.find(COMMANDLINE)
    words = [] if commandline is None else [arg.get("value", "") for arg in commandline.findall(ARG)]
    converted = Converted(name, "")
    kept = _take_devices(words, converted)
    if commandline is None or not converted.devices:
        raise OptionError(
            f"domain {name} has no <qemu:commandline> argument `-device virtio-net-pci,...,vdpa=on`"
        )
    _replace_arguments(commandline, kept)
    _share_memory(domain)
    _prepare_viommu(domain, kept, converted)
    converted.notes.append("QEMU 10.1 or newer has vfio-user-pci: <emulator> has to be one")
    ElementTree.indent(domain)
    converted.xml = ElementTree.tostring(domain, encoding="unicode") + "\n"
    return converted


def _parse(text: str) -> ElementTree.Element:
    ElementTree.register_namespace("qemu", QEMU_NAMESPACE)
    try:
        builder = ElementTree.TreeBuilder(insert_comments=True)
        root = ElementTree.fromstring(text, ElementTree.XMLParser(target=builder))
    except ElementTree.ParseError as error:
        raise OptionError(f"not XML: {error}") from error
    if root.tag != "domain":
        raise OptionError(f"the root element is <{root.tag}>, expected <domain>")
    return root


def _take_devices(words: Sequence[str], converted: Converted) -> list[str]:
    """The arguments without the devices and their netdevs; the devices go to `converted`."""
    pairs = _pairs(words)
    netdevs = {parse_id(value): value for option, value in pairs if option == "-netdev"}
    taken: set[str] = set()
    kept: list[str] = []
    for option, value in pairs:
        if option == "-device" and is_vdpa(value):
            kept += ["-device", _attach(value, netdevs, taken, converted)]
        elif option == "-device" and value.split(",")[0] == VIOMMU_DRIVER:
            # In front of the device: QEMU gives a vIOMMU only to what comes after it.
            kept = ["-device", with_caching_mode(value), *kept]
        else:
            kept += [option, value] if value else [option]
    rest = [pair for pair in _pairs(kept) if not _is_of(*pair, taken)]
    return [word for pair in rest for word in pair if word]


def _pairs(words: Sequence[str]) -> list[tuple[str, str]]:
    """Options with their values; an option without one has an empty value."""
    pairs: list[tuple[str, str]] = []
    rest = list(words)
    while rest:
        option = rest.pop(0)
        has_value = bool(rest) and not rest[0].startswith("-")
        pairs.append((option, rest.pop(0) if has_value else ""))
    return pairs


def _is_of(option: str, value: str, netdevs: set[str]) -> bool:
    return option == "-netdev" and parse_id(value) in netdevs


def _attach(value: str, netdevs: dict[str, str], taken: set[str], converted: Converted) -> str:
    device = parse_device(value)
    if device.netdev not in netdevs:
        raise OptionError(f"-device {value}: there is no -netdev with id={device.netdev or '(none)'}")
    netdev = netdevs[device.netdev]
    check_pair(parse_netdev(netdev), device)
    taken.add(device.netdev)
    name = f"{converted.name}-{device.id or f'net{len(converted.devices)}'}"
    socket = f"{RUN_DIRECTORY}/{name}.sock"
    converted.devices.append(ServedDevice(name, netdev, value, socket))
    return attach_json(device, socket)


def attach_json(device: NicDevice, socket: str) -> str:
    """The value of QEMU's -device that attaches the served device, on the bus that it had."""
    return json.dumps(attach_properties(device, socket, bus=device.bus or None), separators=(",", ":"))


def is_vdpa(value: str) -> bool:
    """Whether a -device argument is the device that stock QEMU refuses."""
    driver, *properties = value.split(",")
    return driver.startswith("virtio-net") and any(item in ("vdpa=on", "vdpa=true") for item in properties)


def parse_id(value: str) -> str:
    """The id of a -netdev argument, empty if it has none."""
    return next((item[3:] for item in value.split(",") if item.startswith("id=")), "")


def with_caching_mode(value: str) -> str:
    """A vIOMMU argument with caching-mode=on: without it QEMU does not tell the device of translations."""
    kept = [item for item in value.split(",") if not item.startswith("caching-mode=")]
    return ",".join([*kept, "caching-mode=on"])


def _replace_arguments(commandline: ElementTree.Element, words: Sequence[str]) -> None:
    for arg in commandline.findall(ARG):
        commandline.remove(arg)
    for word in words:
        ElementTree.SubElement(commandline, ARG, {"value": word})


def _share_memory(domain: ElementTree.Element) -> None:
    """The device maps the guest's RAM: it has to be a file that both processes share."""
    backing = domain.find("memoryBacking")
    if backing is None:
        backing = ElementTree.Element("memoryBacking")
        domain.insert(_after(domain, ("currentMemory", "memory", "name")), backing)
    for tag, attribute, value in (("source", "type", "memfd"), ("access", "mode", "shared")):
        element = backing.find(tag)
        if element is None:
            element = ElementTree.SubElement(backing, tag)
        if tag == "access" or element.get(attribute) in (None, "anonymous"):
            element.set(attribute, value)


def _prepare_viommu(domain: ElementTree.Element, words: Sequence[str], converted: Converted) -> None:
    """libvirt's own vIOMMU, and the interrupt controller that interrupt remapping needs under KVM."""
    element = domain.find("devices/iommu[@model='intel']")
    by_argument = any(word.startswith(f"{VIOMMU_DRIVER},") for word in words)
    if element is not None:
        driver = element.find("driver")
        if driver is None:
            driver = ElementTree.SubElement(element, "driver")
        driver.set("caching_mode", "on")
    if element is None and not by_argument:
        converted.notes.append("the domain has no vIOMMU: the device reaches all of its memory")
        return
    features = domain.find("features")
    if domain.get("type") == "kvm" and (features is None or features.find("ioapic") is None):
        if features is None:
            features = ElementTree.Element("features")
            domain.insert(_after(domain, ("os", "vcpu", "memory")), features)
        ElementTree.SubElement(features, "ioapic", {"driver": "qemu"})


def _after(domain: ElementTree.Element, tags: Sequence[str]) -> int:
    children = [child.tag for child in domain]
    return next((children.index(tag) + 1 for tag in tags if tag in children), 0)
