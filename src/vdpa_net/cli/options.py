# SPDX-License-Identifier: Apache-2.0
"""Options that several commands share."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

if TYPE_CHECKING:
    from vdpa_net.options import VhostSocket
    from vdpa_net.processes import DeviceRequest

ACCELERATORS = ("auto", "kvm", "tcg")
TRANSPORTS = ("in-process", "vfio-user")
"""How a driver reaches the device."""


class RunOptions(TypedDict):
    """What all migrations of the lab are asked for, by the names of `lab.migrate.options.MigrateOptions`."""

    rounds: int
    qemu: str | None
    accel: str
    memory_mib: int
    packed: bool
    iommu: bool
    faults: tuple[str, ...]
    seed: int
    json_path: Path | None
    junit_path: Path | None
    report: Path | None
    directory: Path | None
    keep: bool


def add_run(parser: argparse.ArgumentParser, *, min_memory_mib: int) -> None:
    """The machine, what is kept, and what goes wrong on purpose: most of `run_options`."""
    add_machine(parser, min_memory_mib=min_memory_mib)
    add_keep(parser.add_argument_group("results"))
    add_faults(parser)
    add_seed(parser)
    add_json(parser)
    add_junit(parser)


def add_rounds(parser: argparse._ActionsContainer, *, default: int) -> None:
    """Declare `rounds`."""
    from vdpa_net.cli.parser import whole_number  # noqa: PLC0415

    parser.add_argument(
        "--rounds",
        type=whole_number(1),
        default=default,
        metavar="N",
        help="migrations, back and forth",
    )


def run_options(arguments: argparse.Namespace) -> RunOptions:
    """The values of `add_run` and of the rounds, packed rings and vIOMMU that each command declares."""
    return {
        "rounds": arguments.rounds,
        "qemu": arguments.qemu,
        "accel": arguments.accel,
        "memory_mib": arguments.memory,
        "packed": arguments.packed,
        "iommu": arguments.iommu,
        "faults": tuple(arguments.fault),
        "seed": arguments.seed,
        "json_path": arguments.json,
        "junit_path": arguments.junit,
        "report": arguments.report,
        "directory": arguments.logs,
        "keep": arguments.keep,
    }


def add_device(parser: argparse.ArgumentParser) -> None:
    """What `device_request` builds a device from, and how it is watched."""
    parser.add_argument(
        "--netdev",
        required=True,
        metavar="NETDEV",
        help="back end in QEMU's syntax: tap,id=..,ifname=.., or loopback, null, pcap,file=..",
    )
    parser.add_argument(
        "--device",
        required=True,
        metavar="DEVICE",
        help="device in QEMU's syntax: virtio-net-pci,netdev=..,mac=..,vdpa=on",
    )
    add_profile(parser, default="vdpa")
    add_poll_us(parser)
    _add_coalesce_us(parser)
    add_faults(parser)
    add_seed(parser)
    _add_observation(parser)


def device_request(arguments: argparse.Namespace) -> DeviceRequest:
    """The device that the options of `add_device` describe. Raises OptionError."""
    from vdpa_net.migration.faults import parse_fault  # noqa: PLC0415
    from vdpa_net.observe import Observation  # noqa: PLC0415
    from vdpa_net.options import parse_device, parse_netdev  # noqa: PLC0415
    from vdpa_net.processes import DeviceRequest  # noqa: PLC0415
    from vdpa_net.profiles import find_profile  # noqa: PLC0415
    from vdpa_net.record import replace  # noqa: PLC0415

    faults = tuple(parse_fault(text, seed=arguments.seed) for text in arguments.fault)
    device = replace(
        parse_device(arguments.device),
        profile=find_profile(arguments.profile),
        poll_us=arguments.poll_us,
        coalesce_us=arguments.coalesce_us,
    )
    observation = Observation(arguments.trace, arguments.metrics)
    return DeviceRequest(parse_netdev(arguments.netdev), device, faults, observation, arguments.pcap)


def add_cancel(parser: argparse._ActionsContainer) -> None:
    """`cancel_at`."""
    parser.add_argument(
        "--cancel-at",
        metavar="PHASE",
        help="cancel a first try at setup, first-pass, pre-copy or switch-over; the source has to go on, and "
        "a second try to succeed",
    )


def add_keep(parser: argparse._ActionsContainer) -> None:
    """What of a run is kept for people: `keep` and `report`."""
    parser.add_argument("--keep", action="store_true", help="keep logs and evidence of a PASS, too")
    parser.add_argument("--report", type=Path, metavar="DIR", help="write an HTML page with pictures there")


def _add_observation(parser: argparse.ArgumentParser) -> None:
    from vdpa_net.cli.parser import whole_number  # noqa: PLC0415

    parser.add_argument(
        "--trace",
        nargs="?",
        const="-",
        metavar="FILE",
        help="write each register access, decoded, to this file, or without one to standard error",
    )
    parser.add_argument(
        "--pcap",
        type=Path,
        metavar="FILE",
        help="record the packets that pass the back end to this file (pcapng)",
    )
    parser.add_argument(
        "--metrics",
        type=whole_number(0, 65535),
        metavar="PORT",
        help="offer metrics for Prometheus on this TCP port of 127.0.0.1; 0 takes a free one",
    )


def add_profile(parser: argparse.ArgumentParser, *, default: str | None) -> None:
    """`--profile`; without a default a driver finds it out from the device's subsystem id."""
    parser.add_argument(
        "--profile",
        default=default,
        metavar="PROFILE",
        help="layout of the LM registers: vdpa, ifcvf, ifcvf-linux, or MODULE:NAME in Python"
        + ("" if default else " (default: what the device's subsystem id tells)"),
    )


