# SPDX-License-Identifier: Apache-2.0
"""A vhost-user front end that behaves like QEMU's, for one net device."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vdpa_net.closing import Closing
from vdpa_net.errors import PeerError, ProtocolError
from vdpa_net.testing.dirty_log import DirtyLog
from vdpa_net.testing.guest_memory import GuestMemory
from vdpa_net.testing.ring import DriverRing
from vdpa_net.testing.vhost_connection import (
    PROTOCOL_REPLY_ACK,
    FrontEndConnection,
    Request,
    connect,
)

F_LOG_ALL = 1 << 26
F_PROTOCOL_FEATURES = 1 << 30
F_MRG_RXBUF = 1 << 15
F_INDIRECT_DESC = 1 << 28
F_MQ = 1 << 22
F_EVENT_IDX = 1 << 29
F_VERSION_1 = 1 << 32
F_RING_PACKED = 1 << 34

WANTED_FEATURES = F_MRG_RXBUF | F_INDIRECT_DESC | F_EVENT_IDX | F_VERSION_1
PROTOCOL_MQ, PROTOCOL_LOG_SHMFD, PROTOCOL_RARP, PROTOCOL_MTU = 1 << 0, 1 << 1, 1 << 2, 1 << 4
PROTOCOL_BACKEND_REQ, PROTOCOL_CONFIG, PROTOCOL_RESET_DEVICE = 1 << 5, 1 << 9, 1 << 13
PROTOCOL_MEM_SLOTS, PROTOCOL_STATUS = 1 << 15, 1 << 16
WANTED_PROTOCOL_FEATURES = (
    PROTOCOL_MQ
    | PROTOCOL_LOG_SHMFD
    | PROTOCOL_REPLY_ACK
    | PROTOCOL_BACKEND_REQ
    | PROTOCOL_MEM_SLOTS
    | PROTOCOL_STATUS
)

_U64 = struct.Struct("<Q")
_STATE = struct.Struct("<II")
_ADDR = struct.Struct("<IIQQQQ")
_REGION = struct.Struct("<QQQQ")
_LOG = struct.Struct("<QQ")

_VRING_F_LOG = 1
_STATUS_DRIVER_OK = 0xF
_USER_ADDRESS_BASE = 0x7F40_0000_0000


@dataclass(frozen=True)
class Manners:
    """What front ends do differently from one another, and a back end has to take either way.

    `log_base_first`: SET_LOG_BASE before LOG_ALL, as QEMU does, or after. `disable_first`: before
    GET_VRING_BASE comes SET_VRING_ENABLE(0), as QEMU >= 7.2 sends it. `memory_slots`: ADD_MEM_REG instead of
    SET_MEM_TABLE. `enable_early`: SET_VRING_ENABLE(1) before the rings are described. `stop_order`: queues in
    this order.
    """

    log_base_first: bool = True
    disable_first: bool = True
    memory_slots: bool = True
    enable_early: bool = False
    stop_order: tuple[int, ...] | None = None


class VhostFrontEnd(FrontEndConnection, Closing):
    """A connection to a vhost-user back end, with guest memory and rings of the caller's.

    `where` is the path at which the back end listens, or a connected socket, which is taken over.
    """

    def __init__(
        self,
        where: Path | str | socket.socket,
        memory: GuestMemory,
        rings: Sequence[DriverRing],
        *,
        features: int = WANTED_FEATURES,
        protocol_features: int = WANTED_PROTOCOL_FEATURES,
        manners: Manners | None = None,
        timeout_s: float = 20.0,
    ) -> None:
        sock = where if isinstance(where, socket.socket) else connect(where)
        super().__init__(sock, timeout_s=timeout_s)
        self.memory = memory
        self.rings = list(rings)
        self.manners = manners or Manners()
        self.features = self.offered = 0
        self.log: DirtyLog | None = None
        self._wanted = features | (F_RING_PACKED if any(ring.is_packed for ring in self.rings) else 0)
        self._wanted |= F_MQ if len(self.rings) > 2 else 0
        self.shared: int | None = None
        self._wanted_protocol = protocol_features
        self._slots: list[bytes] = []
        self._backend_requests: tuple[socket.socket, socket.socket] | None = None
        self.kick_fds = [_eventfd() for _ in rings]
        self.call_fds = [_eventfd() for _ in rings]

    # --- set-up, in QEMU's order ----------------------------------------------------------------

    def negotiate(self) -> None:
        """Features and protocol features: what is wanted and offered.

        Raises PeerError for too few queues, and where the rings are packed and the back end knows split ones.
        """
        offered = self.offered = self.get_u64(Request.GET_FEATURES)
        if self._wanted & F_RING_PACKED & ~offered:
            raise PeerError(f"the back end offers {offered:#x}, without packed rings")
        self.features = offered & (self._wanted | F_PROTOCOL_FEATURES)
        if offered & F_PROTOCOL_FEATURES:
            self.protocol_features = self.get_u64(Request.GET_PROTOCOL_FEATURES) & self._wanted_protocol
            self.request(Request.SET_PROTOCOL_FEATURES, _U64.pack(self.protocol_features))
        if self.protocol_features & PROTOCOL_MQ:
            pairs = self.get_u64(Request.GET_QUEUE_NUM)
            if 2 * pairs < len(self.rings):
                raise PeerError(f"the back end has {pairs} queue pairs, {len(self.rings)} queues are wanted")
        if self.protocol_features & PROTOCOL_MEM_SLOTS:
            self.get_u64(Request.GET_MAX_MEM_SLOTS)
        if self.protocol_features & PROTOCOL_BACKEND_REQ:
            self._backend_requests = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
            self.request(Request.SET_BACKEND_REQ_FD, fds=[self._backend_requests[1].fileno()])
        self.request(Request.SET_OWNER)

    def share_memory(self) -> None:
        """Hand over the guest's memory, at user addresses that differ from its guest addresses.

        With memory slots only what the back end does not have yet is sent, as QEMU does.
        """
        regions = [
            _REGION.pack(
                region.gpa, region.size_bytes, _USER_ADDRESS_BASE + region.file_offset, region.file_offset
            )
            for region in self.memory.regions[: self.shared]
        ]
        if self.manners.memory_slots and self.protocol_features & PROTOCOL_MEM_SLOTS:
            for region in regions:
                if region not in self._slots:
                    self.request(Request.ADD_MEM_REG, bytes(8) + region, [self.memory.fd])
                    self._slots.append(region)
        else:
            table = struct.pack("<II", len(regions), 0) + b"".join(regions)
            self.request(Request.SET_MEM_TABLE, table, [self.memory.fd] * len(regions))

    def start(self, bases: Sequence[int] | None = None) -> None:
        """Start the rings at these vring bases (default: where each ring stands)."""
        self._set_features()
        self.share_memory()
        if self.manners.enable_early:
            self._enable(range(len(self.rings)), 1)
        for index, ring in enumerate(self.rings):
            self.request(Request.SET_VRING_NUM, _STATE.pack(index, ring.size))
            self.request(Request.SET_VRING_BASE, _STATE.pack(index, bases[index] if bases else ring.base))
            self._set_vring_addr(index)
            self.request(Request.SET_VRING_KICK, _U64.pack(index), [self.kick_fds[index]])
            self.request(Request.SET_VRING_CALL, _U64.pack(index), [self.call_fds[index]])
        if not self.manners.enable_early:
            self._enable(range(len(self.rings)), 1)
        if self.protocol_features & PROTOCOL_STATUS:
            self.request(Request.SET_STATUS, _U64.pack(_STATUS_DRIVER_OK))

    def connect(self, bases: Sequence[int] | None = None) -> None:
        """Negotiate and start."""
        self.negotiate()
        self.start(bases)

    # --- migration ------------------------------------------------------------------------------

    def start_logging(self, log: DirtyLog) -> None:
        """Have every write from now on marked in `log`; a running log is replaced. The caller keeps it."""
        self.log = log
        if self.manners.log_base_first:
            self._set_log_base(log)
        self._set_features()
        if not self.manners.log_base_first:
            self._set_log_base(log)
        for index in range(len(self.rings)):
            self._set_vring_addr(index)
        if not self.protocol_features & PROTOCOL_REPLY_ACK:
            # Memory must not be copied before the back end logs: a message that is answered waits for those
            # before it (QEMU's front end does the same).
            self.get_u64(Request.GET_FEATURES)

    def stop_logging(self) -> None:
        """Clear LOG_ALL."""
        self.log = None
        self._set_features()
        for index in range(len(self.rings)):
            self._set_vring_addr(index)

    def stop(self) -> list[int]:
        """Stop the rings; what GET_VRING_BASE answered, per queue."""
        order = self.manners.stop_order or tuple(range(len(self.rings)))
        if self.manners.disable_first:
            self._enable(order, 0)
        bases = {index: self._get_vring_base(index) for index in order}
        if self.protocol_features & PROTOCOL_STATUS:
            self.request(Request.SET_STATUS, _U64.pack(0))
        return [bases[index] for index in range(len(self.rings))]

    def kick(self, queue: int) -> None:
        """Notify the device of new buffers."""
        os.eventfd_write(self.kick_fds[queue], 1)

    # --- messages -------------------------------------------------------------------------------

    def _set_features(self) -> None:
        self.request(Request.SET_FEATURES, _U64.pack(self.features | (F_LOG_ALL if self.log else 0)))

    def _set_log_base(self, log: DirtyLog) -> None:
        # Answered whatever need_reply says, with an empty payload or a u64 ("Communication").
        answer = self.ask(Request.SET_LOG_BASE, _LOG.pack(log.size_bytes, log.offset_bytes), [log.fd])
        if any(answer):
            raise PeerError(f"SET_LOG_BASE was answered with {answer.hex()}")

    def _set_vring_addr(self, index: int) -> None:
        ring = self.rings[index]
        areas = (self.ring_address(area) for area in (ring.desc, ring.device, ring.driver))
        flags = _VRING_F_LOG if self.log else 0
        self.request(Request.SET_VRING_ADDR, _ADDR.pack(index, flags, *areas, ring.device))

    def _enable(self, queues: Sequence[int], value: int) -> None:
        for index in queues:
            self.request(Request.SET_VRING_ENABLE, _STATE.pack(index, value))

    def _get_vring_base(self, index: int) -> int:
        answer = self.ask(Request.GET_VRING_BASE, _STATE.pack(index, 0))
        if len(answer) != _STATE.size:
            raise ProtocolError(
                f"GET_VRING_BASE was answered with {len(answer)} bytes, expected {_STATE.size}"
            )
        answered, base = _STATE.unpack(answer)
        if answered != index:
            raise ProtocolError(f"GET_VRING_BASE for queue {index} was answered for queue {answered}")
        return int(base)

    def ring_address(self, address: int) -> int:
        """What SET_VRING_ADDR says of a ring's area."""
        return self.user_address(address)

    def user_address(self, gpa: int) -> int:
        """Where the front end says that it sees this guest physical address."""
        for region in self.memory.regions:
            if region.gpa <= gpa < region.end:
                return _USER_ADDRESS_BASE + region.file_offset + gpa - region.gpa
        raise ValueError(f"{gpa:#x} is in no region of guest memory")

    def close(self) -> None:
        """Hang up, with or without a stop before."""
        super().close()
        for end in self._backend_requests or ():
            end.close()
        for fd in self.kick_fds + self.call_fds:
            with contextlib.suppress(OSError):
                os.close(fd)
        self.kick_fds, self.call_fds = [], []


def _eventfd() -> int:
    return os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
