# SPDX-License-Identifier: Apache-2.0
"""What `vdpa-net migrate` is asked for."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from vdpa_net.errors import OptionError
from vdpa_net.lab.ram import GuestRam
from vdpa_net.lab.traffic.format import MAX_LENGTH_BYTES, MIN_LENGTH_BYTES
from vdpa_net.migration.faults import parse_fault
from vdpa_net.wire.lm import PROFILES

TRANSPORTS = ("in-process", "vfio-user")
CANCEL_PHASES = ("setup", "first-pass", "pre-copy", "switch-over")
"""Where a migration can be cancelled: right behind the command, in the first pass over RAM, in the passes
behind it, and with the source's machine stopped and its device given back (QMP: pre-switchover)."""

DISTURBANCES = ("reboot", "rebind", "channels", "reset")
"""What can happen to the guest in pre-copy: its reboot, its driver unbound and bound again, `ethtool -L`, and
a PCI function reset of its NIC."""

POSTCOPY_REASON = (
    "post-copy can't work with this device: it writes guest memory by DMA, and a page that has not arrived "
    "at the destination would have to be fetched first. vhost-user has VHOST_USER_PROTOCOL_F_PAGEFAULT for "
    "back ends that take their faults in software; a vDPA device does not, so the back end does not offer it "
    "and QEMU refuses the capability postcopy-ram"
)
MINIMUM_PAGES = 64
MAX_QUEUE_PAIRS = 8


