# SPDX-License-Identifier: Apache-2.0
"""A vDPA network device in user space, with live-migration registers.

    from vdpa_net import NetDevice, Tap, serve

    with NetDevice(Tap("vt0"), mac="52:54:00:12:34:56") as device:
        serve(device, "/tmp/vdpa.sock")

docs/library.md tells more. Names are imported when they are first used: a command that needs no device does
not pay for one.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vdpa_net.backend.loopback import Loopback
    from vdpa_net.backend.null import Null
    from vdpa_net.backend.pcap import Recorder
    from vdpa_net.backend.tap import Tap
    from vdpa_net.device.access import DROP, Access, Answer
    from vdpa_net.device.net_device import NetDevice
    from vdpa_net.device.packet_hooks import Packet
    from vdpa_net.device.trace import RegisterTrace
    from vdpa_net.errors import VdpaNetError
    from vdpa_net.migration.faults import parse_fault
    from vdpa_net.migration.violations import Violation
    from vdpa_net.serving import serve
    from vdpa_net.wire.lm import Profile

__version__ = "0.1.0"
__all__ = [
    "DROP",
    "Access",
    "Answer",
    "Loopback",
    "NetDevice",
    "Null",
    "Packet",
    "Profile",
    "Recorder",
    "RegisterTrace",
    "Tap",
    "VdpaNetError",
    "Violation",
    "parse_fault",
    "serve",
]

_HOME = {
    "Access": "vdpa_net.device.access",
    "Answer": "vdpa_net.device.access",
    "DROP": "vdpa_net.device.access",
    "Loopback": "vdpa_net.backend.loopback",
    "NetDevice": "vdpa_net.device.net_device",
    "Null": "vdpa_net.backend.null",
    "Packet": "vdpa_net.device.packet_hooks",
    "Profile": "vdpa_net.wire.lm",
    "Recorder": "vdpa_net.backend.pcap",
    "RegisterTrace": "vdpa_net.device.trace",
    "Tap": "vdpa_net.backend.tap",
    "VdpaNetError": "vdpa_net.errors",
    "Violation": "vdpa_net.migration.violations",
    "parse_fault": "vdpa_net.migration.faults",
    "serve": "vdpa_net.serving",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
