# SPDX-License-Identifier: Apache-2.0
"""`vdpa-net lab boot`: a stock guest on a served device, and what its network does."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.table import Table

from vdpa_net.errors import LabError
from vdpa_net.lab import accelerator, guest, image
from vdpa_net.lab.machine import Machine, MachineOptions, vfio_user_arguments
from vdpa_net.lab.network import (
    GUEST_ADDRESS,
    LAB_ADDRESS,
    LAB_MAC,
    PREFIX_LENGTH,
    LabNetwork,
)
from vdpa_net.lab.progress import ProgressCallback, silent
from vdpa_net.lab.side import SideProcess

TAP = "vt0"
NETDEV = f"tap,id=hostnet1,ifname={TAP},script=no,downscript=no,vhost=off"
MAC = "56:4a:b7:4f:4d:a9"
PROPERTIES = "iommu_platform=on,ats=on"
DEVICE = f"virtio-net-pci,netdev=hostnet1,id=net1,mac={MAC},bus=pci.6,addr=0x0,{PROPERTIES},vdpa=on"
BOOT_SECONDS = 120
IPERF_GRACE_SECONDS = 30


@dataclass(frozen=True)
class BootOptions:
    """What to boot.

    `qemu` is "host", "image", a path, or None for the host's if it knows vfio-user, else the image's. `accel`
    is auto, kvm or tcg. `reference` boots on QEMU's own virtio-net instead, to compare with. `directory`
    takes the logs (None: a temporary one, kept only on failure).
    """

    iommu: bool = False
    qemu: str | None = None
    accel: str = "auto"
    memory_mib: int = 256
    iperf_seconds: int = 3
    reference: bool = False
    directory: Path | None = None
    cache: Path | None = None


@dataclass
class BootResult:
    """What the guest's network did. `faults` says in words what was expected and did not happen."""

    qemu_version: str
    accel: str
    iommu: bool
    kernel: str = ""
    driver: str = ""
    mac: str = ""
    features: int = 0
    ready_ms: float = 0.0
    ping_sent: int = 0
    ping_received: int = 0
    to_guest_bits_per_s: float = 0.0
    from_guest_bits_per_s: float = 0.0
    evidence: str = ""
    faults: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """The driver is bound, no ping was lost, both streams ran."""
        return not self.faults

    @property
    def exit_code(self) -> int:
        """0 if it passed, else 1."""
        return 0 if self.passed else 1

    def to_json(self) -> dict[str, object]:
        """All of it, for --json."""
        return {"passed": self.passed, **asdict(self)}

    def table(self) -> Table:
        """The summary for a terminal."""
        table = Table(title=f"lab boot: {'PASS' if self.passed else 'FAIL'}", show_header=False)
        lost = self.ping_sent - self.ping_received
        rows = (
            ("QEMU", f"{self.qemu_version} ({self.accel}{', intel-iommu' if self.iommu else ''})"),
            ("guest", f"Linux {self.kernel}, driver {self.driver}, {self.mac}"),
            ("up after", f"{self.ready_ms:.0f} ms"),
            ("ping", f"{self.ping_received} of {self.ping_sent} answered, {lost} lost"),
            ("iperf3 to the guest", f"{self.to_guest_bits_per_s / 1e6:.0f} Mbit/s"),
            ("iperf3 from the guest", f"{self.from_guest_bits_per_s / 1e6:.0f} Mbit/s"),
            *(("expected", fault) for fault in self.faults),
        )
        for row in rows:
            table.add_row(*row)
        if not self.passed:
            table.add_row("evidence", self.evidence)
        return table


def run(options: BootOptions, progress: ProgressCallback = silent) -> BootResult:
    """Boot the guest and try its network, in the private network that the caller has entered.

    Raises LabError if the image is missing or something does not start; the message names the evidence.
    """
    built = image.require(options.cache)
    since = (7, 2, 0) if options.reference else accelerator.VFIO_USER_SINCE
    qemu = accelerator.choose_qemu(built, options.qemu, since)
    small = guest.build(built, cache=options.cache, tools=guest.BOOT_TOOLS, agent=False)
    progress("trying KVM", None)
    accel = accelerator.choose_accelerator(qemu, small, options.accel, options.cache)
    version = accelerator.version_text(accelerator.qemu_version(qemu))
    directory = options.directory or Path(tempfile.mkdtemp(prefix="vdpa-net-boot-"))
    directory.mkdir(parents=True, exist_ok=True)
    result = BootResult(version, accel, options.iommu, evidence=str(directory))
    attempt = _Attempt(options, built, directory, result, progress)
    machine = MachineOptions(
        "guest",
        qemu,
        small,
        _append(small, options),
        accel=accel,
        memory_mib=options.memory_mib,
        arguments=attempt.device_arguments(),
        iommu=options.iommu,
    )
    attempt.run(machine)
    if result.passed and options.directory is None:
        shutil.rmtree(directory)
    return result


