# SPDX-License-Identifier: Apache-2.0
"""What came of a boot, for a terminal, for --json and for the exit code."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

from rich.table import Table

from vdpa_net.wire.virtio_net import feature_names
from vdpa_net.wire.virtio_pci import F_RING_PACKED


@dataclass
class BootResult:
    """What the guest's network did. `faults` says in words what was expected and did not happen.

    `steps` are what was tried one after the other, each with what came of it.
    """

    qemu_version: str
    accel: str
    machine: str
    iommu: bool
    guest: str = "linux"
    kernel: str = ""
    driver: str = ""
    mac: str = ""
    features: int = 0
    queues: int = 0
    ready_ms: float = 0.0
    ping_sent: int = 0
    ping_received: int = 0
    to_guest_bits_per_s: float = 0.0
    from_guest_bits_per_s: float = 0.0
    steps: dict[str, str] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)
    evidence: str = ""
    faults: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Everything that was expected happened."""
        return not self.faults

    @property
    def exit_code(self) -> int:
        """0 if it passed, else 1."""
        return 0 if self.passed else 1

    @property
    def packed(self) -> bool:
        """Whether the driver uses packed rings."""
        return bool(self.features >> F_RING_PACKED & 1)

    def expect(self, holds: bool, what: str) -> None:
        """Note what was expected if it does not hold."""
        if not holds:
            self.faults.append(what)

    def to_json(self) -> dict[str, object]:
        """All of it, for --json."""
        return {
            "passed": self.passed,
            **asdict(self),
            "packed": self.packed,
            "feature_names": feature_names(self.features),
        }

    def table(self) -> Table:
        """The summary for a terminal."""
        table = Table(title=f"lab boot: {'PASS' if self.passed else 'FAIL'}", show_header=False)
        for row in self._rows():
            table.add_row(*row)
        return table

    def _rows(self) -> list[tuple[str, str]]:
        iommu = ", intel-iommu" if self.iommu else ""
        rows = [("QEMU", f"{self.qemu_version} ({self.machine}, {self.accel}{iommu})")]
        if self.driver:
            rings = "packed" if self.packed else "split"
            pairs = f"{self.queues} queue pair{'s' if self.queues > 1 else ''}, {rings} rings"
            rows.append(("guest", f"Linux {self.kernel}, driver {self.driver}, {self.mac}, {pairs}"))
        rows.append(("ready after", f"{self.ready_ms:.0f} ms"))
        if self.ping_sent:
            lost = self.ping_sent - self.ping_received
            rows.append(("ping", f"{self.ping_received} of {self.ping_sent} answered, {lost} lost"))
        rows += [
            (name, f"{bits / 1e6:.0f} Mbit/s")
            for name, bits in (
                ("iperf3 to the guest", self.to_guest_bits_per_s),
                ("iperf3 from the guest", self.from_guest_bits_per_s),
            )
            if bits
        ]
        rows += self.steps.items()
        rows += [("violation", text) for text in self.violations]
        rows += [("expected", fault) for fault in self.faults]
        return rows if self.passed else [*rows, ("evidence", self.evidence)]