def add_poll_us(parser: argparse.ArgumentParser) -> None:
    """`--poll-us`."""
    from vdpa_net.device.options import DEFAULT_POLL_US, MAX_POLL_US  # noqa: PLC0415

    what = "poll rings and back end for so many microseconds after work, then sleep"
    _add_us(parser, "--poll-us", MAX_POLL_US, DEFAULT_POLL_US, what)


def _add_coalesce_us(parser: argparse.ArgumentParser) -> None:
    from vdpa_net.device.options import DEFAULT_COALESCE_US, MAX_COALESCE_US  # noqa: PLC0415

    what = "let packets of a stream wait for so many microseconds, for one wake-up of many"
    _add_us(parser, "--coalesce-us", MAX_COALESCE_US, DEFAULT_COALESCE_US, what)


def _add_us(parser: argparse.ArgumentParser, option: str, limit: int, default: int, what: str) -> None:
    from vdpa_net.cli.parser import whole_number  # noqa: PLC0415

    parser.add_argument(
        option, type=whole_number(0, limit), metavar="US", help=f"{what} (default: {default})"
    )


def add_faults(parser: argparse.ArgumentParser) -> None:
    """`--fault`, which can be given more than once."""
    parser.add_argument(
        "--fault",
        action="append",
        default=[],
        metavar="FAULT",
        help="make the device faulty, as in drop-dirty-mark=0.2 (docs/faults.md has all); may be repeated",
    )


def add_seed(parser: argparse.ArgumentParser) -> None:
    """`--seed`."""
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="seed of everything that is left to chance"
    )


def add_vhost_socket(parser: argparse.ArgumentParser) -> None:
    """`--vhost-socket` and `--client`, as `vhost_socket` reads them."""
    parser.add_argument(
        "--vhost-socket",
        required=True,
        metavar="PATH[,server=off]",
        help="Unix socket for the vhost-user front end; listen there, or with server=off connect to it",
    )
    parser.add_argument(
        "--client",
        action="store_true",
        help="the same as server=off: connect to a front end that listens, and again when it is gone",
    )


def vhost_socket(arguments: argparse.Namespace) -> VhostSocket:
    """The socket that the options of `add_vhost_socket` describe. Raises OptionError."""
    from vdpa_net.options import parse_vhost_socket  # noqa: PLC0415

    return parse_vhost_socket(arguments.vhost_socket, client=arguments.client)


def add_control(parser: argparse.ArgumentParser) -> None:
    """`--control`."""
    parser.add_argument(
        "--control",
        type=Path,
        metavar="PATH",
        help="Unix socket for `vdpa-net inspect`, and for programs that ask in JSON (docs/lab.md)",
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    """`--json`, a file for the result."""
    from vdpa_net.cli.parser import new_file  # noqa: PLC0415

    parser.add_argument("--json", type=new_file, metavar="FILE", help="write the result to this file, too")


def add_junit(parser: argparse.ArgumentParser) -> None:
    """`--junit`, a file for the verdict as other tools read it."""
    from vdpa_net.cli.parser import new_file  # noqa: PLC0415

    parser.add_argument("--junit", type=new_file, metavar="FILE", help="write the verdict as JUnit XML, too")


def add_machine(parser: argparse.ArgumentParser, *, min_memory_mib: int) -> None:
    """`--qemu`, `--accel`, `--memory`, `--logs`: which virtual machine, and where its evidence goes."""
    from vdpa_net.cli.parser import whole_number  # noqa: PLC0415

    parser.add_argument(
        "--qemu",
        metavar="QEMU",
        help="host, image or a path (default: the host's, or the lab image's if that is too old or missing)",
    )
    parser.add_argument(
        "--accel", choices=ACCELERATORS, default="auto", help="what runs the guest's instructions"
    )
    parser.add_argument(
        "--memory",
        type=whole_number(min_memory_mib),
        default=256,
        metavar="MIB",
        help="RAM of the guest in MiB",
    )
    parser.add_argument(
        "--logs", type=Path, metavar="DIRECTORY", help="keep logs and evidence in this directory"
    )


def write_json(path: Path, value: object) -> None:
    """Write a result as JSON."""
    import json  # noqa: PLC0415

    path.write_text(json.dumps(value, indent=2) + "\n")
