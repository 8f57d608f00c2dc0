# SPDX-License-Identifier: Apache-2.0
"""`vdpa-net migrate`: a guest under traffic moves between two devices, and the verdict on it."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from vdpa_net.cli import options
from vdpa_net.cli.parser import whole_number

MIN_MEMORY_MIB = 128


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    _add_run(parser.add_argument_group("the run"))
    _add_device(parser.add_argument_group("the devices"))
    _add_load(parser.add_argument_group("the load"))
    _add_guest(parser.add_argument_group("your own stack"))
    options.add_run(parser, min_memory_mib=MIN_MEMORY_MIB)


def _add_run(group: argparse._ArgumentGroup) -> None:
    options.add_rounds(group, default=2)
    options.add_cancel(group)
    group.add_argument(
        "--disturb",
        action="append",
        default=[],
        metavar="WHAT",
        help="in pre-copy: reboot, rebind, channels (ethtool -L) or reset; may be repeated",
    )
    group.add_argument(
        "--gap-only", action="store_true", help="time the gap in every round, compare RAM in none"
    )
    group.add_argument("--postcopy", action="store_true", help="refused, with the reason")


def _add_device(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--transport",
        choices=options.TRANSPORTS,
        default="in-process",
        help="how the driver reaches the device",
    )
    group.add_argument("--profile", default="vdpa", metavar="PROFILE", help="LM register layout")
    group.add_argument(
        "--queue-pairs", type=whole_number(1), default=1, metavar="N", help="queue pairs of the NIC"
    )
    group.add_argument("--packed", action="store_true", help="packed virtqueues")
    group.add_argument(
        "--reference",
        action="store_true",
        help="QEMU's own virtio-net on the taps instead of the devices: figures to compare with",
    )
    group.add_argument("--iommu", action="store_true", help="put a vIOMMU in front of the guest's NIC")


def _add_load(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--rate", type=whole_number(1), default=1000, metavar="PPS", help="packets/s per direction"
    )
    group.add_argument("--size", default="80-1400", metavar="BYTES", help="UDP payloads: BYTES or MIN-MAX")
    group.add_argument(
        "--dirty-rate",
        type=whole_number(0),
        default=1024,
        metavar="KIB",
        help="memory that the guest rewrites per second",
    )
    group.add_argument(
        "--bandwidth", type=whole_number(1), metavar="MIB", help="limit of the transfer, per second"
    )
    group.add_argument(
        "--downtime-limit",
        type=whole_number(1),
        default=300,
        metavar="MS",
        help="QEMU's downtime-limit",
    )


def _add_guest(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--kernel", type=Path, metavar="FILE", help="your kernel, with --initrd or the lab's")
    group.add_argument(
        "--initrd", type=Path, metavar="FILE", help="your initramfs; has to run /vdpa-net/start"
    )
    group.add_argument(
        "--image", type=Path, metavar="FILE", help="your disk image (docs/lab.md); a copy is used"
    )
    group.add_argument(
        "--qemu-args", default="", metavar="WORDS", help="more arguments of QEMU, as in a shell"
    )
    group.add_argument(
        "--backend-socket",
        metavar="SRC,DST",
        help="your vhost-user back ends, in this network namespace, instead of ours (docs/lab.md)",
    )


def run(arguments: argparse.Namespace) -> int:
    """The exit code of the verdict."""
    from rich.console import Console  # noqa: PLC0415

    from vdpa_net.lab.migrate.options import (  # noqa: PLC0415
        MigrateOptions,
        parse_backend_sockets,
        parse_size,
    )
    from vdpa_net.lab.migrate.run import run_migrate  # noqa: PLC0415
    from vdpa_net.profiles import find_profile  # noqa: PLC0415

    # The devices are given its name; a wrong one is told here, before anything is started.
    find_profile(arguments.profile)
    foreign = arguments.backend_socket
    asked = MigrateOptions(
        **options.run_options(arguments),
        transport=arguments.transport,
        profile=arguments.profile,
        rate_pps=arguments.rate,
        lengths=parse_size(arguments.size),
        queue_pairs=arguments.queue_pairs,
        dirty_kib_per_s=arguments.dirty_rate,
        bandwidth_mib_per_s=arguments.bandwidth,
        downtime_limit_ms=arguments.downtime_limit,
        cancel_at=arguments.cancel_at,
        disturbances=tuple(arguments.disturb),
        postcopy=arguments.postcopy,
        kernel=arguments.kernel,
        initrd=arguments.initrd,
        image=arguments.image,
        qemu_arguments=tuple(shlex.split(arguments.qemu_args)),
        backend_sockets=None if foreign is None else parse_backend_sockets(foreign),
        reference=arguments.reference,
        gap_only=arguments.gap_only,
    )
    return run_migrate(asked, Console())
