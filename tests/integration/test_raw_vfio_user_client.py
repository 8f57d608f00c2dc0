# SPDX-License-Identifier: Apache-2.0
"""A vfio-user client of the test's own reads the registers where the document says they are.

Nothing of the package's client, wire tables or layouts is used here: offsets and message layouts are written
down again from the specifications (vfio-user; PCI; virtio 1.3, 4.1.4; the table of LM registers).
"""

from __future__ import annotations

import array
import json
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from vdpa_net.backend.loopback import Loopback
from vdpa_net.device.net_device import NetDevice
from vdpa_net.lab.console import LineReader
from vdpa_net.transport.vfio_user.server import VfioUserServer

MAC = "56:4a:b7:4f:4d:a9"
CONFIG, BAR4 = 7, 4
NOTIFY, NOTIFY_BYTES = 0x3000, 4 * 1024
LM = NOTIFY + NOTIFY_BYTES
LOGGING_CTRL, BASE_LOW, BASE_HIGH, END_LOW, END_HIGH, RING_STATE = 0x0, 0x10, 0x14, 0x18, 0x1C, 0x20
START_SECONDS = 30


class RawClient:
    """Messages by hand: header (id, command, size, flags, error), then the payload."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(START_SECONDS)
        self.socket.connect(str(path))
        self._id = 0
        version = struct.pack("<HH", 0, 0) + json.dumps({"capabilities": {"max_msg_fds": 8}}).encode() + b"\0"
        major, minor = struct.unpack_from("<HH", self.request(1, version))
        assert (major, minor) == (0, 0)

    def request(self, command: int, payload: bytes, fds: tuple[int, ...] = ()) -> bytes:
        number, error, answer = self.try_request(command, payload, fds)
        assert number == self._id
        assert error == 0, os.strerror(error)
        return answer

    def try_request(self, command: int, payload: bytes, fds: tuple[int, ...] = ()) -> tuple[int, int, bytes]:
        self._id += 1
        message = struct.pack("<HHIII", self._id, command, 16 + len(payload), 0, 0) + payload
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self.socket.sendmsg([message], ancillary)
        number, echoed, size, flags, error = struct.unpack("<HHIII", self._exactly(16))
        assert (echoed, flags & 0xF) == (command, 1)
        return number, error if flags & 0x20 else 0, self._exactly(size - 16)

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            piece = self.socket.recv(size - len(data))
            assert piece, "the server closed the connection"
            data += piece
        return data

    def read(self, region: int, offset: int, size: int) -> int:
        answer = self.request(9, struct.pack("<QII", offset, region, size))
        assert len(answer) == 16 + size
        return int.from_bytes(answer[16:], "little")

    def write(self, region: int, offset: int, value: int, size: int) -> None:
        self.request(10, struct.pack("<QII", offset, region, size) + value.to_bytes(size, "little"))

    def lm(self, offset: int, size: int = 4) -> int:
        return self.read(BAR4, LM + offset, size)

    def set_lm(self, offset: int, value: int, size: int = 4) -> None:
        self.write(BAR4, LM + offset, value, size)

    def dma_map(self, iova: int, size: int, fd: int) -> None:
        self.request(2, struct.pack("<IIQQQ", 32, 3, 0, iova, size), (fd,))

    def close(self) -> None:
        self.socket.close()


@pytest.fixture
def served(socket_dir: Path) -> Iterator[tuple[Path, NetDevice]]:
    device = NetDevice(Loopback(), mac=MAC)
    path = socket_dir / "s"
    with VfioUserServer(path, device):
        yield path, device
    device.close()


@pytest.fixture
def client(served: tuple[Path, NetDevice]) -> Iterator[RawClient]:
    raw = RawClient(served[0])
    yield raw
    raw.close()


def capabilities(client: RawClient) -> dict[int, tuple[int, int, int, int]]:
    """virtio capabilities by type: position, BAR, offset, length."""
    found = {}
    at = client.read(CONFIG, 0x34, 1)
    while at:
        if client.read(CONFIG, at, 1) == 0x09:
            kind = client.read(CONFIG, at + 3, 1)
            bar, offset, length = (client.read(CONFIG, at + x, n) for x, n in ((4, 1), (8, 4), (12, 4)))
            found[kind] = (at, bar, offset, length)
        at = client.read(CONFIG, at + 1, 1)
    return found


def test_config_space_shows_the_virtio_net_function(client: RawClient) -> None:
    assert client.read(CONFIG, 0, 4) == 0x1041_1AF4
    assert client.read(CONFIG, 0x08, 1) >= 1
    assert client.read(CONFIG, 0x2C, 4) == 0x1100_1AF4
    assert set(capabilities(client)) >= {1, 2, 3, 4, 5}


def test_notify_region_ends_where_the_lm_registers_begin(client: RawClient) -> None:
    position, bar, offset, length = capabilities(client)[2]
    assert (bar, offset, length) == (BAR4, NOTIFY, NOTIFY_BYTES)
    assert client.read(CONFIG, position + 16, 4) == 4
    info = client.request(5, struct.pack("<IIIIQQ", 32, 0, BAR4, 0, 0, 0))
    (size,) = struct.unpack_from("<Q", info, 16)
    assert size >= LM + RING_STATE + 4 * 1024
    assert size & (size - 1) == 0


def test_every_register_of_the_document_is_at_its_offset(client: RawClient) -> None:
    values = {BASE_LOW: 0x1111_1000, BASE_HIGH: 0x22, END_LOW: 0x3333_3000, END_HIGH: 0x44}
    for offset, value in values.items():
        client.set_lm(offset, value)
    assert {offset: client.lm(offset) for offset in values} == values
    assert client.lm(LOGGING_CTRL) == 0
    client.set_lm(RING_STATE + 4 * 0, 0x0005_0005)
    client.set_lm(RING_STATE + 4 * 1, 0x0007_0007)
    assert client.lm(RING_STATE + 4 * 0) == 0x0005_0005
    assert client.lm(RING_STATE + 4 * 1) == 0x0007_0007
    assert client.lm(RING_STATE + 4 * 1023) == 0


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_registers_answer_in_every_width(client: RawClient, size: int) -> None:
    pattern = bytes(range(0x10, 0x20))
    for start in range(0, 16, size):
        piece = int.from_bytes(pattern[start : start + size], "little")
        client.set_lm(BASE_LOW + start, piece, size)
    read = b"".join(
        client.lm(BASE_LOW + start, size).to_bytes(size, "little") for start in range(0, 16, size)
    )
    assert read == pattern


def test_logging_starts_on_a_mapped_range_only(client: RawClient, served: tuple[Path, NetDevice]) -> None:
    fd = os.memfd_create("log")
    os.ftruncate(fd, 0x2000)
    client.dma_map(0x10_0000, 0x2000, fd)
    os.close(fd)
    for offset, value in ((BASE_LOW, 0x10_0000), (BASE_HIGH, 0), (END_LOW, 0x10_4000), (END_HIGH, 0)):
        client.set_lm(offset, value)
    client.set_lm(LOGGING_CTRL, 1)
    assert client.lm(LOGGING_CTRL) == 0
    assert served[1].violations.count == 1
    client.set_lm(END_LOW, 0x10_2000)
    client.set_lm(LOGGING_CTRL, 1)
    assert client.lm(LOGGING_CTRL) == 1
    client.set_lm(LOGGING_CTRL, 0)
    assert client.lm(LOGGING_CTRL) == 0


def test_a_queue_that_does_not_exist_reads_zero_and_a_write_is_a_violation(
    client: RawClient, served: tuple[Path, NetDevice]
) -> None:
    client.set_lm(RING_STATE + 4 * 500, 0x1234_1234)
    assert client.lm(RING_STATE + 4 * 500) == 0
    assert served[1].violations.count == 1


def test_access_behind_a_region_is_refused_and_the_device_lives_on(client: RawClient) -> None:
    _, error, _ = client.try_request(9, struct.pack("<QII", 1 << 40, BAR4, 4))
    assert error != 0
    assert client.read(CONFIG, 0, 2) == 0x1AF4


@pytest.mark.parametrize("rest", [b"", struct.pack("<HHIII", 9, 10, 40, 0, 0), b"\x01"])
def test_a_client_that_vanishes_leaves_a_device_for_the_next_one(
    served: tuple[Path, NetDevice], rest: bytes
) -> None:
    first = RawClient(served[0])
    first.set_lm(BASE_LOW, 0xABC000)
    first.socket.sendall(rest)
    first.close()
    second = RawClient(served[0])
    assert second.lm(BASE_LOW) == 0
    second.close()


def test_the_command_serves_the_same_registers(socket_dir: Path) -> None:
    path = socket_dir / "s"
    reader, writer = os.pipe()
    netdev = ("--netdev", "loopback,id=hostnet1")
    device = f"virtio-net-pci,netdev=hostnet1,id=net1,mac={MAC},iommu_platform=on,vdpa=on"
    process = subprocess.Popen(
        [sys.executable, "-m", "vdpa_net", "serve", "--socket", str(path), *netdev, "--device", device],
        stdout=writer,
        stderr=writer,
    )
    os.close(writer)
    output = LineReader(reader, socket_dir / "log", "serve")
    try:
        output.wait_for("listening", START_SECONDS)
        client = RawClient(path)
        client.set_lm(END_HIGH, 0x77)
        assert client.lm(END_HIGH) == 0x77
        client.close()
    finally:
        process.terminate()
        assert process.wait(START_SECONDS) == 0
        output.join()
