# SPDX-License-Identifier: Apache-2.0
"""The same Linux guest three times: on our device over vfio-user, on our device over the vhost socket, and on
QEMU's own virtio-net with vhost=off. They stay up, idle, while it is another's turn. All three take part in a
round, so that both of ours are held against the same samples of QEMU's: short turns, there and back, QEMU's
next to both of ours. The counters of the taps tell what passed.

Under TCG the guest's processor is the bottleneck: what separates back ends is the processor time that they
spend on a frame: that of all threads of the device, kernel included. QEMU's own device is its main thread.
"""

from __future__ import annotations

import re
import signal
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from vdpa_net.bench.case import Case, Goal, Shared
from vdpa_net.bench.control import cpu_ns
from vdpa_net.bench.rounds import in_turn
from vdpa_net.errors import LabError
from vdpa_net.lab import accelerator, guest
from vdpa_net.lab.image import Image
from vdpa_net.lab.machine import Machine, MachineOptions, vfio_user_arguments
from vdpa_net.lab.network import LAB_ADDRESS, LAB_MAC, PREFIX_LENGTH, LabNetwork
from vdpa_net.lab.side import SideProcess

VFIO_USER = "vdpa-net, vfio-user"
VHOST_SOCKET = "vdpa-net, vhost socket"
QEMU = "QEMU virtio-net, vhost=off"

GBIT, PACKETS, CPU, PING = "Gbit/s", "kpackets/s", "CPU us a frame", "ping us"

CPU_NS = "cpu_ns"

QUICK_ROUNDS, FULL_ROUNDS = 2, 7
SAMPLE_SECONDS = 0.4
START_SECONDS = 30
STREAM_SECONDS = 300
"""Longer than a sample takes on any machine."""
SETTLE_SECONDS = 0.3
FLOWING_FRAMES = 200
BOOT_SECONDS = 120
GRACE_SECONDS = 60
PINGS = 75
_UDP = ("--udp", "--length", "22", "--bandwidth", "0")
"""A payload that makes a frame of 64 bytes."""
ROUND_TRIP = re.compile(r"round-trip min/avg/max = [\d.]+/([\d.]+)/")


@dataclass(frozen=True)
class Contestant:
    """A guest that is up: its address, its tap, its console, and the threads that are its device."""

    name: str
    address: str
    tap: str
    machine: Machine
    device_cpu_ns: Callable[[], int]


@dataclass(frozen=True)
class Passed:
    """What was counted at a contestant's tap, and of its device's processor time, in so many seconds."""

    counts: Mapping[str, int]
    seconds: float


