# SPDX-License-Identifier: Apache-2.0
"""DPDK's net_virtio in the guest, over VFIO behind the vIOMMU: what is sent has to come back as it went."""

from __future__ import annotations

import random
import select
import socket
import time
from pathlib import Path
from typing import Final

from vdpa_net.errors import LabError
from vdpa_net.lab import guest
from vdpa_net.lab.boot.linux import Linux, read_nic
from vdpa_net.lab.boot.options import MAC, TAP
from vdpa_net.lab.boot.trial import Boot
from vdpa_net.lab.image import Image
from vdpa_net.wire.virtio_net import FEATURES, bits

START_SECONDS: Final = 120
FRAMES: Final = 400
WINDOW: Final = 16
RETURN_SECONDS: Final = 20
OUR_MAC: Final = bytes.fromhex("028700000099")
ETHERTYPE: Final = bytes.fromhex("88b5")
"""For experiments (IEEE 802), so that nobody else answers."""

MODULES: Final = ("virtio_net", "vfio-pci", "vfio_iommu_type1")
TOOLS: Final = ("usr/bin/dpdk-testpmd", *guest.BOOT_TOOLS)
DRIVERS: Final = ("bus_pci", "bus_vdev", "mempool_ring", "net_virtio")
ABI: Final = 25
HUGEPAGES: Final = 48


class Testpmd(Linux):
    """testpmd swaps the addresses of each frame and sends it back."""

    role = "testpmd"
    kernel_words = (f"hugepages={HUGEPAGES}",)

    def build(self, built: Image, cache: Path | None) -> guest.Guest | None:
        """A guest with testpmd and the drivers that it loads."""
        plugins = tuple(f"usr/lib/{_triplet(built)}/librte_{name}.so.{ABI}" for name in DRIVERS)
        return guest.build(built, cache=cache, modules=MODULES, tools=TOOLS, libraries=plugins, agent=False)

    def before(self, boot: Boot) -> None:
        """Wait until it forwards."""
        outcome = boot.machine.wait_console(r"LAB (testpmd .*NIC statistics.*|failed .*)", START_SECONDS)
        if outcome.startswith("failed"):
            raise boot.machine.failure(f"says: {outcome}")
        read_nic(boot)

    def run(self, boot: Boot) -> None:
        """Send frames of all sizes and compare each one that comes back."""
        result = boot.result
        result.driver = boot.machine.wait_console(r"LAB bound (\S+)", 1)
        result.expect(result.driver == "vfio-pci", f"the device on vfio-pci, got {result.driver}")
        result.features = _negotiated(boot)
        result.expect(
            result.packed == boot.options.packed, f"packed={boot.options.packed}, got {result.packed}"
        )
        boot.progress("frames to testpmd and back", None)
        returned = exchange(FRAMES)
        result.steps["frames that came back as they went"] = f"{returned} of {FRAMES}"
        result.expect(returned == FRAMES, f"{FRAMES} frames back with their content, got {returned}")


def _negotiated(boot: Boot) -> int:
    """The features that DPDK has negotiated, as the device says: the guest's kernel knows its own only."""
    if boot.device is None:
        return 0
    names = boot.device.call("inspect")["features"]
    return bits(bit for bit, name in FEATURES.items() if name in names)


def _triplet(built: Image) -> str:
    found = next((built.root / "usr/lib").glob(f"*/librte_net_virtio.so.{ABI}"), None)
    if found is None:
        raise LabError(f"the image in {built.root} has no DPDK {ABI} with the driver net_virtio")
    return found.parent.name


def exchange(count: int) -> int:
    """Send frames into the tap, a window at a time; how many came back, addresses swapped, content alike."""
    station = bytes.fromhex(MAC.replace(":", ""))
    chance = random.Random(count)
    good = 0
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0003)) as sock:
        sock.bind((TAP, 0))
        for first in range(0, count, WINDOW):
            numbers = range(first, min(first + WINDOW, count))
            payloads = {
                number.to_bytes(4, "big") + chance.randbytes(chance.randint(46, 1486)) for number in numbers
            }
            for payload in payloads:
                sock.send(station + OUR_MAC + ETHERTYPE + payload)
            good += len(payloads) - len(_await(sock, OUR_MAC + station + ETHERTYPE, payloads))
    return good


def _await(sock: socket.socket, head: bytes, payloads: set[bytes]) -> set[bytes]:
    """Take frames with this head until each of the payloads has come; those that did not."""
    missing = set(payloads)
    deadline = time.monotonic() + RETURN_SECONDS
    while missing and (left := deadline - time.monotonic()) > 0:
        if not select.select([sock], [], [], left)[0]:
            break
        frame = sock.recv(65536)
        if frame.startswith(head):
            missing.discard(frame[len(head) :])
    return missing
