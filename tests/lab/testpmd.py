# SPDX-License-Identifier: Apache-2.0
"""DPDK's testpmd out of the lab image, forwarding between its ports."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

from vdpa_net.lab import image

STOP_SECONDS = 30
COMMON_DRIVERS = ("librte_mempool_ring", "librte_bus_vdev")


class Testpmd:
    """With these drivers besides the common ones; `eal` and `app` are its words before and behind --."""

    __test__ = False

    def __init__(
        self, directory: Path, name: str, drivers: tuple[str, ...], eal: list[str], app: list[str]
    ) -> None:
        built = image.require()
        program = built.program("usr/bin/dpdk-testpmd")
        libraries = next(built.root.glob("usr/lib/*/dpdk/pmds-*"))
        files = [str(sorted(libraries.glob(f"{item}.so*"))[0]) for item in (*drivers, *COMMON_DRIVERS)]
        self._log_path = directory / f"{name}.log"
        self._log = self._log_path.open("wb")
        self._process = subprocess.Popen(
            program.argv(
                *(word for file in files for word in ("-d", file)),
                *("-l", "0,1", "--no-huge", "-m", "256", "--no-pci"),
                *("--file-prefix", f"vdpa-net-test-{os.getpid()}-{name}"),
                *eal,
                *("--", "--no-mlockall", "--no-numa", "--forward-mode=io", "--auto-start"),
                *("--nb-cores=1", "--total-num-mbufs=8192"),
                *app,
            ),
            env=program.env(),
            # It ends with its standard input.
            stdin=subprocess.PIPE,
            stdout=self._log,
            stderr=self._log,
        )

    def is_running(self) -> bool:
        return self._process.poll() is None

    def await_work(self, seconds: float) -> None:
        """Return when it has had a processor for so long from now on: it polls, and tells nobody of what it
        has seen. Raises AssertionError if it ends."""
        begun = self._processor_seconds()
        while self._processor_seconds() < begun + seconds:
            assert self.is_running(), self.log()
            time.sleep(0.05)

    def _processor_seconds(self) -> float:
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def log(self) -> str:
        return self._log_path.read_text(errors="replace")[-3000:]

    def close(self) -> None:
        """End it in order, which writes its files."""
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        finally:
            self._process.kill()
            self._process.wait()
            assert self._process.stdin is not None
            self._process.stdin.close()
            self._log.close()
