# SPDX-License-Identifier: Apache-2.0
"""Ethernet frames that account for themselves: each carries its number, its length and a checksum."""

from __future__ import annotations

import random
import struct
import zlib

ETHERTYPE = 0x88B5
"""IEEE 802 local experimental: no stack answers it."""

_STAMP = struct.Struct(">6s6sHQHI")

MIN_FRAME_BYTES = 60
MAX_FRAME_BYTES = 1514


class FrameMint:
    """Makes frames number 0, 1, 2, ... of `source`; the filling depends on the seed and the number."""

    def __init__(self, seed: int, source: bytes = b"\x52\x54\x00\x00\x00\x01") -> None:
        self._source = source
        self._filling = random.Random(seed).randbytes(3 * MAX_FRAME_BYTES)

    def frame(self, seq: int, size: int) -> bytes:
        """Frame `seq` of `size` bytes (60 to 1514)."""
        if not MIN_FRAME_BYTES <= size <= MAX_FRAME_BYTES:
            raise ValueError(f"frame of {size} bytes; {MIN_FRAME_BYTES} to {MAX_FRAME_BYTES} are possible")
        at = seq * 61 % MAX_FRAME_BYTES
        body = self._filling[at : at + size - _STAMP.size]
        head = (b"\xff" * 6, self._source, ETHERTYPE, seq, size)
        return _STAMP.pack(*head, zlib.crc32(_STAMP.pack(*head, 0) + body)) + body


def read_stamp(frame: bytes) -> int | None:
    """The sequence number of an intact frame; None for one that is damaged or is not ours.

    >>> read_stamp(FrameMint(1).frame(7, 100))
    7
    """
    if len(frame) < _STAMP.size:
        return None
    *head, checksum = _STAMP.unpack_from(frame)
    _, _, ethertype, seq, size = head
    if ethertype != ETHERTYPE or size != len(frame):
        return None
    if zlib.crc32(_STAMP.pack(*head, 0) + frame[_STAMP.size :]) != checksum:
        return None
    return int(seq)


def is_stamped(frame: bytes) -> bool:
    """Whether the frame claims to be one of ours, intact or not."""
    return len(frame) >= 14 and frame[12:14] == ETHERTYPE.to_bytes(2, "big")