def _append(small: guest.Guest, options: BootOptions) -> str:
    kernel_words = ("intel_iommu=on",) if options.iommu else ()
    address = f"{GUEST_ADDRESS}/{PREFIX_LENGTH}"
    return small.append("boot", *kernel_words, address=address, peer=LAB_ADDRESS, peer_mac=LAB_MAC)


class _Attempt:
    """One boot: the device, the machine, the measurements."""

    def __init__(
        self,
        options: BootOptions,
        built: image.Image,
        directory: Path,
        result: BootResult,
        progress: ProgressCallback,
    ) -> None:
        self._options = options
        self._image = built
        self._directory = directory
        self._result = result
        self._progress = progress
        self._socket = directory / "vfio-user.socket"
        self._console_seen = 0

    def device_arguments(self) -> tuple[str, ...]:
        """QEMU's arguments for the network device."""
        if not self._options.reference:
            return vfio_user_arguments(self._socket)
        device = f"virtio-net-pci,netdev=hostnet1,mac={MAC},bus=rp0,{PROPERTIES}"
        return ("-netdev", NETDEV, "-device", "pcie-root-port,id=rp0,slot=1", "-device", device)

    def run(self, options: MachineOptions) -> None:
        """Start everything, measure, end everything."""
        with ExitStack() as stack:
            network = stack.enter_context(LabNetwork())
            if not self._options.reference:
                self._serve(stack)
            self._progress("booting the guest", None)
            machine = Machine(options, self._directory)
            started_ns = time.monotonic_ns()
            stack.enter_context(machine)
            network.attach(TAP)
            network.add_neighbour(GUEST_ADDRESS, MAC)
            self._read_console(machine)
            self._result.ready_ms = (time.monotonic_ns() - started_ns) / 1e6
            self._result.to_guest_bits_per_s = self._iperf(machine, "to the guest")
            self._result.from_guest_bits_per_s = self._iperf(machine, "from the guest", "--reverse")
        self._judge()

    def _serve(self, stack: ExitStack) -> None:
        self._progress("starting the device", None)
        arguments = ["serve", "--socket", str(self._socket), "--netdev", NETDEV, "--device", DEVICE]
        process = SideProcess("serve", arguments, self._directory)
        stack.callback(process.stop)
        process.wait_ready()

    def _read_console(self, machine: Machine) -> None:
        result = self._result
        outcome = machine.wait_console(r"LAB (ready .*|failed .*)", BOOT_SECONDS)
        if outcome.startswith("failed"):
            raise machine.failure(f"says: {outcome}")
        result.kernel = machine.wait_console(r"LAB up (\S+)", 1)
        result.driver = machine.wait_console(r"LAB driver (\S+)", 1)
        result.mac = machine.wait_console(r"LAB mac (\S+)", 1)
        # sysfs prints bit 0 first.
        result.features = int(machine.wait_console(r"LAB features ([01]+)", 1)[::-1], 2)
        pattern = r"LAB ping (\d+) packets transmitted, (\d+) packets received"
        sent_received = machine.console.wait_for(pattern, 1)
        result.ping_sent, result.ping_received = int(sent_received[1]), int(sent_received[2])
        if self._options.iommu:
            self._expect(
                "dmar" in machine.wait_console(r"LAB iommu (.*)", 1), "a vIOMMU in the guest, got none"
            )

    def _iperf(self, machine: Machine, what: str, *words: str) -> float:
        self._progress(f"iperf3 {what}", None)
        machine.wait_console("LAB listening iperf3", IPERF_GRACE_SECONDS, start=self._console_seen)
        self._console_seen = machine.console.position
        seconds = self._options.iperf_seconds
        arguments = ("--client", GUEST_ADDRESS, "--time", str(seconds), "--json", *words)
        program = self._image.program("usr/bin/iperf3")
        try:
            text = program.run(*arguments, timeout_s=seconds + IPERF_GRACE_SECONDS)
        except LabError as error:
            self._expect(False, f"iperf3 {what} to run: {error}")
            return 0.0
        (self._directory / f"iperf3 {what}.json".replace(" ", "-")).write_text(text)
        return received_bits_per_s(text)

    def _judge(self) -> None:
        result = self._result
        self._expect(result.driver == "virtio_net", f"driver virtio_net, got {result.driver!r}")
        self._expect(result.mac == MAC, f"mac {MAC}, got {result.mac}")
        self._expect(
            result.ping_sent == result.ping_received > 0,
            f"every ping answered, got {result.ping_received} of {result.ping_sent}",
        )
        self._expect(result.to_guest_bits_per_s > 0, "bytes to the guest, got none")
        self._expect(result.from_guest_bits_per_s > 0, "bytes from the guest, got none")

    def _expect(self, holds: bool, what: str) -> None:
        if not holds:
            self._result.faults.append(what)


def received_bits_per_s(text: str) -> float:
    """Throughput at the receiver of iperf3's --json output. Raises LabError if it has none."""
    try:
        return float(json.loads(text)["end"]["sum_received"]["bits_per_second"])
    except (ValueError, KeyError, TypeError) as error:
        raise LabError(f"iperf3's report has no end.sum_received.bits_per_second: {text[:300]!r}") from error
