# SPDX-License-Identifier: Apache-2.0
"""Somebody else's vhost-user back end: sends back what it is sent, and has bugs that others had.

Written from the specifications alone (QEMU, docs/interop/vhost-user; virtio 1.3, 2.7), and shares nothing
with the package. Run as `other_backend.py SOCKET [BUG]`; each connection is a new device.
"""

from __future__ import annotations

import array
import contextlib
import mmap
import os
import socket
import struct
import sys
import threading
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path

VERSION_1, LOG_ALL, PROTOCOL_FEATURES, LOG_SHMFD = 1 << 32, 1 << 26, 1 << 30, 1 << 1
RX, TX, HEADER_BYTES, PAGE = 0, 1, 12, 4096
FEATURES, PROTOCOL = VERSION_1 | LOG_ALL | PROTOCOL_FEATURES, LOG_SHMFD

BUGS = (
    "buffers-not-marked",  # Linux vhost-scsi, DPDK e11411b52a
    "first-page-only",  # QEMU's vdpa-net patch: one page per used element, whatever its length
    "used-ring-not-marked",
    "non-atomic",  # DPDK 897f13a1f7
    "offset-ignored",  # DPDK fbc4d248b1
    "offset-twice",  # DPDK bdd96d8ac7
    "whole-log-pages",  # a log whose size is not a multiple of the page size
    "first-log-forever",  # the log is replaced, and marks go on into the old one
    "behind-the-log",
    "late-dma",  # goes on writing after it has answered GET_VRING_BASE
    "base-behind",  # answers GET_VRING_BASE with an older index
)


