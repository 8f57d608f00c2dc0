# SPDX-License-Identifier: Apache-2.0
"""The seeds of the Python targets: what drivers and VMMs do, as operation lists. A target adds its own."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence

from fuzz.targets import registers, vfio_user, vhost_user

from vdpa_net.wire.virtio_pci import COMMON_CFG

Step = tuple[str, Sequence[int | bytes]]

COMMON = {register.name: number for number, register in enumerate(COMMON_CFG)}
LM_CTRL, LM_BASE, LM_END, LM_RING_STATE = 0, 1, 3, 5
"""Numbers of registers of the LM block; BASE and END are two registers each, ring states follow in a row."""

ALL_FEATURES = 0xFFFF_FFFF
RAM, READ_ONLY, ACCESS = 0, 4, 3
PAGES = 64
DESCRIPTORS, AVAILABLE, USED, BUFFERS, LOG = 0x0, 0x1000, 0x2000, 0x4000, 0x3F000
"""Offsets in guest memory of queue 0; queue 1 lies 0x10000 further on."""


def descriptor(address: int, size: int, flags: int, link: int) -> bytes:
    """One of a split ring."""
    return struct.pack("<QIHH", address, size, flags, link)


def ring(queue: int, *, write: bool) -> list[Step]:
    """A chain in guest memory, available."""
    base = queue << 16
    table = descriptor(base + BUFFERS, 1526, 2 if write else 0, 0)
    return [
        ("memory", (base + DESCRIPTORS, table)),
        ("memory", (base + AVAILABLE, struct.pack("<HHH", 0, 1, 0))),
    ]


def negotiate(common: Callable[[str, int], Step], features: int = ALL_FEATURES) -> list[Step]:
    """Up to FEATURES_OK."""
    return [
        *(common("device_status", value) for value in (0, 1, 3)),
        common("driver_feature_select", 0),
        common("driver_feature", features),
        common("driver_feature_select", 1),
        common("driver_feature", 3),
        common("device_status", 11),
    ]


def queue(common: Callable[[str, int], Step], index: int) -> list[Step]:
    """Addresses and queue_enable."""
    base = index << 16
    return [
        common("queue_select", index),
        common("queue_msix_vector", index),
        common("queue_desc", base + DESCRIPTORS),
        common("queue_driver", base + AVAILABLE),
        common("queue_device", base + USED),
        common("queue_enable", 1),
    ]


def start(common: Callable[[str, int], Step]) -> list[Step]:
    """A driver's whole initialisation with one pair, and a chain in each ring."""
    rings = [*ring(0, write=True), *ring(1, write=False)]
    return [*rings, *negotiate(common), *queue(common, 0), *queue(common, 1), common("device_status", 15)]


def _register(name: str, value: int) -> Step:
    return ("common", (COMMON[name], value))


def _lm(number: int, value: int) -> Step:
    return ("lm", (number, value))


def _registers() -> dict[str, bytes]:
    whole_map: Step = ("map", (RAM, 0, 0, PAGES, ACCESS))
    log = [_lm(LM_BASE, LOG), _lm(LM_END, LOG + 0x100), _lm(LM_CTRL, 1)]
    stop = [
        step for index in (0, 1) for step in (_register("queue_select", index), _register("queue_enable", 0))
    ]
    lists: dict[str, list[Step]] = {
        "starts": [whole_map, *start(_register), ("kick", (1, 1))],
        "logs": [whole_map, *start(_register), *log, ("kick", (1, 1)), _lm(LM_CTRL, 1), _lm(LM_CTRL, 0)],
        "logs-badly": [whole_map, _lm(LM_END, 1), _lm(LM_CTRL, 1), _lm(LM_CTRL, 7), _lm(LM_CTRL, 0x10)],
        "stops-and-restores": [
            whole_map,
            *start(_register),
            *stop,
            *(_lm(LM_RING_STATE + index, 0x10001) for index in (0, 1)),
            ("lm_half", (LM_RING_STATE, 1)),
            *queue(_register, 0),
            ("reset", (1,)),
        ],
        "loses-maps": [whole_map, *start(_register), *log, ("unmap", (0, PAGES)), ("kick", (0, 0))],
        "resets": [whole_map, *negotiate(_register), ("reset", (0,)), ("reset", (1,))],
        "breaks-its-ring": [
            whole_map,
            ("memory", (AVAILABLE, struct.pack("<HH", 0, 999))),
            *start(_register)[4:],
            ("kick", (0, 0)),
        ],
        "has-no-file": [("map", (0xFF, 0, 0, PAGES, ACCESS)), *start(_register)],
        "writes-anywhere": [
            ("write", (7, 4, b"\x06\0")),
            ("write", (7, 0x10, b"\xff" * 4)),
            ("write", (7, 0x48, b"\0\x80")),
            ("write", (1, 0xC, b"\0" * 4)),
            ("write", (4, 0x500, b"\1" * 8)),
            ("write", (4, 0x14, b"\1" * 3)),
            ("read", (4, 0, 64)),
            ("read", (7, 0, 255)),
            ("read", (4, 0x1000, 1)),
            ("read", (9, 0, 4)),
        ],
    }
    return {
        f"{profile}-{name}": bytes([number]) + registers.LANGUAGE.write(steps)
        for number, profile in enumerate(("vdpa", "ifcvf", "ifcvf-linux"))
        for name, steps in lists.items()
    }


