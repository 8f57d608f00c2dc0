# SPDX-License-Identifier: Apache-2.0
"""Linux in the guest: ping and iperf3 both ways, and what awkward guests do meanwhile."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from vdpa_net.errors import LabError
from vdpa_net.lab import guest
from vdpa_net.lab.boot.options import MAC, BootOptions
from vdpa_net.lab.boot.trial import Boot
from vdpa_net.lab.image import Image
from vdpa_net.lab.iperf import received_bits_per_s
from vdpa_net.lab.machine import Machine
from vdpa_net.lab.network import GUEST_ADDRESS, LAB_ADDRESS, LAB_MAC, PREFIX_LENGTH

BOOT_SECONDS: Final = 120
IPERF_GRACE_SECONDS: Final = 30
STEPS: Final = ("rebind", "ring sizes", "channels")
"""What the guest does with its NIC on its own, under a ping that goes on."""


class Linux:
    """A stock guest, as it is."""

    role = "boot"
    kernel_words: tuple[str, ...] = ()

    def build(self, built: Image, cache: Path | None) -> guest.Guest | None:
        """A guest with iperf3 and ethtool."""
        return guest.build(built, cache=cache, tools=guest.BOOT_TOOLS, agent=False)

    def append(self, small: guest.Guest, options: BootOptions, role: str) -> str:
        """The role, and the addresses."""
        kernel_words = (*self.kernel_words, *(("intel_iommu=on",) if options.needs_iommu else ()))
        address = f"{GUEST_ADDRESS}/{PREFIX_LENGTH}"
        role = role or self.role
        return small.append(role, *kernel_words, address=address, peer=LAB_ADDRESS, peer_mac=LAB_MAC)

    def arguments(self, built: Image, directory: Path) -> tuple[str, ...]:  # noqa: ARG002
        """Nothing more."""
        return ()

    def before(self, boot: Boot) -> None:
        """Wait until the guest is up, and read what it says."""
        read_console(boot)

    def run(self, boot: Boot) -> None:
        """iperf3 both ways."""
        result = boot.result
        result.to_guest_bits_per_s = self._iperf(boot, "to the guest")
        result.from_guest_bits_per_s = self._iperf(boot, "from the guest", "--reverse")
        judge(boot)
        result.expect(result.to_guest_bits_per_s > 0, "bytes to the guest, got none")
        result.expect(result.from_guest_bits_per_s > 0, "bytes from the guest, got none")

    def _iperf(self, boot: Boot, what: str, *words: str) -> float:
        boot.progress(f"iperf3 {what}", None)
        boot.wait_listening()
        seconds = boot.options.iperf_seconds
        try:
            text = iperf(boot, seconds, *words)
        except LabError as error:
            boot.result.expect(False, f"iperf3 {what} to run: {error}")
            return 0.0
        (boot.directory / f"iperf3 {what}.json".replace(" ", "-")).write_text(text)
        return received_bits_per_s(text)


class Awkward(Linux):
    """Rebinding, new ring sizes and channels under traffic; a reset and a reboot in mid-traffic."""

    role = "awkward"

    def run(self, boot: Boot) -> None:
        """The guest's own steps at each start; then a reset from outside, then a reboot from inside."""
        judge(boot)
        self._steps(boot, "first start")
        self._disturb(boot, "reset in mid-traffic", lambda machine: machine.qmp("system_reset"))
        self._disturb(boot, "reboot in mid-traffic", lambda machine: machine.type_line("reboot"))

    def _steps(self, boot: Boot, when: str) -> None:
        for step in STEPS:
            match = boot.machine.console.wait_for(
                rf"LAB step {step}: (\d+) packets transmitted, (\d+) packets received", 1, start=boot.seen
            )
            sent, received = int(match[1]), int(match[2])
            boot.result.steps[f"{when}: {step}"] = f"{received} of {sent} pings answered"
            boot.result.expect(
                sent == received > 0, f"every ping after {step} ({when}), got {received} of {sent}"
            )

    def _disturb(self, boot: Boot, what: str, act: Callable[[Machine], object]) -> None:
        boot.progress(what, None)
        boot.wait_listening()
        client = threading.Thread(target=_iperf_until_it_breaks, args=(boot,))
        client.start()
        _wait_for_traffic(boot)
        boot.seen = boot.machine.console.position
        act(boot.machine)
        client.join()
        read_console(boot)
        judge(boot)
        self._steps(boot, f"after a {what.split(maxsplit=1)[0]}")
        boot.result.steps[what] = "the guest came up again"


