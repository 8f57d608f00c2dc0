# SPDX-License-Identifier: Apache-2.0
"""The lab's traffic: what the datagrams look like, and what is made of what was seen.

Two numbered streams of UDP datagrams, one each way, independent of each other. Every datagram carries a run
id, a sequence number from 0 on, and a CRC-32 of its whole payload; payloads have mixed lengths. The guest's
agent (rust/guest-agent) speaks the same format. Requests go to the agent's control port and are repeated
until answered: none of them does harm when it comes twice.

    datagram:  HEADER SUMMARY body
    data:      body is filler
    START:     body is START_BODY; begins a run and the agent's stream (a run that is known goes on)
    STOP:      no body; the agent's stream ends, it goes on receiving
    MISSING, DUPLICATES: body is QUERY_BODY
    reply:     body is STATE_BODY and `pairs` times PAIR: for MISSING the first and last number of an interval
               that did not arrive, for DUPLICATES a number and how many copies too many
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Mapping
from enum import IntEnum

from vdpa_net.wire.layout import Field, Layout

MAGIC = 0x546E6456
VERSION = 1
MAX_LENGTH_BYTES = 1472
DEFAULT_PORT = 7000

HEADER = Layout(
    "traffic header",
    Field("magic", 4),
    Field("version", 1),
    Field("kind", 1),
    Field("operation", 2),
    Field("run_id", 8),
    Field("sequence", 8),
    Field("sent_ns", 8),
    Field("length", 4),
    Field("checksum", 4),
)
SUMMARY = Layout(
    "traffic summary",
    Field("received", 8),
    Field("next_expected", 8),
    Field("duplicates", 4),
    Field("reordered", 4),
    Field("corrupted", 4),
    Field("foreign", 4),
)
START_BODY = Layout(
    "traffic start",
    Field("rate_pps", 4),
    Field("min_length", 4),
    Field("max_length", 4),
    Field("reserved", 4),
    Field("seed", 8),
)
QUERY_BODY = Layout("traffic query", Field("from_sequence", 8), Field("to_sequence", 8))
STATE_BODY = Layout(
    "traffic state",
    Field("sent", 8),
    Field("send_errors", 4),
    Field("sending", 4),
    Field("pairs", 4),
    Field("more", 4),
)
PAIR = Layout("traffic pair", Field("first", 8), Field("second", 8))
MIN_LENGTH_BYTES = HEADER.size + SUMMARY.size
BODY_OFFSET = HEADER.size + SUMMARY.size
_CHECKSUM = slice(HEADER.offset("checksum"), HEADER.offset("checksum") + 4)


class Kind(IntEnum):
    """What a datagram is."""

    DATA = 1
    REQUEST = 2
    REPLY = 3


class Operation(IntEnum):
    """What a request asks for."""

    START = 1
    STOP = 2
    MISSING = 3
    DUPLICATES = 4


def pack_datagram(
    kind: Kind,
    run_id: int,
    sequence: int,
    sent_ns: int,
    body: bytes = b"",
    *,
    operation: int = 0,
    summary: Mapping[str, int] | None = None,
) -> bytes:
    """A datagram, sealed with its checksum."""
    data = bytearray(
        HEADER.pack(
            magic=MAGIC,
            version=VERSION,
            kind=kind,
            operation=operation,
            run_id=run_id,
            sequence=sequence,
            sent_ns=sent_ns,
            length=BODY_OFFSET + len(body),
        )
    )
    data += SUMMARY.pack(**(summary or {}))
    data += body
    data[_CHECKSUM] = zlib.crc32(data).to_bytes(4, "little")
    return bytes(data)


def unpack_datagram(data: bytes) -> dict[str, int] | None:
    """The header's fields, None if the datagram is damaged or none of the lab's."""
    if len(data) < MIN_LENGTH_BYTES:
        return None
    header = HEADER.unpack(data)
    if (header["magic"], header["version"], header["length"]) != (MAGIC, VERSION, len(data)):
        return None
    blank = zlib.crc32(bytes(4), zlib.crc32(data[: _CHECKSUM.start]))
    return header if zlib.crc32(data[_CHECKSUM.stop :], blank) == header["checksum"] else None


class Filler:
    """Lengths and bodies of a stream, from a seed. `lengths` is the range of whole payloads in bytes."""

    _POOL_BYTES = 1 << 16

    def __init__(self, seed: int, lengths: tuple[int, int]) -> None:
        low, high = lengths
        if not MIN_LENGTH_BYTES <= low <= high <= MAX_LENGTH_BYTES:
            raise ValueError(
                f"payload lengths {low}..{high}, expected within {MIN_LENGTH_BYTES}..{MAX_LENGTH_BYTES}"
            )
        self._random = random.Random(seed)
        self._lengths = lengths
        self._pool = self._random.randbytes(self._POOL_BYTES + MAX_LENGTH_BYTES)

    def body(self) -> bytes:
        """The next body."""
        length = self._random.randint(*self._lengths) - BODY_OFFSET
        start = self._random.randrange(self._POOL_BYTES)
        return self._pool[start : start + length]