class Log:
    def __init__(self, fd: int, size: int, offset: int, bug: str) -> None:
        whole = os.fstat(fd).st_size
        self.start = {"offset-ignored": 0, "offset-twice": 2 * offset}.get(bug, offset)
        self.size = size // PAGE * PAGE if bug == "whole-log-pages" else size
        self.bytes = mmap.mmap(fd, whole)
        self.whole, self.bug = whole, bug
        self.lock = threading.Lock()
        # The buggy one marks from several threads, and each reads, waits and writes.
        self.markers = ThreadPoolExecutor(3)
        self.under_way: list[Future[None]] = []

    def mark(self, address: int, length: int) -> None:
        if self.bug == "non-atomic":
            self.under_way.append(self.markers.submit(self.set_bits, address, length))
        else:
            with self.lock:
                self.set_bits(address, length)

    def finish(self) -> None:
        wait(self.under_way)

    def set_bits(self, address: int, length: int) -> None:
        for page in range(address // PAGE, (address + length - 1) // PAGE + 1):
            at = self.start + page // 8
            if at >= self.whole or page // 8 >= self.size:
                continue
            value = self.bytes[at]
            if self.bug == "non-atomic":
                time.sleep(0.0005)
            self.bytes[at] = value | 1 << page % 8
            if self.bug == "behind-the-log":
                self.bytes[self.start + self.size] = 1


class Ring:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.size = self.base = self.desc = self.avail = self.used = 0
        self.kick = self.call = -1
        self.running = self.late = False


class Device:
    """What one connection talks to."""

    def __init__(self, sock: socket.socket, bug: str) -> None:
        self.sock, self.bug = sock, bug
        self.features = 0
        self.regions: list[tuple[int, int, int, mmap.mmap, int]] = []
        self.log: Log | None = None
        self.rings = [Ring(), Ring()]
        self.frames: deque[bytes] = deque()
        self.wake = threading.Event()
        self.open = True
        self.threads = [threading.Thread(target=self.work, args=(queue,), daemon=True) for queue in (RX, TX)]

    # --- guest memory ---------------------------------------------------------------------------

    def find(self, address: int, *, user: bool = False) -> tuple[mmap.mmap, int]:
        for gpa, size, uva, view, offset in self.regions:
            first = uva if user else gpa
            if first <= address < first + size:
                return view, offset + address - first
        raise ValueError(f"{address:#x} is not in guest memory")

    def gpa(self, user_address: int) -> int:
        for gpa, size, uva, _view, _offset in self.regions:
            if uva <= user_address < uva + size:
                return gpa + user_address - uva
        raise ValueError(f"{user_address:#x} is not in guest memory")

    def read(self, gpa: int, size: int) -> bytes:
        view, at = self.find(gpa)
        return view[at : at + size]

    def write(self, gpa: int, data: bytes, *, ring: bool) -> None:
        view, at = self.find(gpa)
        view[at : at + len(data)] = data
        skip = "used-ring-not-marked" if ring else "buffers-not-marked"
        log = self.log
        if log is not None and self.features & LOG_ALL and self.bug != skip:
            length = 1 if self.bug == "first-page-only" and not ring else len(data)
            log.mark(gpa, length)

    # --- rings ----------------------------------------------------------------------------------

    def chain(self, ring: Ring, head: int) -> list[tuple[int, int]]:
        parts = []
        while True:
            address, length, flags, following = struct.unpack("<QIHH", self.read(ring.desc + 16 * head, 16))
            parts.append((address, length))
            if not flags & 1:
                return parts
            head = following

    def available(self, ring: Ring) -> int | None:
        if ring.base == struct.unpack("<H", self.read(ring.avail + 2, 2))[0]:
            return None
        place = ring.avail + 4 + 2 * (ring.base % ring.size)
        return int(struct.unpack("<H", self.read(place, 2))[0])

    def give_back(self, ring: Ring, head: int, written: int) -> None:
        element = struct.pack("<II", head, written)
        self.write(ring.used + 4 + 8 * (ring.base % ring.size), element, ring=True)
        ring.base = (ring.base + 1) % 0x10000
        self.write(ring.used + 2, struct.pack("<H", ring.base), ring=True)
        if not struct.unpack("<H", self.read(ring.avail, 2))[0] & 1:
            with contextlib.suppress(OSError):
                os.eventfd_write(ring.call, 1)

    def serve(self, queue: int) -> bool:
        ring = self.rings[queue]
        held_back = 4 if self.bug == "late-dma" and not ring.late else 0
        if queue == RX and len(self.frames) <= held_back:
            return False
        head = self.available(ring)
        if head is None:
            return False
        parts = self.chain(ring, head)
        if queue == TX:
            data = b"".join(self.read(address, length) for address, length in parts)
            self.frames.append(data[HEADER_BYTES:])
            self.give_back(ring, head, 0)
        else:
            packet = bytes(10) + b"\x01\x00" + self.frames.popleft()
            left = packet
            for address, length in parts:
                if left:
                    self.write(address, left[:length], ring=False)
                left = left[length:]
            self.give_back(ring, head, len(packet))
        self.wake.set()
        return True

    def work(self, queue: int) -> None:
        ring = self.rings[queue]
        while self.open:
            with ring.lock:
                did = ring.running and self.serve(queue)
            if not did:
                self.wake.wait(0.001)
                self.wake.clear()

    def stop(self, queue: int) -> int:
        ring = self.rings[queue]
        with ring.lock:
            if self.bug == "late-dma" and queue == RX:
                ring.late = True
                return ring.base
            while ring.running and self.serve(queue):
                pass
            ring.running = False
            if self.log is not None:
                self.log.finish()
            return ring.base - 2 if self.bug == "base-behind" and queue == TX else ring.base

    # --- messages -------------------------------------------------------------------------------

    def run(self) -> None:
        for thread in self.threads:
            thread.start()
        with contextlib.suppress(EOFError, OSError):
            while True:
                data, fds = self.receive(12)
                code, _flags, size = struct.unpack("<III", data)
                payload = self.receive(size)[0] if size else b""
                answer = self.handle(code, payload, fds)
                if answer is not None:
                    self.sock.sendall(struct.pack("<III", code, 5, len(answer)) + answer)
        self.open = False

    def receive(self, size: int) -> tuple[bytes, list[int]]:
        fds = array.array("i")
        data = b""
        while len(data) < size:
            part, rights, _flags, _from = self.sock.recvmsg(size - len(data), socket.CMSG_SPACE(8 * 4))
            if not part:
                raise EOFError
            for _level, _kind, content in rights:
                fds.frombytes(content)
            data += part
        return data, list(fds)

    def handle(self, code: int, payload: bytes, fds: list[int]) -> bytes | None:
        if code in (1, 15):
            return struct.pack("<Q", FEATURES if code == 1 else PROTOCOL)
        if code == 2:
            (self.features,) = struct.unpack("<Q", payload)
        elif code == 5:
            self.take_memory(payload, fds)
        elif code == 6:
            size, offset = struct.unpack("<QQ", payload)
            if self.log is None or self.bug != "first-log-forever":
                self.log = Log(fds[0], size, offset, self.bug)
            return bytes(8)
        elif code in (8, 9, 10, 11, 12, 13, 18):
            return self.handle_ring(code, payload, fds)
        return None

    def handle_ring(self, code: int, payload: bytes, fds: list[int]) -> bytes | None:
        queue, value = struct.unpack_from("<II", payload)
        ring = self.rings[queue & 0xFF]
        if code == 8:
            ring.size = value
        elif code == 9:
            desc, used, avail = struct.unpack_from("<QQQ", payload, 8)
            ring.desc, ring.used, ring.avail = (self.gpa(area) for area in (desc, used, avail))
        elif code == 10:
            ring.base = value
        elif code == 11:
            return struct.pack("<II", queue, self.stop(queue) & 0xFFFF)
        elif code == 12:
            ring.kick = fds[0]
        elif code == 13:
            ring.call = fds[0]
        elif value:
            ring.running = True
        return None

    def take_memory(self, payload: bytes, fds: list[int]) -> None:
        for at, fd in enumerate(fds):
            gpa, size, uva, offset = struct.unpack_from("<QQQQ", payload, 8 + 32 * at)
            self.regions.append((gpa, size, uva, mmap.mmap(fd, offset + size), offset))


def main(path: str, bug: str = "") -> None:
    assert bug in ("", *BUGS), bug
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(path)
    listener.listen(4)
    print("listening", flush=True)
    while True:
        sock, _ = listener.accept()
        threading.Thread(target=Device(sock, bug).run, daemon=True).start()


if __name__ == "__main__":
    Path(sys.argv[1]).unlink(missing_ok=True)
    main(*sys.argv[1:])
