# SPDX-License-Identifier: Apache-2.0
"""The commands: their names, what they are for, and the modules that hold them."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Mapping, Sequence
from typing import Protocol, cast

from vdpa_net.cli.parser import MARGIN, Parser, columns, near
from vdpa_net.errors import OptionError
from vdpa_net.record import Record

PROGRAM = "vdpa-net"
ABOUT = "A vDPA network device in user space, with live-migration registers."


class Command(Record):
    """A command: `module` lies in this package and is a `CommandModule`."""

    module: str
    summary: str


class Group(Record):
    """A word that commands of their own follow."""

    summary: str
    members: Mapping[str, Command | Group]


class CommandModule(Protocol):
    """What the module of a command offers; `DETAILS` is optional text behind the list of options."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the arguments."""

    def run(self, arguments: argparse.Namespace) -> int:
        """Run the command; the exit code. Raises VdpaNetError."""


COMMANDS = Group(
    ABOUT,
    {
        "serve": Command(
            "serve", "Offer a device on a vfio-user socket, for QEMU 10.1 or newer, until SIGTERM or Ctrl-C."
        ),
        "driver": Command(
            "driver",
            "Drive a device (vfio-user:PATH or vfio:ADDRESS) and offer it on a vhost-user socket.",
        ),
        "vhost": Command("vhost", "Device and vDPA driver in one process, offered on a vhost-user socket."),
        "inspect": Command(
            "inspect", "Show a live device: features, queues, LM registers, counters, violations."
        ),
        "log-test": Command(
            "log_test",
            "The verdict without virtual machines: no root, no QEMU, about a second.",
        ),
        "migrate": Command(
            "migrate",
            "Migrate a guest under traffic between two devices, and judge what was lost.",
        ),
        "bench": Command("bench", "Measure the device beside its peers and its limits, in one run."),
        "libvirt": Group(
            "Domains of libvirt with vdpa=on.",
            {
                "convert": Command(
                    "libvirt_convert",
                    "Convert a domain with virtio-net-pci,vdpa=on for stock QEMU and served devices.",
                ),
            },
        ),
        "lab": Group(
            "The lab: its image, and guests that boot from it.",
            {
                "build": Command(
                    "lab_build", "Build the lab image into the user's cache; quick if it is there."
                ),
                "boot": Command(
                    "lab_boot", "Boot a guest (Linux, DPDK, UEFI) on a served device and try its network."
                ),
                "nested": Command(
                    "lab_nested",
                    "Migrate a guest of a guest between two level-1 guests, and judge what was lost.",
                ),
            },
        ),
    },
)


def run_command(argv: Sequence[str]) -> int:
    """Find the command, parse its arguments, run it; the exit code. Raises VdpaNetError."""
    if argv and argv[0] == "--version":
        from vdpa_net import __version__  # noqa: PLC0415

        print(f"{PROGRAM} {__version__}")
        return 0
    words = [PROGRAM]
    entry: Command | Group = COMMANDS
    rest = list(argv)
    while isinstance(entry, Group):
        if not rest or rest[0] in ("--help", "-h"):
            print(_group_help(words, entry))
            return 0 if rest else 2
        entry = _member(entry, words, rest[0])
        words.append(rest.pop(0))
    module = cast(CommandModule, importlib.import_module(f"vdpa_net.cli.{entry.module}"))
    parser = Parser(" ".join(words), entry.summary, getattr(module, "DETAILS", ""))
    module.add_arguments(parser)
    return module.run(parser.parse(rest))


def _member(group: Group, words: Sequence[str], name: str) -> Command | Group:
    if name not in group.members:
        kind = "option" if name.startswith("-") else "command"
        raise OptionError(
            f"{' '.join(words)}: unknown {kind} {name!r}{near(name, group.members)};"
            f" expected one of {', '.join(group.members)}"
        )
    return group.members[name]


def _group_help(words: Sequence[str], group: Group) -> str:
    import textwrap  # noqa: PLC0415

    called = " ".join(words)
    lines = [f"usage: {called} COMMAND ...", "", group.summary, "", "commands:"]
    width = 2 + max(len(name) for name in group.members)
    for name, entry in group.members.items():
        lines += textwrap.wrap(
            f"  {name:{width}}{entry.summary}", width=columns() - MARGIN, subsequent_indent=" " * (width + 2)
        )
    lines += ["", f"{called} COMMAND --help tells more about one."]
    if group is COMMANDS:
        lines.append(f"{called} --version prints the version.")
    return "\n".join(lines)
