# SPDX-License-Identifier: Apache-2.0
"""What a served device lets a person see while it runs: register trace, violations, metrics."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from vdpa_net.record import Record

if TYPE_CHECKING:
    from vdpa_net.device.net_device import NetDevice
    from vdpa_net.migration.violations import Violation

STDERR = "-"
"""Name that stands for standard error where a file can be named."""

TOLD_VIOLATIONS = 20


class Observation(Record):
    """What to show: `trace` is a file name or STDERR, `metrics_port` a TCP port (0: a free one)."""

    trace: str | None = None
    metrics_port: int | None = None


def observe(
    stack: contextlib.ExitStack, device: NetDevice, wanted: Observation, say: Callable[[str], None]
) -> None:
    """Begin to observe a device, until the stack unwinds.

    Violations are always told, on standard error. Raises OSError for a file that can't be opened, OptionError
    for a port that can't be had, MissingTool when a Python package is missing.
    """
    device.violations.listen(ViolationReport(_to_stderr))
    if wanted.trace is not None:
        from vdpa_net.device.trace import RegisterTrace  # noqa: PLC0415

        stack.callback(device.on_access(RegisterTrace(_line_writer(stack, wanted.trace))))
        say(f"trace of register accesses: {'standard error' if wanted.trace == STDERR else wanted.trace}")
    if wanted.metrics_port is not None:
        from vdpa_net.metrics import MetricsServer  # noqa: PLC0415

        server = stack.enter_context(MetricsServer(device, wanted.metrics_port))
        say(f"metrics: {server.url}")


class ViolationReport:
    """Tells the first violations in a line each; the rest are for `vdpa-net inspect`."""

    def __init__(self, write_line: Callable[[str], None]) -> None:
        self._write_line = write_line
        self._lock = threading.Lock()
        self._told = 0

    def __call__(self, violation: Violation) -> None:
        """Take one violation."""
        with self._lock:
            self._told += 1
            told = self._told
        if told <= TOLD_VIOLATIONS:
            self._write_line(f"violation: {violation}")
        elif told == TOLD_VIOLATIONS + 1:
            self._write_line("violation: more of them are counted, not told; vdpa-net inspect lists 1024")


def _line_writer(stack: contextlib.ExitStack, name: str) -> Callable[[str], None]:
    if name == STDERR:
        return _to_stderr
    file = stack.enter_context(Path(name).open("w", buffering=1, encoding="utf-8"))  # noqa: SIM115

    def write_line(line: str) -> None:
        # A full disk must not reach the driver as an error of its access.
        with contextlib.suppress(OSError, ValueError):
            file.write(line + "\n")

    return write_line


def _to_stderr(line: str) -> None:
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(line + "\n")
        sys.stderr.flush()
