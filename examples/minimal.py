#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A vdpa net device in a few lines, which tells what its driver does.

    python examples/minimal.py /tmp/vdpa.sock          packets come back to the guest
    python examples/minimal.py /tmp/vdpa.sock vt0      packets go to the tap vt0, made if it is not there

QEMU 10.1 or newer attaches it with the arguments that `vdpa-net serve` prints.
"""

import sys

from vdpa_net import Access, Loopback, NetDevice, Tap, serve


class MyDevice(NetDevice):
    """A network device that tells of every change of its status."""

    def status_written(self, access: Access) -> None:
        """Called at each register access, with the registers that it covers."""
        if access.write and access.name == "common_cfg.device_status":
            print(f"the driver sets its status to {access.value:#x}", flush=True)


def main() -> None:
    """Serve until SIGTERM or Ctrl-C."""
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    socket, *tap = sys.argv[1:]
    backend = Tap(tap[0]) if tap else Loopback()
    with MyDevice(backend, mac="52:54:00:12:34:56") as device:
        device.on_access(device.status_written)
        device.on_event(lambda name, info: print(name, info, flush=True))
        serve(device, socket, on_listening=lambda: print(f"listening on {socket}", flush=True))
        print(f"{device.violations.count} violations")
    backend.close()


if __name__ == "__main__":
    main()