def _message(name: str, value: int) -> Step:
    return ("common", (0, COMMON[name], value))


def _vfio_user() -> dict[str, bytes]:
    whole_map: Step = ("dma_map", (0, RAM, 0, 0, PAGES, 32, ACCESS))
    bind: Step = ("set_irqs", (0, 0x24, 2, 0, 3, 3, 1, b""))
    lists: dict[str, list[Step]] = {
        "asks": [("query", (0, which, index, 255)) for which in range(4) for index in (0, 2, 4, 7, 9)],
        "asks-in-vain": [("query", (0, which, 0, 4)) for which in range(4)],
        "starts": [whole_map, bind, *start(_message), ("write", (0x10, 4, 0x3004, b"\1\0"))],
        "maps": [
            whole_map,
            whole_map,
            ("dma_map", (0, 0xFF, 0x1000, 0, 1, 32, ACCESS)),
            ("dma_map", (0, 4, 0x2000, 0, 1, 32, 1)),
            ("dma_map", (0, 1, 0x3000, 0, 1, 32, ACCESS)),
            ("dma_map", (0, RAM, 0x4000, 0xFFFF, 1, 32, ACCESS)),
            ("dma_unmap", (0, 1, 1, 24, 0)),
            ("dma_unmap", (0, 0, 0x5000, 24, 0)),
            whole_map,
            ("dma_unmap", (0, 0, 0, 24, 2)),
        ],
        "sets-irqs": [
            bind,
            *(
                ("set_irqs", (0, data | action, 2, 0, 3, 0, 0, b"\1\0\1" if data == 2 else b""))
                for data in (1, 2, 4)
                for action in (8, 16, 32)
            ),
            ("set_irqs", (0, 0x24, 3, 0, 1, 1, 1, b"")),
            ("set_irqs", (0, 0x21, 2, 0, 0, 0, 0, b"")),
        ],
        "accesses": [
            ("read", (0, 7, 0, 64)),
            ("read", (0, 4, 0x14, 1)),
            ("read", (0, 6, 0, 4)),
            ("write", (0, 4, 0x14, b"\1")),
            ("write", (0x10, 4, 0x14, b"\3")),
            ("write_multi", (0, 4, 0x16, 2, 1)),
            ("write_multi", (0, 4, 0x16, 9, 1)),
        ],
        "resets": [whole_map, *start(_message), ("reset", (0,)), ("connect", (1,)), ("reset", (0x10,))],
        "greets-badly": [
            ("connect", (0,)),
            ("read", (0, 7, 0, 4)),
            ("version", (0, 0, 0, 2, b'{"capabilities":{"max_msg_fds":8}}\0')),
            ("version", (0, 0, 0, 0, b"")),
            ("connect", (0,)),
            ("version", (0, 1, 0, 1, b"")),
            ("connect", (0,)),
            ("version", (0, 0, 9, 2, b'{"capabilities":[]}\0')),
        ],
        "asks-for-migration": [("raw", (command, 0, 0, 0, 0, bytes(8))) for command in (14, 16, 17, 18, 11)],
        "breaks-framing": [
            ("raw", (9, 8, 0, 0, 0, b"")),
            ("connect", (1,)),
            ("raw", (9, 0, 1, 0, 0, bytes(16))),
            ("connect", (1,)),
            ("raw", (13, 0, 2, 5, 19, b"")),
        ],
    }
    return {name: vfio_user.LANGUAGE.write(steps) for name, steps in lists.items()}


