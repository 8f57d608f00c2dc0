# SPDX-License-Identifier: Apache-2.0
"""The recorder: files that others can read, and packets that pass whatever becomes of the file."""

from __future__ import annotations

import contextlib
import errno
import os
import struct
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from conftest import require_tool
from vdpa_net.backend import Backend
from vdpa_net.backend.loopback import Loopback
from vdpa_net.backend.pcap import Recorder
from vdpa_net.device.net_device import NetDevice
from vdpa_net.driver.in_process import InProcessHandle
from vdpa_net.errors import BackendError
from vdpa_net.open_backend import open_backend
from vdpa_net.options import parse_netdev
from vdpa_net.testing.frames import FrameMint
from vdpa_net.testing.guest_driver import GuestDriver
from vdpa_net.testing.guest_memory import GuestMemory

MINT = FrameMint(1)
FRAMES = [MINT.frame(number, size) for number, size in enumerate((60, 61, 62, 63, 590, 1514))]
DEADLINE_SECONDS = 30
TO_GUEST, FROM_GUEST = 1, 2


@dataclass(frozen=True)
class Packet:
    """An enhanced packet block, as draft-ietf-opsawg-pcapng has it."""

    time_ns: int
    way: int
    queue: int
    dropped: int
    length: int
    data: bytes


def read_pcapng(raw: bytes) -> tuple[list[Packet], dict[int, int]]:
    """The packets, and the counters of the interface statistics (empty if there are none)."""
    packets, totals, at = [], dict[int, int](), 0
    kinds = []
    while at < len(raw):
        kind, length = struct.unpack_from("<II", raw, at)
        assert length % 4 == 0
        assert struct.unpack_from("<I", raw, at + length - 4) == (length,)
        body = raw[at + 8 : at + length - 4]
        kinds.append(kind)
        if kind == 6:
            packets.append(read_packet(body))
        elif kind == 5:
            totals = {
                code: int.from_bytes(value, "little") for code, value in read_options(body[12:]).items()
            }
        at += length
    assert kinds[:2] == [0x0A0D0D0A, 1]
    assert struct.unpack_from("<IHHq", raw, 8) == (0x1A2B3C4D, 1, 0, -1)
    return packets, totals