def _iperf_until_it_breaks(boot: Boot) -> None:
    try:
        iperf(boot, 30, "--reverse", "--snd-timeout", "2000", "--rcv-timeout", "2000")
    except LabError:
        return


def _wait_for_traffic(boot: Boot) -> None:
    """Return when packets flow: the bridge's port has counted more than a handshake."""
    before = boot.network.counters("vt0")["rx_packets"]
    deadline = time.monotonic() + IPERF_GRACE_SECONDS
    while boot.network.counters("vt0")["rx_packets"] < before + 200:
        if time.monotonic() > deadline:
            raise LabError("no traffic to be disturbed: iperf3 did not send 200 packets")
        time.sleep(0.05)


def iperf(boot: Boot, seconds: int, *words: str) -> str:
    """The report of an iperf3 client here. Raises LabError."""
    streams = ("--parallel", str(boot.options.queues)) if boot.options.queues > 1 else ()
    arguments = ("--client", GUEST_ADDRESS, "--time", str(seconds), "--json", *streams, *words)
    return boot.image.program("usr/bin/iperf3").run(*arguments, timeout_s=seconds + IPERF_GRACE_SECONDS)


def read_console(boot: Boot) -> None:
    """Wait for the guest and take over what it says about itself. Raises LabError."""
    machine, result, start = boot.machine, boot.result, boot.seen
    outcome = machine.wait_console(r"LAB (ready .*|failed .*)", BOOT_SECONDS, start=start)
    if outcome.startswith("failed"):
        raise machine.failure(f"says: {outcome}")
    read_nic(boot)
    pattern = r"LAB ping (\d+) packets transmitted, (\d+) packets received"
    sent_received = machine.console.wait_for(pattern, 1, start=start)
    result.ping_sent, result.ping_received = int(sent_received[1]), int(sent_received[2])


def read_nic(boot: Boot) -> None:
    """What the guest says about itself and its NIC. Raises LabError."""
    machine, result, start = boot.machine, boot.result, boot.seen
    result.kernel = _said(machine, r"LAB up (\S+)", start)
    result.driver = _said(machine, r"LAB driver (\S+)", start)
    result.mac = _said(machine, r"LAB mac (\S+)", start)
    result.queues = int(_said(machine, r"LAB queues (\d+)", start))
    # sysfs prints bit 0 first.
    result.features = int(_said(machine, r"LAB features ([01]+)", start)[::-1], 2)
    if boot.options.needs_iommu:
        result.expect("dmar" in _said(machine, r"LAB iommu (.*)", start), "a vIOMMU in the guest, got none")


def judge(boot: Boot) -> None:
    """What a stock guest has to say and do."""
    options, result = boot.options, boot.result
    result.expect(result.driver == "virtio_net", f"driver virtio_net, got {result.driver!r}")
    result.expect(result.mac == MAC, f"mac {MAC}, got {result.mac}")
    result.expect(result.queues == options.queues, f"{options.queues} queue pairs, got {result.queues}")
    result.expect(result.packed == options.packed, f"packed={options.packed}, got {result.packed}")
    result.expect(
        result.ping_sent == result.ping_received > 0,
        f"every ping answered, got {result.ping_received} of {result.ping_sent}",
    )


def _said(machine: Machine, pattern: str, start: int) -> str:
    return machine.wait_console(pattern, 1, start=start)
