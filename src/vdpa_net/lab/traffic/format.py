# SPDX-License-Identifier: Apache-2.0
"""The lab's traffic: what the datagrams look like.

Numbered flows of UDP datagrams, each with a socket of its own at both ends, and both ways independent of each
other. Every datagram carries a run id, its flow, a sequence number from 0 on, and a CRC-32 of its whole
payload; payloads have mixed lengths. The guest's agent (rust/guest-agent) speaks the same format. Requests go
to the agent's control port and are repeated until answered: none of them does harm when it comes twice.

    data:      HEADER ECHO filler; the echo names the datagram of the flow that had arrived last, and how long
               ago that was: the sender of that one knows its round trip without the time it lay there
    request:   HEADER body
      START:   body is START_BODY; begins a run and the agent's flows (a run that is known goes on)
      STOP:    no body; the agent's flows end, it goes on receiving
      MISSING, DUPLICATES, REORDERED: body is QUERY_BODY, about the header's flow
    reply:     HEADER STATE_BODY and `pairs` times PAIR
      MISSING: first and last number of an interval that did not arrive
      DUPLICATES: a number and how many copies too many
      REORDERED: a number and the highest one that had arrived before it
"""

from __future__ import annotations

import random
import zlib
from enum import IntEnum

from vdpa_net.wire.layout import Field, Layout

MAGIC = 0x546E6456
VERSION = 2
MAX_LENGTH_BYTES = 1472
MAX_FLOWS = 32
NOTHING = (1 << 64) - 1
"""The echo before the first arrival; the position of the first wrong byte where all are right."""

DEFAULT_PORT = 7000
CONTROL_PORT_OFFSET = 1
STREAM_PORT_OFFSET = 2
FLOW_PORT_OFFSET = 16
"""Behind the agent's port: its control port (UDP), that of the stream (TCP), and the first flow's (UDP)."""

HEADER = Layout(
    "traffic header",
    Field("magic", 4),
    Field("version", 1),
    Field("kind", 1),
    Field("operation", 1),
    Field("flow", 1),
    Field("run_id", 8),
    Field("sequence", 8),
    Field("sent_ns", 8),
    Field("length", 4),
    Field("checksum", 4),
)
ECHO = Layout("traffic echo", Field("sequence", 8), Field("age_ns", 8))
START_BODY = Layout(
    "traffic start",
    Field("rate_pps", 4),
    Field("min_length", 4),
    Field("max_length", 4),
    Field("flows", 4),
    Field("seed", 8),
    Field("reserved", 8),
)
QUERY_BODY = Layout("traffic query", Field("from_sequence", 8), Field("to_sequence", 8))
STATE_BODY = Layout(
    "traffic state",
    Field("received", 8),
    Field("next_expected", 8),
    Field("duplicates", 4),
    Field("reordered", 4),
    Field("corrupted", 4),
    Field("foreign", 4),
    Field("sent", 8),
    Field("send_errors", 4),
    Field("sending", 4),
    Field("stream_received", 8),
    Field("stream_sent", 8),
    Field("stream_mismatch_at", 8),
    Field("stream_phase", 4),
    Field("pairs", 4),
    Field("more", 8),
)
PAIR = Layout("traffic pair", Field("first", 8), Field("second", 8))
STREAM_HELLO = Layout(
    "traffic stream hello",
    Field("run_id", 8),
    Field("seed", 8),
    Field("bytes_per_s", 4),
    Field("reserved", 4),
)
MIN_LENGTH_BYTES = HEADER.size + ECHO.size
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
    REORDERED = 5


class StreamPhase(IntEnum):
    """What the agent's end of the TCP stream has come to."""

    NONE = 0
    OPEN = 1
    ENDED = 2
    BROKEN = 3


def pack_datagram(
    kind: Kind,
    run_id: int,
    sequence: int,
    sent_ns: int,
    body: bytes = b"",
    *,
    operation: int = 0,
    flow: int = 0,
) -> bytes:
    """A datagram, sealed with its checksum. `body` is all behind the header."""
    data = bytearray(
        HEADER.pack(
            magic=MAGIC,
            version=VERSION,
            kind=kind,
            operation=operation,
            flow=flow,
            run_id=run_id,
            sequence=sequence,
            sent_ns=sent_ns,
            length=HEADER.size + len(body),
        )
    )
    data += body
    data[_CHECKSUM] = zlib.crc32(data).to_bytes(4, "little")
    return bytes(data)


def unpack_datagram(data: bytes) -> dict[str, int] | None:
    """The header's fields, None if the datagram is damaged or none of the lab's."""
    if len(data) < HEADER.size:
        return None
    header = HEADER.unpack(data)
    if (header["magic"], header["version"], header["length"]) != (MAGIC, VERSION, len(data)):
        return None
    blank = zlib.crc32(bytes(4), zlib.crc32(data[: _CHECKSUM.start]))
    return header if zlib.crc32(data[_CHECKSUM.stop :], blank) == header["checksum"] else None


def unpack_reply(data: bytes) -> tuple[dict[str, int], list[tuple[int, int]]]:
    """State (fields of STATE_BODY) and pairs of a reply. Raises ValueError if it is cut short."""
    state = STATE_BODY.unpack(data, HEADER.size)
    start = HEADER.size + STATE_BODY.size
    unpacked = (PAIR.unpack(data, start + index * PAIR.size) for index in range(state["pairs"]))
    return state, [(pair["first"], pair["second"]) for pair in unpacked]


class Filler:
    """What follows the echo in the datagrams of a flow, from a seed: mixed lengths, random bytes.

    `lengths` is the range of whole payloads in bytes. Raises ValueError if they can't be.
    """

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

    def next(self) -> bytes:
        """The next datagram's."""
        length = self._random.randint(*self._lengths) - MIN_LENGTH_BYTES
        start = self._random.randrange(self._POOL_BYTES)
        return self._pool[start : start + length]