@dataclass(frozen=True)
class MigrateOptions:
    """What to migrate and how.

    `rounds` alternate between two kinds: one compares RAM while both machines stand still, the next times
    the gap. `qemu` is "host", "image", a path, or None for the host's. `minimum_pages` is how many pages the
    device has to write after the first pass for a round to count. `lengths` is the range of UDP payloads in
    bytes. `dirty_kib_per_s` is what the guest rewrites besides its traffic, `stream_bytes_per_s` the pace of
    its TCP stream. `bandwidth_mib_per_s` limits the transfer (None: the lab's own pace), `downtime_limit_ms`
    is QEMU's. `keep` keeps the logs of a run that passed. `backend_sockets` are two vhost-user back ends of
    the user's, source and destination. With `reference` QEMU's own virtio-net takes the device's place.
    `gap_only`: every round times the gap.
    """

    rounds: int = 2
    transport: str = "in-process"
    profile: str = "vdpa"
    seed: int = 0
    faults: tuple[str, ...] = ()
    qemu: str | None = None
    accel: str = "auto"
    memory_mib: int = 256
    rate_pps: int = 1000
    lengths: tuple[int, int] = (80, 1400)
    queue_pairs: int = 1
    packed: bool = False
    iommu: bool = False
    dirty_kib_per_s: int = 1024
    stream_bytes_per_s: int = 128 << 10
    bandwidth_mib_per_s: int | None = None
    downtime_limit_ms: int = 300
    cancel_at: str | None = None
    disturbances: tuple[str, ...] = ()
    postcopy: bool = False
    kernel: Path | None = None
    initrd: Path | None = None
    image: Path | None = None
    qemu_arguments: tuple[str, ...] = ()
    backend_sockets: tuple[Path, Path] | None = None
    reference: bool = False
    gap_only: bool = False
    minimum_pages: int = MINIMUM_PAGES
    json_path: Path | None = None
    junit_path: Path | None = None
    report: Path | None = None
    directory: Path | None = None
    keep: bool = False
    cache: Path | None = None

    @property
    def flows(self) -> int:
        """Flows of traffic: with several queue pairs two for each, so that every queue gets some."""
        return 1 if self.queue_pairs == 1 else 2 * self.queue_pairs

    def check(self) -> None:
        """Raises OptionError, naming the value."""
        if self.postcopy:
            raise OptionError(f"--postcopy: {POSTCOPY_REASON}")
        _within("rounds", self.rounds, 1, None)
        _one_of("transport", self.transport, TRANSPORTS)
        _within("memory (MiB)", self.memory_mib, 128, GuestRam.LOW_RAM_BYTES >> 20)
        _within("rate (packets/s)", self.rate_pps, 1, 100_000)
        _within("queue pairs", self.queue_pairs, 1, MAX_QUEUE_PAIRS)
        _within("dirty rate (KiB/s)", self.dirty_kib_per_s, 0, 1 << 20)
        _within("downtime limit (ms)", self.downtime_limit_ms, 1, 2_000_000)
        if self.bandwidth_mib_per_s is not None:
            _within("bandwidth (MiB/s)", self.bandwidth_mib_per_s, 1, 1 << 20)
        low, high = self.lengths
        if not MIN_LENGTH_BYTES <= low <= high <= MAX_LENGTH_BYTES:
            raise OptionError(
                f"size {low}-{high}: expected UDP payloads within {MIN_LENGTH_BYTES}-{MAX_LENGTH_BYTES} bytes"
            )
        if self.cancel_at is not None:
            _one_of("cancel-at", self.cancel_at, CANCEL_PHASES)
        for name in self.disturbances:
            _one_of("disturb", name, DISTURBANCES)
        if "channels" in self.disturbances and self.queue_pairs == 1:
            raise OptionError("--disturb channels: needs --queue-pairs 2 or more")
        known = PROFILES.get(self.profile)
        if self.iommu and self.transport != "in-process" and known is not None and not known.page_requests:
            raise OptionError(
                f"--iommu with --transport {self.transport}: the protocol has no message for a missing "
                f"translation, and profile {self.profile} has no page requests; vdpa does, or --transport "
                f"in-process"
            )
        for text in self.faults:
            parse_fault(text, seed=self.seed)
        self._check_guest()
        self._check_foreign()

    def _check_guest(self) -> None:
        if self.image is not None and self.kernel is None and self.initrd is not None:
            raise OptionError("--initrd goes with --kernel; a disk image boots by itself")
        for name, path in (("kernel", self.kernel), ("initrd", self.initrd), ("image", self.image)):
            if path is not None and not path.is_file():
                raise OptionError(f"--{name} {path}: there is no such file")

    def _check_foreign(self) -> None:
        replaced_by = "--reference" if self.reference else "--backend-socket"
        if not self.reference and self.backend_sockets is None:
            return
        given = {
            "--fault": bool(self.faults),
            "--transport": self.transport != "in-process",
            "--backend-socket": self.reference and self.backend_sockets is not None,
            "--queue-pairs": self.reference and self.queue_pairs > 1,
        }
        for name, is_given in given.items():
            if is_given:
                raise OptionError(f"{name} is about the device of vdpa-net, {replaced_by} replaces it")
        for path in self.backend_sockets or ():
            if not path.is_socket():
                raise OptionError(f"--backend-socket {path}: there is no such Unix socket")


def parse_size(text: str) -> tuple[int, int]:
    """`--size`: "700" or "80-1400", UDP payloads in bytes. Raises OptionError."""
    match = re.fullmatch(r"(\d+)(?:-(\d+))?", text)
    if match is None:
        raise OptionError(f"size {text!r}: expected BYTES or MIN-MAX")
    return int(match[1]), int(match[2] or match[1])


def parse_backend_sockets(text: str) -> tuple[Path, Path]:
    """`--backend-socket`: "SRC,DST". Raises OptionError."""
    source, comma, destination = text.partition(",")
    if not (source and comma and destination) or "," in destination:
        raise OptionError(f"backend-socket {text!r}: expected SRC,DST")
    return Path(source).absolute(), Path(destination).absolute()


def _within(what: str, value: int, low: int, high: int | None) -> None:
    if value < low or (high is not None and value > high):
        expected = f"{low} or more" if high is None else f"{low}..{high}"
        raise OptionError(f"{what} {value}: expected {expected}")


def _one_of(what: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise OptionError(f"{what} {value!r}: expected {', '.join(known[:-1])} or {known[-1]}")
