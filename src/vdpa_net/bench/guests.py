# SPDX-License-Identifier: Apache-2.0
"""The same Linux guest three times: on our device over vfio-user, on our device over the vhost socket, and on
QEMU's own virtio-net with vhost=off. They stay up, idle, while it is another's turn. All three take part in a
round, so that both of ours are held against the same samples of QEMU's.

Under TCG the guest's processor is the bottleneck: what separates back ends is the processor time that they
spend on a frame: that of all threads of the device, kernel included. QEMU's own device is its main thread.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path

from vdpa_net.bench.case import Case, Goal, Shared
from vdpa_net.bench.control import cpu_ns
from vdpa_net.bench.rounds import in_turn
from vdpa_net.errors import LabError
from vdpa_net.lab import accelerator, guest
from vdpa_net.lab.image import Image
from vdpa_net.lab.iperf import received_bits_per_s, received_packets_per_s
from vdpa_net.lab.machine import Machine, MachineOptions, vfio_user_arguments
from vdpa_net.lab.network import LAB_ADDRESS, LAB_MAC, PREFIX_LENGTH, LabNetwork
from vdpa_net.lab.side import SideProcess

VFIO_USER = "vdpa-net, vfio-user"
VHOST_SOCKET = "vdpa-net, vhost socket"
QEMU = "QEMU virtio-net, vhost=off"

GBIT, PACKETS, CPU, PING = "Gbit/s", "kpackets/s", "CPU us a frame", "ping us"

QUICK_ROUNDS = 3
BOOT_SECONDS = 120
GRACE_SECONDS = 60
PINGS = 200
SMALL_PAYLOAD_BYTES = 22
"""A UDP payload that makes a frame of 64 bytes."""
ROUND_TRIP = re.compile(r"round-trip min/avg/max = [\d.]+/([\d.]+)/")


@dataclass(frozen=True)
class Contestant:
    """A guest that is up: its address, its tap, its console, and the threads that are its device."""

    name: str
    address: str
    tap: str
    machine: Machine
    device_cpu_ns: Callable[[], int]


class Guests:
    """Boots the contestants and takes samples of their networks."""

    def __init__(self, image: Image, directory: Path, network: LabNetwork, seconds: float) -> None:
        self._image = image
        self._directory = directory
        self._network = network
        self._seconds = max(1, round(seconds))
        self._qemu = accelerator.choose_qemu(image, None, accelerator.VFIO_USER_SINCE)
        self._guest = guest.build(image, tools=guest.BOOT_TOOLS, agent=False)
        self._accel = accelerator.choose_accelerator(self._qemu, self._guest)
        self._consumed: dict[str, int] = {}

    def boot(self, names: Sequence[str], stack: ExitStack) -> dict[str, Contestant]:
        """Boot them at the same time; they end with the stack."""
        started = {name: self._start(name, number, stack) for number, name in enumerate(names)}
        for contestant in started.values():
            outcome = contestant.machine.wait_console(r"LAB (ready .*|failed .*)", BOOT_SECONDS)
            if outcome.startswith("failed"):
                raise contestant.machine.failure(f"says: {outcome}")
        return started

    def _start(self, name: str, number: int, stack: ExitStack) -> Contestant:
        tap, address = f"guest{number}", f"10.87.0.{10 + number}"
        mac = f"52:54:00:be:0c:{10 + number:02x}"
        process, arguments = self._device(name, tap, mac, stack)
        options = MachineOptions(
            f"guest{number}",
            self._qemu,
            self._guest,
            self._guest.append(
                "boot", address=f"{address}/{PREFIX_LENGTH}", peer=LAB_ADDRESS, peer_mac=LAB_MAC
            ),
            accel=self._accel,
            arguments=arguments,
        )
        machine = stack.enter_context(Machine(options, self._directory))
        self._network.attach(tap)
        self._network.add_neighbour(address, mac)
        pid = machine.pid if process is None else process.pid
        threads = {pid} if process is None else None
        return Contestant(name, address, tap, machine, partial(cpu_ns, pid, threads))

    def _device(
        self, name: str, tap: str, mac: str, stack: ExitStack
    ) -> tuple[SideProcess | None, tuple[str, ...]]:
        netdev = f"tap,id=n,ifname={tap},script=no,downscript=no,vhost=off"
        nic = f"virtio-net-pci,netdev=n,mac={mac}"
        if name == QEMU:
            return None, ("-netdev", netdev, "-device", f"{nic},romfile=")
        socket = self._directory / f"{tap}.sock"
        if name == VFIO_USER:
            words, arguments = ["serve", "--socket"], vfio_user_arguments(socket)
        else:
            words = ["vhost", "--vhost-socket"]
            arguments = (
                *("-chardev", f"socket,id=c,path={socket}", "-netdev", "vhost-user,id=n,chardev=c"),
                *("-device", f"{nic},romfile="),
            )
        words += [str(socket), "--netdev", netdev, "--device", f"{nic},vdpa=on"]
        process = SideProcess(tap, words, self._directory)
        stack.callback(process.stop)
        process.wait_ready()
        return process, arguments

    def tcp(self, contestant: Contestant, *words: str) -> dict[str, float]:
        """TCP throughput in Gbit/s."""
        return {GBIT: received_bits_per_s(self._iperf(contestant, *words)) / 1e9}

    def udp(self, contestant: Contestant, *words: str) -> dict[str, float]:
        """Small UDP packets as fast as they go.

        PACKETS, thousands in a second: from the guest those that arrive, to the guest those that it takes
        from its tap, because most of a flood is dropped by the guest itself. CPU, microseconds of processor
        time of the device, for each frame that passes the tap.
        """
        frames, cpu, start = self._frames(contestant), contestant.device_cpu_ns(), time.monotonic()
        udp = ("--udp", "--length", str(SMALL_PAYLOAD_BYTES), "--bandwidth", "0")
        report = self._iperf(contestant, *udp, *words)
        # The last thing that iperf3 waits for comes behind all packets.
        seconds = time.monotonic() - start
        frames, cpu = self._frames(contestant) - frames, contestant.device_cpu_ns() - cpu
        if frames == 0:
            raise LabError(f"no frame passed {contestant.tap} while iperf3 ran")
        packets_per_s = received_packets_per_s(report) if "--reverse" in words else frames / seconds
        return {PACKETS: packets_per_s / 1e3, CPU: cpu / 1e3 / frames}

    def ping(self, contestant: Contestant) -> dict[str, float]:
        """Mean round trip of a ping from the lab, in microseconds."""
        busybox = self._image.program("usr/bin/busybox")
        text = busybox.run("ping", "-c", str(PINGS), "-i", "0.005", "-q", contestant.address)
        found = ROUND_TRIP.search(text)
        if found is None:
            raise LabError(f"ping of {contestant.name} told no round trip: {text}")
        return {PING: float(found[1]) * 1e3}

    def _frames(self, contestant: Contestant) -> int:
        counters = self._network.counters(contestant.tap)
        return counters["rx_packets"] + counters["tx_packets"]

    def _iperf(self, contestant: Contestant, *words: str) -> str:
        console = contestant.machine.console
        seen = self._consumed.get(contestant.name, 0)
        contestant.machine.wait_console("LAB listening iperf3", GRACE_SECONDS, start=seen)
        self._consumed[contestant.name] = console.position
        asked = ("--client", contestant.address, "--time", str(self._seconds), "--json", *words)
        return self._image.program("usr/bin/iperf3").run(*asked, timeout_s=self._seconds + GRACE_SECONDS)


@contextmanager
def guest_cases(
    image: Image, directory: Path, network: LabNetwork, seconds: float, *, quick: bool = True
) -> Iterator[list[Case]]:
    """Throughput, packets, processor time a frame and round trips, for each of our transports."""
    with ExitStack() as stack:
        guests = Guests(image, directory, network, seconds)
        up = guests.boot((VHOST_SOCKET, VFIO_USER, QEMU), stack)
        yield list(cases(guests, up, QUICK_ROUNDS if quick else None))


def cases(guests: Guests, up: Mapping[str, Contestant], max_rounds: int | None) -> Iterator[Case]:
    """All cases; each figure of all contestants is measured once, in rounds of all three."""

    def rounds(take: Callable[..., Mapping[str, float]], *words: str) -> Shared:
        return together({name: partial(take, contestant, *words) for name, contestant in up.items()})

    tcp_out, tcp_in = rounds(guests.tcp, "--reverse"), rounds(guests.tcp)
    udp_out, udp_in = rounds(guests.udp, "--reverse"), rounds(guests.udp)
    ping = rounds(guests.ping)
    for transport, subject, where, more, slower in (
        ("vhost", VHOST_SOCKET, "the vhost socket", 1.1, 1.0),
        ("vfio-user", VFIO_USER, "vfio-user", 1.0, 1.2),
    ):
        for name, title, unit, samples, figure, goal in (
            ("tcp-out", "TCP from the guest", "Gbit/s", tcp_out, GBIT, Goal(QEMU, at_least=more)),
            ("tcp-in", "TCP to the guest", "Gbit/s", tcp_in, GBIT, Goal(QEMU, at_least=more)),
            (
                "udp-out",
                "UDP from the guest, 64 B",
                "kpackets/s",
                udp_out,
                PACKETS,
                Goal(QEMU, at_least=more),
            ),
            ("cpu-out", "device CPU a frame out", "us", udp_out, CPU, Goal(QEMU, at_most=0.3)),
            ("udp-in", "UDP to the guest, 64 B", "kpackets/s", udp_in, PACKETS, Goal(QEMU, at_least=more)),
            ("cpu-in", "device CPU a frame in", "us", udp_in, CPU, Goal(QEMU, at_most=0.7)),
            ("ping", "ping", "us", ping, PING, Goal(QEMU, at_most=slower)),
        ):
            yield Case(
                f"guest-{transport}-{name}",
                f"guest over {where}, {title}",
                unit,
                {who: samples.figure((who, figure)) for who in (subject, QEMU)},
                (goal,),
                subject=subject,
                max_rounds=max_rounds,
                is_paced=False,
            )


def together(takes: Mapping[str, Callable[[], Mapping[str, float]]]) -> Shared:
    """Samples of a round of all contestants, in an order that alternates; by contestant and figure."""
    numbers = count()

    def take() -> dict[tuple[str, str], float]:
        order = in_turn(takes, next(numbers))
        return {(who, figure): value for who, one in order.items() for figure, value in one().items()}

    return Shared(take)
