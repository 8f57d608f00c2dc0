# SPDX-License-Identifier: Apache-2.0
"""One boot from start to end: the served device, the machine on it, the guest's trial, the verdict."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from vdpa_net.lab import accelerator, guest, image
from vdpa_net.lab.boot import firmware, linux, testpmd
from vdpa_net.lab.boot.options import MAC, TAP, BootOptions
from vdpa_net.lab.boot.result import BootResult
from vdpa_net.lab.boot.terminal import relay
from vdpa_net.lab.boot.trial import Boot, Trial
from vdpa_net.lab.machine import Machine, MachineOptions, vfio_user_arguments
from vdpa_net.lab.network import GUEST_ADDRESS, LabNetwork
from vdpa_net.lab.progress import ProgressCallback, silent
from vdpa_net.lab.side import SideProcess

TRIALS: dict[str, Trial] = {
    "linux": linux.Linux(),
    "awkward": linux.Awkward(),
    "testpmd": testpmd.Testpmd(),
    "uefi": firmware.Uefi(),
}


def run(options: BootOptions, progress: ProgressCallback = silent) -> BootResult:
    """Boot the guest and try its network, in the private network that the caller has entered.

    Raises LabError if the image is missing or something does not start; the message names the evidence.
    """
    attempt = _Attempt(options, progress)
    result = attempt.run(TRIALS[options.guest])
    if result.passed and options.directory is None:
        shutil.rmtree(attempt.directory)
    return result


def shell(options: BootOptions, progress: ProgressCallback = silent) -> None:
    """Boot the guest and connect its console to this terminal, until it ends or Ctrl-] is typed.

    Raises as `run` does, and LabError without a terminal.
    """
    attempt = _Attempt(options, progress)
    with attempt.started(TRIALS[options.guest], "shell") as boot:
        relay(boot.machine)
    if options.directory is None:
        shutil.rmtree(attempt.directory)


class _Attempt:
    def __init__(self, options: BootOptions, progress: ProgressCallback) -> None:
        self._options = options
        self._progress = progress
        self._image = image.require(options.cache)
        since = (7, 2, 0) if options.reference else accelerator.VFIO_USER_SINCE
        self._qemu = accelerator.choose_qemu(self._image, options.qemu, since)
        self.directory = options.directory or Path(tempfile.mkdtemp(prefix="vdpa-net-boot-"))
        self.directory.mkdir(parents=True, exist_ok=True)
        self._socket = self.directory / "vfio-user.socket"

    def run(self, trial: Trial) -> BootResult:
        with self.started(trial, "") as boot:
            trial.run(boot)
            self._judge(boot)
        return boot.result

    @contextmanager
    def started(self, trial: Trial, role: str) -> Iterator[Boot]:
        """The machine runs; with a role of its own it is not waited for."""
        with ExitStack() as stack:
            yield self._start(stack, trial, role)

    def _start(self, stack: ExitStack, trial: Trial, role: str) -> Boot:
        options = self._options
        small = trial.build(self._image, options.cache)
        accel = self._choose_accelerator(small)
        machine = Machine(self._machine_options(trial, small, role, accel), self.directory)
        network = stack.enter_context(LabNetwork())
        device = None if options.reference else self._serve(stack)
        boot = Boot(
            options,
            self._image,
            self.directory,
            self._result(accel),
            self._progress,
            network,
            machine,
            device,
        )
        self._progress("booting the guest", None)
        started_ns = time.monotonic_ns()
        stack.enter_context(machine)
        network.attach(TAP)
        network.add_neighbour(GUEST_ADDRESS, MAC)
        if not role:
            trial.before(boot)
            boot.result.ready_ms = (time.monotonic_ns() - started_ns) / 1e6
        return boot

    def _result(self, accel: str) -> BootResult:
        options = self._options
        version = accelerator.version_text(accelerator.qemu_version(self._qemu))
        return BootResult(
            version,
            accel,
            options.machine,
            options.needs_iommu,
            guest=options.guest,
            evidence=str(self.directory),
        )

    def _choose_accelerator(self, small: guest.Guest | None) -> str:
        self._progress("trying KVM", None)
        probe = small or guest.build(self._image, cache=self._options.cache)
        return accelerator.choose_accelerator(self._qemu, probe, self._options.accel, self._options.cache)

    def _machine_options(
        self, trial: Trial, small: guest.Guest | None, role: str, accel: str
    ) -> MachineOptions:
        options = self._options
        return MachineOptions(
            "guest",
            self._qemu,
            small,
            trial.append(small, options, role) if small else "",
            accel=accel,
            memory_mib=options.memory_mib,
            cpus=options.cpus,
            arguments=(*trial.arguments(self._image, self.directory), *self._device_arguments()),
            iommu=options.needs_iommu,
            board=options.machine if options.machine != "q35" else "",
            reboot=options.guest == "awkward",
        )

    def _device_arguments(self) -> tuple[str, ...]:
        options = self._options
        if not options.reference:
            return vfio_user_arguments(self._socket, None if options.machine == "pc" else "rp0")
        port = ("-device", "pcie-root-port,id=rp0,slot=1")
        return ("-netdev", options.netdev_words, *port, "-device", options.reference_words)

    def _serve(self, stack: ExitStack) -> SideProcess:
        self._progress("starting the device", None)
        options = self._options
        words = ["serve", "--socket", str(self._socket), "--profile", options.profile]
        words += ["--netdev", options.netdev_words, "--device", options.device_words]
        process = SideProcess("serve", words, self.directory)
        stack.callback(process.stop)
        process.wait_ready()
        return process

    def _judge(self, boot: Boot) -> None:
        """What the device has to say: a stock driver gives it no reason for a violation."""
        if boot.device is None:
            return
        found = boot.device.call("inspect")["violations"]
        boot.result.violations = [
            f"{entry['where']}: {entry['what']} ({entry['clause']}) {entry['detail']}" for entry in found
        ]
        boot.result.expect(not found, f"no violation, got {len(found)}")
