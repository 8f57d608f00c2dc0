# SPDX-License-Identifier: Apache-2.0
"""The command `vdpa-net`.

Exit codes: 0 done, or the verdict is PASS; 1 the verdict is FAIL; 2 wrong usage or an error, told in one line
on stderr (VDPA_NET_DEBUG=1 adds the traceback); 3 the verdict is NOT RUN.

What a command needs is imported when it runs, so that a device listens soon after the start.
"""

from __future__ import annotations

import os
import signal
import sys
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vdpa_net.errors import OptionError, VdpaNetError

if TYPE_CHECKING:
    from vdpa_net.serve import DeviceRequest

EXIT_ERROR = 2
DEBUG_VARIABLE = "VDPA_NET_DEBUG"

app = typer.Typer(
    name="vdpa-net",
    help="A vDPA network device in user space, with live-migration registers.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
lab_app = typer.Typer(
    help="The lab: its image, and guests that boot from it.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(lab_app, name="lab")

Netdev = Annotated[
    str, typer.Option("--netdev", help="Back end in QEMU's syntax: tap,id=..,ifname=.. or loopback,id=..")
]
Device = Annotated[
    str, typer.Option("--device", help="Device in QEMU's syntax: virtio-net-pci,netdev=..,mac=..,vdpa=on")
]
VhostSocket = Annotated[Path, typer.Option("--vhost-socket", help="Unix socket for the vhost-user front end")]
Control = Annotated[Path | None, typer.Option("--control", help="Unix socket that answers questions in JSON")]
Faults = Annotated[
    list[str] | None,
    typer.Option("--fault", help="Make the device faulty: drop-dirty-mark=RATE or ring-state=vqN:+K"),
]
Seed = Annotated[int, typer.Option("--seed", help="Seed of everything that is left to chance")]
Logs = Annotated[Path | None, typer.Option("--logs", help="Keep logs and evidence in this directory")]
Json = Annotated[Path | None, typer.Option("--json", help="Write the result to this file, too")]


class Transport(Enum):
    """How the driver reaches the device."""

    IN_PROCESS = "in-process"
    VFIO_USER = "vfio-user"


class Accelerator(Enum):
    """What runs the guest's instructions."""

    AUTO = "auto"
    KVM = "kvm"
    TCG = "tcg"


def main() -> None:
    """Run the command line; errors become one line and exit code 2.

    SIGTERM ends a command in the same order as Ctrl-C does.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        app(prog_name="vdpa-net")
    except (VdpaNetError, OSError) as error:
        if os.environ.get(DEBUG_VARIABLE):
            raise
        print(f"vdpa-net: error: {error}", file=sys.stderr)
        sys.exit(EXIT_ERROR)


@app.callback(invoke_without_command=True)
def _top(version: Annotated[bool, typer.Option("--version", help="Print the version")] = False) -> None:
    if version:
        from vdpa_net import __version__  # noqa: PLC0415

        print(f"vdpa-net {__version__}")
        raise typer.Exit


@app.command()
def serve(
    *,
    socket: Annotated[Path, typer.Option("--socket", help="Unix socket for the vfio-user client")],
    netdev: Netdev,
    device: Device,
    control: Control = None,
    fault: Faults = None,
    seed: Seed = 0,
) -> None:
    """Offer a device on a vfio-user socket, for QEMU 10.1 or newer, until SIGTERM or Ctrl-C."""
    from vdpa_net.serve import serve_device  # noqa: PLC0415

    serve_device(_device_request(netdev, device, fault, seed), socket, control)


@app.command()
def driver(
    *,
    device: Annotated[str, typer.Option("--device", help="The device to drive: vfio-user:PATH")],
    vhost_socket: VhostSocket,
    control: Control = None,
) -> None:
    """Drive a device behind a vfio-user socket and offer it on a vhost-user socket."""
    from vdpa_net.serve import serve_driver  # noqa: PLC0415

    kind, _, path = device.partition(":")
    if kind != Transport.VFIO_USER.value or not path:
        raise OptionError(f"--device: {device!r}; expected vfio-user:PATH")
    serve_driver(Path(path), vhost_socket, control)


@app.command()
def vhost(
    *,
    vhost_socket: VhostSocket,
    netdev: Netdev,
    device: Device,
    control: Control = None,
    fault: Faults = None,
    seed: Seed = 0,
) -> None:
    """Device and vDPA driver in one process, offered on a vhost-user socket."""
    from vdpa_net.serve import serve_vhost  # noqa: PLC0415

    serve_vhost(_device_request(netdev, device, fault, seed), vhost_socket, control)


@app.command("log-test")
def log_test(*, fault: Faults = None, seed: Seed = 0, json: Json = None) -> None:
    """The verdict without virtual machines: two devices, a front end double, no root, about a second."""
    from rich.console import Console  # noqa: PLC0415

    from vdpa_net.testing.log_test import run_log_test  # noqa: PLC0415

    raise typer.Exit(run_log_test(seed=seed, faults=fault or [], json_path=json, console=Console()))


@app.command()
def migrate(
    *,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Migrations, back and forth")] = 2,
    transport: Annotated[
        Transport, typer.Option("--transport", help="How the driver reaches the device")
    ] = Transport.IN_PROCESS,
    qemu: Annotated[str | None, typer.Option("--qemu", help="host, image or a path")] = None,
    accel: Annotated[Accelerator, typer.Option("--accel")] = Accelerator.AUTO,
    memory: Annotated[int, typer.Option("--memory", min=128, help="RAM of the guest in MiB")] = 256,
    rate: Annotated[int, typer.Option("--rate", min=1, help="Packets per second and direction")] = 1000,
    fault: Faults = None,
    seed: Seed = 0,
    json: Json = None,
    logs: Logs = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep logs and evidence of a PASS, too")] = False,
) -> None:
    """Migrate a guest under traffic between two devices on one bridge, and give a verdict on its data."""
    from rich.console import Console  # noqa: PLC0415

    from vdpa_net.lab.migration import MigrateOptions, run_migrate  # noqa: PLC0415

    options = MigrateOptions(
        rounds=rounds,
        transport=transport.value,
        qemu=qemu,
        accel=accel.value,
        memory_mib=memory,
        rate_pps=rate,
        faults=tuple(fault or ()),
        seed=seed,
        json_path=json,
        directory=logs,
        keep=keep,
    )
    raise typer.Exit(run_migrate(options, Console()))


@lab_app.command("build")
def lab_build(
    *,
    mirror: Annotated[
        str | None, typer.Option("--mirror", help="Debian mirror; default is that of this machine's apt")
    ] = None,
) -> None:
    """Build the lab image into the user's cache; quick if it is there."""
    from rich.console import Console  # noqa: PLC0415

    from vdpa_net.lab.image import build  # noqa: PLC0415
    from vdpa_net.lab.progress import shown_on  # noqa: PLC0415

    with shown_on(Console()) as progress:
        image = build(mirror, progress=progress)
    print(f"lab image: {image.root} (Linux {image.kernel_release})")


@lab_app.command("boot")
def lab_boot(
    *,
    iommu: Annotated[bool, typer.Option("--iommu", help="Put an intel-iommu in front of the device")] = False,
    qemu: Annotated[str | None, typer.Option("--qemu", help="host, image or a path")] = None,
    accel: Annotated[Accelerator, typer.Option("--accel")] = Accelerator.AUTO,
    memory: Annotated[int, typer.Option("--memory", min=64, help="RAM of the guest in MiB")] = 256,
    reference: Annotated[
        bool, typer.Option("--reference", help="Boot on QEMU's own virtio-net instead, to compare")
    ] = False,
    logs: Logs = None,
    json: Json = None,
) -> None:
    """Boot a stock guest with the device attached; ping and iperf3 both ways."""
    from rich.console import Console  # noqa: PLC0415

    from vdpa_net.lab.boot import BootOptions, run  # noqa: PLC0415
    from vdpa_net.lab.network import enter_private_network  # noqa: PLC0415
    from vdpa_net.lab.progress import shown_on  # noqa: PLC0415

    console = Console()
    options = BootOptions(
        iommu=iommu, qemu=qemu, accel=accel.value, memory_mib=memory, reference=reference, directory=logs
    )
    # Before the progress bar brings a thread of its own.
    enter_private_network()
    with shown_on(console) as progress:
        result = run(options, progress)
    console.print(result.table())
    if json is not None:
        _write_json(json, result.to_json())
    raise typer.Exit(result.exit_code)


def _device_request(netdev: str, device: str, faults: list[str] | None, seed: int) -> DeviceRequest:
    from vdpa_net.migration.faults import parse_fault  # noqa: PLC0415
    from vdpa_net.options import parse_device, parse_netdev  # noqa: PLC0415
    from vdpa_net.serve import DeviceRequest  # noqa: PLC0415

    parsed = tuple(parse_fault(text, seed=seed) for text in faults or [])
    return DeviceRequest(parse_netdev(netdev), parse_device(device), parsed)


def _write_json(path: Path, value: object) -> None:
    import json  # noqa: PLC0415

    path.write_text(json.dumps(value, indent=2) + "\n")