class Guests:
    """Boots the contestants and takes samples of their networks."""

    def __init__(self, image: Image, directory: Path, network: LabNetwork, seconds: float) -> None:
        self._image = image
        self._directory = directory
        self._network = network
        self._seconds = max(SAMPLE_SECONDS, seconds)
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
        """TCP throughput in Gbit/s of frames."""
        passed = self._stream(contestant, *words)
        column = "rx_bytes" if "--reverse" in words else "tx_bytes"
        return {GBIT: 8 * passed.counts[column] / passed.seconds / 1e9}

    def udp(self, contestant: Contestant, *words: str) -> dict[str, float]:
        """Small UDP packets as fast as they go.

        PACKETS, thousands in a second: from the guest those that come out of its tap, to the guest those that
        it takes from there, because most of a flood is dropped by the guest itself. CPU, microseconds of
        processor time of the device, for each frame that passes the tap.
        """
        passed = self._stream(contestant, *_UDP, *words)
        column = "rx_packets" if "--reverse" in words else "tx_packets"
        frames = passed.counts["rx_packets"] + passed.counts["tx_packets"]
        return {
            PACKETS: passed.counts[column] / passed.seconds / 1e3,
            CPU: passed.counts[CPU_NS] / 1e3 / frames,
        }

    def ping(self, contestant: Contestant) -> dict[str, float]:
        """Mean round trip of a ping from the lab, in microseconds."""
        busybox = self._image.program("usr/bin/busybox")
        text = busybox.run("ping", "-c", str(PINGS), "-i", "0.005", "-q", contestant.address)
        found = ROUND_TRIP.search(text)
        if found is None:
            raise LabError(f"ping of {contestant.name} told no round trip: {text}")
        return {PING: float(found[1]) * 1e3}

    def _stream(self, contestant: Contestant, *words: str) -> Passed:
        """A part of a stream that is under way. Raises LabError where there is none."""
        with self._iperf(contestant, *words) as client:
            self._wait_flowing(contestant)
            time.sleep(SETTLE_SECONDS)
            before, started = self._counters(contestant), time.monotonic()
            time.sleep(self._seconds)
            after, seconds = self._counters(contestant), time.monotonic() - started
            if client.poll() is not None:
                told = client.stdout.read() if client.stdout else ""
                raise LabError(f"iperf3 with {contestant.name} ended by itself: {told[-2000:]}")
        counts = {key: value - before[key] for key, value in after.items()}
        if counts["rx_packets"] + counts["tx_packets"] == 0:
            raise LabError(f"no frame passed {contestant.tap} in {seconds:.1f} s of a stream")
        return Passed(counts, seconds)

    def _counters(self, contestant: Contestant) -> dict[str, int]:
        return {**interface_counters(contestant.tap), CPU_NS: contestant.device_cpu_ns()}

    def _wait_flowing(self, contestant: Contestant) -> None:
        """Until the stream is under way."""
        deadline = time.monotonic() + START_SECONDS
        first = self._frames(contestant)
        while self._frames(contestant) < first + FLOWING_FRAMES:
            if time.monotonic() > deadline:
                raise LabError(
                    f"fewer than {FLOWING_FRAMES} frames passed {contestant.tap} in {START_SECONDS} s"
                )
            time.sleep(0.01)

    def _frames(self, contestant: Contestant) -> int:
        counters = interface_counters(contestant.tap)
        return counters["rx_packets"] + counters["tx_packets"]

    @contextmanager
    def _iperf(self, contestant: Contestant, *words: str) -> Iterator[subprocess.Popen[str]]:
        """A stream that ends with the context."""
        console = contestant.machine.console
        seen = self._consumed.get(contestant.name, 0)
        contestant.machine.wait_console("LAB listening iperf3", GRACE_SECONDS, start=seen)
        self._consumed[contestant.name] = console.position
        asked = ("--client", contestant.address, "--time", str(STREAM_SECONDS), *words)
        program = self._image.program("usr/bin/iperf3")
        with subprocess.Popen(
            program.argv(*asked),
            env=program.env(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as client:
            try:
                yield client
            finally:
                # It tells the other end, and leaves.
                client.send_signal(signal.SIGINT)
                client.communicate(timeout=GRACE_SECONDS)
        self._wait_drained(contestant)

    def _wait_drained(self, contestant: Contestant) -> None:
        """Until nothing of a flood waits for the guest: an answer comes behind all of it."""
        busybox, deadline = self._image.program("usr/bin/busybox"), time.monotonic() + GRACE_SECONDS
        while True:
            try:
                busybox.run("ping", "-c", "1", "-W", "1", "-q", contestant.address)
                return
            except LabError:
                if time.monotonic() > deadline:
                    raise


def interface_counters(name: str) -> dict[str, int]:
    """What the kernel counted at an interface of this process's network."""
    found = re.search(rf"^\s*{name}:(.*)$", Path("/proc/self/net/dev").read_text(), re.MULTILINE)
    if found is None:
        raise LabError(f"there is no interface {name}")
    columns = [int(value) for value in found[1].split()]
    return {
        "rx_bytes": columns[0],
        "rx_packets": columns[1],
        "tx_bytes": columns[8],
        "tx_packets": columns[9],
    }


@contextmanager
def guest_cases(
    image: Image, directory: Path, network: LabNetwork, seconds: float, *, quick: bool = True
) -> Iterator[list[Case]]:
    """Throughput, packets, processor time a frame and round trips, for each of our transports."""
    with ExitStack() as stack:
        guests = Guests(image, directory, network, seconds)
        up = guests.boot((VHOST_SOCKET, QEMU, VFIO_USER), stack)
        yield list(cases(guests, up, QUICK_ROUNDS if quick else FULL_ROUNDS))


def cases(guests: Guests, up: Mapping[str, Contestant], max_rounds: int | None) -> Iterator[Case]:
    """All cases; each figure of all contestants is measured once, in rounds of all three."""

    def rounds(take: Callable[..., Mapping[str, float]], *words: str) -> Shared:
        return there_and_back({name: partial(take, contestant, *words) for name, contestant in up.items()})

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


def there_and_back(takes: Mapping[str, Callable[[], Mapping[str, float]]]) -> Shared:
    """Rounds of all contestants: A B C, C B A, the mean of both samples; by contestant and figure.

    So a pace that changes evenly is the same for all of them.
    """

    def take() -> dict[tuple[str, str], float]:
        taken: dict[tuple[str, str], list[float]] = {}
        for number in range(2):
            for who, one in in_turn(takes, number).items():
                for figure, value in one().items():
                    taken.setdefault((who, figure), []).append(value)
        return {key: statistics.mean(values) for key, values in taken.items()}

    return Shared(take)