def read_packet(body: bytes) -> Packet:
    _, high, low, kept, length = struct.unpack_from("<IIIII", body)
    options = {
        code: int.from_bytes(value, "little")
        for code, value in read_options(body[20 + -(-kept // 4) * 4 :]).items()
    }
    return Packet(
        high << 32 | low, options[2] & 3, options[6], options.get(4, 0), length, body[20 : 20 + kept]
    )


def read_options(raw: bytes) -> dict[int, bytes]:
    options, at = {}, 0
    while (code := struct.unpack_from("<H", raw, at)[0]) != 0:
        length = struct.unpack_from("<H", raw, at + 2)[0]
        options[code] = raw[at + 4 : at + 4 + length]
        at += 4 + -(-length // 4) * 4
    assert raw[at:] == bytes(4)
    return options


@contextlib.contextmanager
def guest(backend: Backend, pairs: int = 1) -> Iterator[GuestDriver]:
    with ExitStack() as stack:
        stack.callback(backend.close)
        device = stack.enter_context(NetDevice(backend, mac="52:54:00:00:00:01", mq=pairs > 1))
        handle = stack.enter_context(contextlib.closing(InProcessHandle(device)))
        memory = stack.enter_context(GuestMemory([(0, 8 << 20)]))
        driver = stack.enter_context(GuestDriver(handle, memory, pairs=pairs))
        driver.start()
        if pairs > 1:
            driver.set_active_pairs(pairs)
        yield driver


def test_every_packet_is_recorded_with_its_way_and_its_queue(tmp_path: Path) -> None:
    file = tmp_path / "a.pcapng"
    with guest(Recorder(Loopback(2), file), 2) as driver:
        for pair in (0, 1):
            driver.send(FRAMES, pair)
            assert driver.receive(len(FRAMES), pair=pair) == FRAMES
    packets, totals = read_pcapng(file.read_bytes())
    for pair in (0, 1):
        for way, queue in ((TO_GUEST, 2 * pair), (FROM_GUEST, 2 * pair + 1)):
            assert [packet.data for packet in packets if (packet.way, packet.queue) == (way, queue)] == FRAMES
    times = [packet.time_ns for packet in packets]
    assert times == sorted(times)
    assert all(packet.length == len(packet.data) for packet in packets)
    assert totals == {4: 4 * len(FRAMES), 5: 0}


def test_tcpdump_reads_the_file(tmp_path: Path) -> None:
    tool = require_tool("tcpdump")
    file = tmp_path / "a.pcapng"
    with guest(Recorder(Loopback(), file)) as driver:
        driver.send(FRAMES)
        driver.receive(len(FRAMES))
    told = subprocess.run([tool, "-enr", file], check=True, capture_output=True, text=True).stdout
    assert told.count("ethertype Unknown (0x88b5)") == 2 * len(FRAMES)


def test_the_netdev_records_what_the_guest_sends(tmp_path: Path) -> None:
    file = tmp_path / "a.pcapng"
    with guest(open_backend(parse_netdev(f"pcap,id=n0,file={file}"))) as driver:
        driver.send(FRAMES)
        driver.finish_transmit()
    packets, _ = read_pcapng(file.read_bytes())
    assert [(packet.way, packet.data) for packet in packets] == [(FROM_GUEST, frame) for frame in FRAMES]


def test_frames_are_cut_to_the_snap_length(tmp_path: Path) -> None:
    file = tmp_path / "a.pcapng"
    with guest(Recorder(Loopback(), file, snap_bytes=61)) as driver:
        driver.send(FRAMES)
        driver.receive(len(FRAMES))
    packets, _ = read_pcapng(file.read_bytes())
    assert {(packet.length, packet.data) for packet in packets} == {
        (len(frame), frame[:61]) for frame in FRAMES
    }


def read_to_end(fd: int) -> bytes:
    with open(fd, "rb", closefd=False) as file:
        return file.read()


def test_a_slow_file_costs_records_and_no_packets(tmp_path: Path) -> None:
    fifo = tmp_path / "slow"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    recorder = Recorder(Loopback(), fifo, buffer_bytes=8192)
    taken = bytearray()
    with guest(recorder) as driver:
        # The pipe holds 64 KiB and the buffers 16: then nothing more can be recorded.
        while recorder.counters()["dropped"] < 20:
            driver.send(FRAMES)
            assert driver.receive(len(FRAMES)) == FRAMES
            driver.finish_transmit()
        stuck = recorder.counters()["recorded"]
        while recorder.counters()["recorded"] == stuck:
            with contextlib.suppress(BlockingIOError):
                taken += os.read(reader, 1 << 20)
            driver.send(FRAMES[:1])
            assert driver.receive(1) == FRAMES[:1]
            driver.finish_transmit()
        os.set_blocking(reader, True)
        rest = threading.Thread(target=lambda: taken.extend(read_to_end(reader)))
        rest.start()
    rest.join(DEADLINE_SECONDS)
    os.close(reader)
    packets, totals = read_pcapng(bytes(taken))
    assert totals[4] == len(packets) + totals[5]
    assert totals[5] == recorder.counters()["dropped"] >= 20
    assert 20 <= sum(packet.dropped for packet in packets) <= totals[5]


def test_a_full_disk_ends_the_recording_and_no_packets() -> None:
    recorder = Recorder(Loopback(), "/dev/full")
    with guest(recorder) as driver:
        while not recorder.counters()["errno"]:
            driver.send(FRAMES)
            assert driver.receive(len(FRAMES)) == FRAMES
            driver.finish_transmit()
        before = recorder.counters()
        driver.send(FRAMES)
        assert driver.receive(len(FRAMES)) == FRAMES
        assert recorder.counters()["dropped"] - before["dropped"] == 2 * len(FRAMES)
    assert recorder.counters()["errno"] == errno.ENOSPC


def test_a_file_that_can_not_be_made_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"no/such: No such file"):
        Recorder(Loopback(), tmp_path / "no" / "such")


def test_closing_leaves_nothing_behind(tmp_path: Path, no_fd_leak: None) -> None:
    with guest(Recorder(Loopback(), tmp_path / "a.pcapng")) as driver:
        driver.send(FRAMES)
        driver.receive(len(FRAMES))
