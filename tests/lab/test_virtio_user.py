# SPDX-License-Identifier: Apache-2.0
"""DPDK's front end on the vhost socket: testpmd's virtio_user, every frame compared byte by byte."""

from __future__ import annotations

import random
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from lab.testpmd import Testpmd
from vdpa_net.backend.loopback import Loopback
from vdpa_net.device.net_device import NetDevice
from vdpa_net.driver.in_process import InProcessHandle
from vdpa_net.driver.vdpa_driver import VdpaDriver
from vdpa_net.driver.vhost_backend import VhostBackend
from vdpa_net.transport.vhost_user.server import VhostUserServer

pytestmark = [pytest.mark.vm, pytest.mark.timeout(180)]

FRAMES = 200
RUN_SECONDS = 90
FILE_BLOCK_BYTES = 4096
HEADER = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1)
RECORD = struct.Struct("<IIII")


def make_frames(seed: int) -> list[bytes]:
    """Numbered frames of many sizes, none longer than an Ethernet frame."""
    chance = random.Random(seed)
    head = bytes.fromhex("525400000001525400000002" + "88b5")
    return [
        head + n.to_bytes(4, "big") + chance.randbytes(chance.choice((42, 300, 777, 1496)))
        for n in range(FRAMES)
    ]


def write_pcap(path: Path, frames: list[bytes]) -> None:
    path.write_bytes(HEADER + b"".join(RECORD.pack(0, 0, len(frame), len(frame)) + frame for frame in frames))


def read_pcap(path: Path) -> list[bytes]:
    data, at, frames = path.read_bytes(), len(HEADER), []
    while at < len(data):
        length = RECORD.unpack_from(data, at)[2]
        at += RECORD.size
        frames.append(data[at : at + length])
        at += length
    return frames


class FrontEnd(Testpmd):
    """Forwards from files through virtio_user and back into files."""

    def __init__(self, directory: Path, socket: Path, properties: str, queues: int) -> None:
        files = [f"rx_pcap={directory}/in{queue}.pcap" for queue in range(queues)]
        files += [f"tx_pcap={directory}/out{queue}.pcap" for queue in range(queues)]
        eal = [
            # virtio_user shares its memory by file descriptors, so it has to lie in a few files.
            "--single-file-segments",
            *("--vdev", f"net_virtio_user0,path={socket},queues={queues},queue_size=256,{properties}"),
            *("--vdev", f"net_pcap0,{','.join(files)}"),
        ]
        # What it flushes at the start would be frames of the file.
        app = ["--no-flush-rx", f"--rxq={queues}", f"--txq={queues}"]
        super().__init__(directory, "testpmd", ("librte_net_virtio", "librte_net_pcap"), eal, app)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as made:
        yield made


def cases() -> list[object]:
    usual = {
        ("split", 0, 1, 1),
        ("packed", 0, 1, 1),
        ("split", 0, 0, 1),
        ("packed", 1, 0, 1),
        ("split", 1, 1, 2),
    }
    return [
        pytest.param(
            *case,
            marks=() if case in usual else pytest.mark.exhaustive,
            id=f"{ring}{'-in-order' * in_order}{'-mrg_rxbuf' * mergeable}-{queues}",
        )
        for ring in ("split", "packed")
        for in_order in (0, 1)
        for mergeable in (0, 1)
        for queues in (1, 2)
        for case in [(ring, in_order, mergeable, queues)]
    ]


@pytest.mark.parametrize(("ring", "in_order", "mergeable", "queues"), cases())
def test_every_frame_comes_back_through_virtio_user(
    stack: ExitStack, tmp_path: Path, *, ring: str, in_order: int, mergeable: int, queues: int
) -> None:
    names = {"packed"} if ring == "packed" else set()
    names |= {"in_order"} if in_order else set()
    backend = Loopback(queue_pairs=queues)
    stack.callback(backend.close)
    device = stack.enter_context(
        NetDevice(backend, mac="52:54:00:00:00:01", mq=queues > 1, enabled_features=frozenset(names))
    )
    vhost = VhostBackend(VdpaDriver(stack.enter_context(InProcessHandle(device))))
    server = stack.enter_context(VhostUserServer(tmp_path / "vhost", vhost))
    frames = make_frames(7)
    for queue in range(queues):
        write_pcap(tmp_path / f"in{queue}.pcap", frames[queue::queues])
    properties = f"packed_vq={int(ring == 'packed')},in_order={in_order},mrg_rxbuf={mergeable}"
    testpmd = FrontEnd(tmp_path, server.path, properties, queues)
    try:
        deadline = time.monotonic() + RUN_SECONDS
        # Counters tell nobody when they change.
        while not is_through(device, tmp_path, queues) and time.monotonic() < deadline:
            assert testpmd.is_running(), testpmd.log()
            time.sleep(0.05)
        # The last block of a file is written at the end, and what belongs there has been polled by then.
        testpmd.await_work(0.5)
        features = device.snapshot()["features"]
        assert counted(device, queues) == (FRAMES, FRAMES), testpmd.log()
    finally:
        testpmd.close()
    assert ("RING_PACKED" in features) == (ring == "packed")
    assert ("IN_ORDER" in features) == bool(in_order)
    assert ("MRG_RXBUF" in features) == bool(mergeable)
    came = [frame for queue in range(queues) for frame in read_pcap(tmp_path / f"out{queue}.pcap")]
    assert sorted(came) == sorted(frames)
    assert queues > 1 or came == frames
    assert device.snapshot()["violations"] == []
    assert list(server.errors) == []
    assert list(vhost.complaints) == []


def is_through(device: NetDevice, directory: Path, queues: int) -> bool:
    """Whether the device has carried every frame, and testpmd has put all but a block of them into files."""
    if counted(device, queues) < (FRAMES, FRAMES):
        return False
    written = sum((directory / f"out{queue}.pcap").stat().st_size for queue in range(queues))
    wanted = sum((directory / f"in{queue}.pcap").stat().st_size for queue in range(queues))
    return written >= wanted - queues * FILE_BLOCK_BYTES


def counted(device: NetDevice, queues: int) -> tuple[int, int]:
    """Packets received and transmitted by the device's queue pairs."""
    packets = [item["counters"]["packets"] for item in device.snapshot()["queues"]]
    return sum(packets[: 2 * queues : 2]), sum(packets[1 : 2 * queues : 2])