def _vhost_user() -> dict[str, bytes]:
    negotiated: list[Step] = [("protocol", (0xFFFF_FFFF,)), ("features", (0x1_7000_8000,))]
    table: Step = ("memory", (0, RAM, 0, PAGES, 0))
    rings: list[Step] = [
        step
        for index in (0, 1)
        for step in (
            ("vring", (0, index, 256)),
            ("vring", (1, index, 0)),
            ("addresses", (index, 0, *(((index << 16) + at) >> 12 for at in (DESCRIPTORS, AVAILABLE, USED)))),
            ("eventfd", (0, index, 1)),
            ("eventfd", (1, index, 1)),
            ("eventfd", (2, index, 1)),
            ("vring", (2, index, 1)),
        )
    ]
    chains: list[Step] = [("guest", step[1]) for index in (0, 1) for step in ring(index, write=index == 0)]
    starts = [*negotiated, table, *chains, *rings, ("status", (15,))]
    translated: list[Step] = [("protocol", (0xFFFF_FFFF,)), ("features", (0x3_7000_8000,)), table]
    lists: dict[str, list[Step]] = {
        "starts": starts,
        "stops": [
            *starts,
            ("vring", (2, 0, 0)),
            ("vring", (3, 0, 0)),
            ("vring", (3, 1, 0)),
            ("status", (0,)),
        ],
        "logs": [
            *starts,
            ("log", (RAM, 64, LOG >> 12)),
            ("features", (0x1_7400_8000,)),
            ("log", (RAM, 128, LOG >> 12)),
            ("eventfd", (3, 0, 1)),
            ("features", (0x1_7000_8000,)),
        ],
        "adds-memory": [
            *negotiated,
            ("memory", (1, RAM, 0, 8, 0)),
            ("memory", (1, RAM, 64, 8, 8)),
            *chains,
            *rings,
            ("memory", (2, RAM, 64, 8, 8)),
            ("memory", (2, RAM, 64, 8, 8)),
            ("memory", (1, 2, 0, 8, 0)),
        ],
        "translates": [
            *translated,
            *rings,
            *(("iotlb", (page, 1, page, 3, 2)) for page in (0, 1, 2, 4, 16, 17, 18, 20)),
            ("iotlb", (0, 32, 0, 0, 3)),
            ("iotlb", (1, 0, 1, 3, 2)),
            ("iotlb", (1, 1, 999, 3, 2)),
        ],
        "leaves-memory-that-was-only-translated": [
            *translated[:-1],
            ("memory", (0, READ_ONLY, 0, PAGES, 0)),
            ("leave", ()),
        ],
        "configures": [
            *negotiated,
            ("config", (0, 0, 0, bytes(12))),
            ("config", (1, 0, 1, bytes.fromhex("5254000000aa"))),
            ("config", (1, 0, 0, bytes(6))),
            ("config", (0, 250, 0, bytes(12))),
            ("raw", (20, 9, 0, 0, struct.pack("<Q", 1500))),
            ("raw", (34, 9, 0, 0, b"")),
            ("raw", (19, 9, 0, 0, bytes.fromhex("5254000000aa0000"))),
        ],
        "asks-in-vain": [("raw", (code, 9, 0, 0, bytes(8))) for code in (17, 23, 31, 41, 47)],
        "breaks-framing": [("raw", (1, 2, 0, 0, b"")), ("leave", ()), ("raw", (1, 9, 5000, 0, b""))],
        "comes-and-goes": [*starts, ("leave", ()), *starts, ("leave", ()), ("status", (15,))],
    }
    return {name: vhost_user.LANGUAGE.write(steps) for name, steps in lists.items()}


SEEDS: Mapping[str, Callable[[], dict[str, bytes]]] = {
    "registers": _registers,
    "vfio_user": _vfio_user,
    "vhost_user": _vhost_user,
}
"""The seeds of each target, by its name."""
