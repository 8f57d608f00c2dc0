#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A vdpa net device on a loopback, behind a vfio-user socket, that tells what happens to it.

    python examples/minimal.py /tmp/vdpa.sock

`vdpa-net serve` prints how QEMU attaches it.
"""

from __future__ import annotations

import signal
import sys

from vdpa_net import Loopback, NetDevice
from vdpa_net.transport.vfio_user.server import VfioUserServer


def main() -> None:
    """Serve until SIGTERM or Ctrl-C."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    with NetDevice(Loopback(), mac="52:54:00:12:34:56", vdpa=True) as device:
        device.on_event(lambda name, info: print(name, info, flush=True))
        with VfioUserServer(sys.argv[1], device):
            print(f"listening on {sys.argv[1]}", flush=True)
            signal.sigwait({signal.SIGINT, signal.SIGTERM})
        print(f"{device.violations.count} violations")


if __name__ == "__main__":
    main()
