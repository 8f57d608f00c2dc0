# SPDX-License-Identifier: Apache-2.0
"""Announcements on the lab's network: RARP requests and gratuitous ARP, seen where the taps deliver them."""

from __future__ import annotations

import ctypes
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass

from vdpa_net.closing import Closing
from vdpa_net.errors import LabError
from vdpa_net.migration.verdict import Line, Outcome

ETH_P_ARP = 0x0806
ETH_P_RARP = 0x8035
_KINDS = {ETH_P_ARP: "gratuitous ARP", ETH_P_RARP: "RARP"}
_ETH_P_ALL = 3
_PACKET_OUTGOING = 4
_SO_ATTACH_FILTER = 26
_INSTRUCTION = struct.Struct("HBBI")
_HEADER_BYTES = 14
_SENDER_PROTOCOL_ADDRESS = slice(14, 18)
_TARGET_PROTOCOL_ADDRESS = slice(24, 28)


@dataclass(frozen=True)
class Announcement:
    """One frame. `seen_ns` is when it was read (CLOCK_MONOTONIC), `mac` who sent it."""

    interface: str
    kind: str
    mac: str
    seen_ns: int


class AnnouncementWatch(Closing):
    """Notes the announcements that come in through these interfaces; a socket each, one thread.

    The sockets see frames before a bridge takes them (one of a single protocol would not), and filter in the
    kernel.
    """

    def __init__(self, interfaces: Iterable[str]) -> None:
        """Raises LabError if an interface can't be listened on."""
        self._sockets: dict[socket.socket, str] = {}
        self._seen: list[Announcement] = []
        self._lock = threading.Lock()
        self._wake_read, self._wake_write = os.pipe()
        self._thread = threading.Thread(target=self._listen, name="announcements", daemon=True)
        try:
            for interface in interfaces:
                self._sockets[_packet_socket(interface)] = interface
        except OSError as error:
            self._close_all()
            raise LabError(f"announcements on {interface} can't be watched: {error}") from error
        self._thread.start()

    def seen(self, interface: str, mac: str, since_ns: int) -> list[Announcement]:
        """Those of a station on an interface since an instant (CLOCK_MONOTONIC)."""
        with self._lock:
            return [
                entry
                for entry in self._seen
                if (entry.interface, entry.mac) == (interface, mac.lower()) and entry.seen_ns >= since_ns
            ]

    def close(self) -> None:
        """End the thread and give the sockets back."""
        os.write(self._wake_write, b"x")
        self._thread.join()
        self._close_all()

    def _close_all(self) -> None:
        for opened in self._sockets:
            opened.close()
        os.close(self._wake_read)
        os.close(self._wake_write)

    def _listen(self) -> None:
        by_fd = {opened.fileno(): opened for opened in self._sockets}
        while True:
            readable = select.select([self._wake_read, *by_fd], [], [])[0]
            now_ns = time.monotonic_ns()
            if self._wake_read in readable:
                return
            for fd in readable:
                try:
                    frame, address = by_fd[fd].recvfrom(2048)
                except OSError:
                    # Its interface has gone with the device that made it.
                    del by_fd[fd]
                    continue
                if address[2] != _PACKET_OUTGOING:
                    self._note(self._sockets[by_fd[fd]], frame, now_ns)

    def _note(self, interface: str, frame: bytes, now_ns: int) -> None:
        kind = _kind(frame)
        if kind is not None:
            with self._lock:
                self._seen.append(Announcement(interface, kind, frame[6:12].hex(":"), now_ns))


def announcement_line(seen: Iterable[Announcement], interface: str, stopped_ns: int) -> Line:
    """The destination's device announced the guest with RARP, once the source's had stopped."""
    every = list(seen)
    rarp = [entry for entry in every if entry.kind == _KINDS[ETH_P_RARP]]
    others = len(every) - len(rarp)
    detail = () if rarp else (f"no RARP on {interface} after the source's device had stopped",)
    first = f", the first {(rarp[0].seen_ns - stopped_ns) / 1e6:.1f} ms after the stop" if rarp else ""
    also = f"; {others} gratuitous ARP" if others else ""
    return Line(
        "announcement",
        Outcome.PASS if rarp else Outcome.FAIL,
        f"{len(rarp)} RARP on {interface}{first}{also}",
        "1 or more RARP of the guest's MAC",
        detail,
    )


def _filter(first: int, second: int) -> bytes:
    """A BPF program (Documentation/networking/filter.rst) that lets frames of two EtherTypes pass."""
    load_half_word, jump_if_equal, give_back = 0x28, 0x15, 0x06
    program = (
        (load_half_word, 0, 0, 12),
        (jump_if_equal, 1, 0, first),
        (jump_if_equal, 0, 1, second),
        (give_back, 0, 0, 0xFFFF),
        (give_back, 0, 0, 0),
    )
    return b"".join(_INSTRUCTION.pack(*instruction) for instruction in program)


def _kind(frame: bytes) -> str | None:
    kind = int.from_bytes(frame[12:14], "big")
    body = frame[_HEADER_BYTES:]
    # An ARP that asks for, or tells, its sender's own address is gratuitous; others are questions.
    if kind == ETH_P_ARP and body[_SENDER_PROTOCOL_ADDRESS] != body[_TARGET_PROTOCOL_ADDRESS]:
        return None
    return _KINDS.get(kind)


def _packet_socket(interface: str) -> socket.socket:
    # Nothing comes before the filter is there.
    opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    try:
        program = ctypes.create_string_buffer(code := _filter(*_KINDS), len(code))
        described = struct.pack("HL", len(program.raw) // _INSTRUCTION.size, ctypes.addressof(program))
        opened.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, described)
        opened.bind((interface, _ETH_P_ALL))
    except OSError:
        opened.close()
        raise
    return opened
