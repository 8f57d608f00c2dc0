#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A device to start your own from: every option, every place where Python can look or reach in.

    python examples/template.py /tmp/vdpa.sock

Take out what you don't need; `minimal.py` is what is left when all of it is gone.
"""

from __future__ import annotations

import json
import sys

from vdpa_net import (
    DROP,
    Access,
    Answer,
    Loopback,
    NetDevice,
    Packet,
    RegisterTrace,
    Violation,
    parse_fault,
    serve,
)
from vdpa_net.device.packet_hooks import PacketAnswer


class TemplateDevice(NetDevice):
    """Subclass to change what the device does; every method keeps its promise by calling the one below it."""

    def region_write(self, index: int, offset: int, data: bytes) -> None:
        """Each write of a driver or VMM, before registers are looked for (0 to 5: BARs, 7: PCI config)."""
        super().region_write(index, offset, data)

    def region_read(self, index: int, offset: int, count: int) -> bytes:
        """Each read."""
        return super().region_read(index, offset, count)

    def reset(self) -> None:
        """The VMM's reset. A driver's own (device_status = 0) is a register write, not this."""
        super().reset()

    def detach_client(self) -> None:
        """The client has gone, however it went: its maps, vectors and state go, too."""
        super().detach_client()

    def packet_from_guest(self, packet: Packet) -> PacketAnswer:
        """Each packet of the guest. Without this method, the next one and a hook no Python is on the way."""
        return super().packet_from_guest(packet)

    def packet_to_guest(self, packet: Packet) -> PacketAnswer:
        """Each packet for the guest. None lets it be, bytes are a new frame, DROP drops it."""
        return super().packet_to_guest(packet)


def small_queues_only(access: Access) -> Answer:
    """A hook: an int or bytes take the place of what is written or was read, None lets it be."""
    if access.name == "common_cfg.queue_size" and not access.write:
        return min(access.value, 64)
    return None


def no_logging(access: Access) -> Answer:
    """A hook: DROP lets a write go nowhere. The driver will read back that its log did not start."""
    return DROP if access.write and access.name == "lm.LM_LOGGING_CTRL" else None


def told(name: str, info: dict[str, object]) -> None:
    """Events: started, driver_ok, queue_started, queue_stopped, log_started, log_stopped, needs_reset, reset,
    announced, client_detached, ... `info["ns"]` is time.monotonic_ns().

    Runs in the thread that caused the event, often with the device's lock held: be short, don't wait.
    """
    print(f"event {name}: {info}", flush=True)


def wrong(violation: Violation) -> None:
    """Something that a specification does not allow: where, what, the value, the clause."""
    print(f"violation {violation}", flush=True)


def make_device() -> TemplateDevice:
    """All the options, with their defaults."""
    return TemplateDevice(
        Loopback(queue_pairs=1, depth_packets=1024),  # or Tap("vt0", script=None, downscript=None)
        mac="52:54:00:12:34:56",
        mtu=1500,
        profile="vdpa",  # the layout: "vdpa", "ifcvf", "ifcvf-linux", or a vdpa_net.Profile of your own
        vdpa=True,  # the LM registers, and queue_enable = 0 as a stop
        iommu_platform=True,  # offer VIRTIO_F_ACCESS_PLATFORM
        ats=False,  # show the ATS capability: an enable bit and nothing more
        rx_queue_size=256,  # powers of two
        tx_queue_size=256,
        mq=False,  # offer VIRTIO_NET_F_MQ, with as many queue pairs as the back end has
        poll_us=None,  # microseconds for which the workers poll after work; None: 20, 0: not at all
        coalesce_us=None,  # microseconds for which packets of a stream wait; None: 150, 0: none does
        vectors=None,  # MSI-X vectors; None: one for the configuration and one for each queue
        disabled_features=frozenset({"host_ecn"}),  # by QEMU's property names
        enabled_features=frozenset(),  # those that are off by default
    )


def main() -> None:
    """Serve until SIGTERM or Ctrl-C."""
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    with make_device() as device:
        device.on_event(told)
        device.violations.listen(wrong)
        device.on_access(RegisterTrace(lambda line: print(line, flush=True)))
        device.on_access(small_queues_only)
        remove = device.on_access(no_logging)
        device.on_packet(lambda packet: None if len(packet.frame) < 9000 else DROP)
        remove()  # what on_access returns takes the hook away again
        # A faulty device on purpose: each fault is there until the device is closed.
        device.install_fault(parse_fault("drop-dirty-mark=0.01", seed=1))
        serve(
            device,
            sys.argv[1],
            on_listening=lambda: print(f"listening on {sys.argv[1]}", flush=True),
            on_error=lambda error: print(f"refused: {error}", flush=True),
        )
        print(json.dumps(device.snapshot(), indent=2))


if __name__ == "__main__":
    main()
