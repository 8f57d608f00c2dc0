# SPDX-License-Identifier: Apache-2.0
"""How fast the bench's two processors are just now.

A virtual processor is a hyperthread as a rule. While its sibling works for somebody else it has little more
than half of its throughput, for seconds or for milliseconds, and steal time shows nothing. What is compared
has to be measured at one pace.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from vdpa_net.bench import native
from vdpa_net.errors import LabError

CPUS = (native.FRONT_END_CPU, native.DEVICE_CPU)

Pace = tuple[float, ...]
"""What a fixed piece of work takes on each of CPUS, in microseconds."""

Probe = Callable[[], Pace]
"""Measure the pace, in some 2 ms."""


@contextmanager
def probing() -> Iterator[Probe]:
    """A probe: a native process on each processor, which sleeps until it is asked. Raises MissingTool."""
    with ExitStack() as stack:
        processes = [stack.enter_context(_started(cpu)) for cpu in CPUS]
        yield lambda: tuple(_ask(process) for process in processes)


@contextmanager
def _started(cpu: int) -> Iterator[subprocess.Popen[str]]:
    words = [str(native.find()), "pace", "--cpu", str(cpu)]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        # It ends with its standard input.
        process.communicate()


def _ask(process: subprocess.Popen[str]) -> float:
    assert process.stdin is not None and process.stdout is not None
    try:
        process.stdin.write("\n")
        process.stdin.flush()
        return float(json.loads(process.stdout.readline())["ns"]) / 1000
    except (OSError, ValueError) as error:
        raise LabError(f"the probe of the processors' pace has ended: {error}") from error


def unevenness(paces: Sequence[Pace]) -> float:
    """The slowest probe by the fastest, on the processor where that is most; 1.0 for none."""
    return max((max(told) / min(told) for told in zip(*paces, strict=True)), default=1.0)


@dataclass(frozen=True)
class Evenness:
    """The pace while a case, or a run, was measured.

    `fastest_us` and `slowest_us` are what the probe took on the device's processor, 0 where none was taken;
    `retaken` rounds were taken again because the pace changed within them, `disturbed` ones because what is
    measured had to wait for other work alone; `uneven` and `waited` ones of `rounds` were kept though.
    """

    rounds: int = 0
    retaken: int = 0
    uneven: int = 0
    fastest_us: float = 0.0
    slowest_us: float = 0.0
    disturbed: int = 0
    waited: int = 0

    def __add__(self, other: Evenness) -> Evenness:
        both = [one for one in (self, other) if one.fastest_us]
        return Evenness(
            self.rounds + other.rounds,
            self.retaken + other.retaken,
            self.uneven + other.uneven,
            min((one.fastest_us for one in both), default=0.0),
            max((one.slowest_us for one in both), default=0.0),
            self.disturbed + other.disturbed,
            self.waited + other.waited,
        )

    def __str__(self) -> str:
        if not self.fastest_us:
            return "pace of the processor not probed"
        change = self.slowest_us / self.fastest_us
        retaken = f"{self.retaken} rounds taken again for it, {self.uneven} of {self.rounds} uneven"
        told = f"pace of the processor 1 to {change:.2f}, {retaken}"
        if not self.disturbed + self.waited:
            return told
        return f"{told}; {self.disturbed} taken again for other work, {self.waited} disturbed"
