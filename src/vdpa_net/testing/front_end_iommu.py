# SPDX-License-Identifier: Apache-2.0
"""The front end double of a guest with an IOMMU: it answers misses with translations, page by page."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Sequence
from pathlib import Path

from vdpa_net.errors import PeerGone, ProtocolError
from vdpa_net.testing.front_end import (
    WANTED_FEATURES,
    WANTED_PROTOCOL_FEATURES,
    Manners,
    VhostFrontEnd,
)
from vdpa_net.testing.guest_memory import PAGE_BYTES
from vdpa_net.testing.iova_memory import IovaMemory
from vdpa_net.testing.split_ring import SplitRing
from vdpa_net.testing.vhost_connection import PROTOCOL_REPLY_ACK, Request

F_ACCESS_PLATFORM = 1 << 33
MISS, UPDATE, INVALIDATE, ACCESS_FAIL = 1, 2, 3, 4
READ_WRITE = 3

_HEADER = struct.Struct("<III")
_IOTLB = struct.Struct("<QQQBB6x")
_BACKEND_IOTLB_MSG = 1


class IommuFrontEnd(VhostFrontEnd):
    """`memory` is what the guest's driver sees; the back end gets the guest memory behind it.

    Misses are answered by a thread of its own while `answering` is set. `misses` are the pages asked for,
    `failures` those that the back end reported as not accessible.
    """

    def __init__(
        self,
        where: Path | str | socket.socket,
        memory: IovaMemory,
        rings: Sequence[SplitRing],
        *,
        features: int = WANTED_FEATURES,
        protocol_features: int = WANTED_PROTOCOL_FEATURES,
        manners: Manners | None = None,
    ) -> None:
        self.iova_memory = memory
        self.misses: list[int] = []
        self.failures: list[int] = []
        self.answering = threading.Event()
        self.answering.set()
        self._answers: threading.Thread | None = None
        super().__init__(
            where,
            memory.physical,
            rings,
            features=features | F_ACCESS_PLATFORM,
            protocol_features=protocol_features,
            manners=manners,
        )

    def negotiate(self) -> None:
        """As any front end; then listen to the back end's questions."""
        super().negotiate()
        if self._backend_requests is not None:
            self._answers = threading.Thread(target=self._answer, name="front end iotlb", daemon=True)
            self._answers.start()

    def ring_address(self, address: int) -> int:
        """Rings lie at IOVAs."""
        return address

    def update(self, iova: int, *, permissions: int = READ_WRITE) -> None:
        """Give the translation of one page. Raises PeerError."""
        frame = self.iova_memory.frame(iova)
        assert frame is not None
        user_address = self.user_address(frame * PAGE_BYTES)
        self._iotlb(iova // PAGE_BYTES * PAGE_BYTES, PAGE_BYTES, user_address, permissions, UPDATE)

    def invalidate(self, iova: int, size: int = PAGE_BYTES) -> None:
        """Take translations back; on return the back end does not use them. Raises PeerError."""
        self._iotlb(iova, size, 0, 0, INVALIDATE)

    def _iotlb(self, *fields: int) -> None:
        # It is answered whatever need_reply says.
        self.expect_success(Request.IOTLB_MSG, self.ask(Request.IOTLB_MSG, _IOTLB.pack(*fields)))

    def _answer(self) -> None:
        assert self._backend_requests is not None
        ours = self._backend_requests[0]
        while True:
            try:
                header = ours.recv(_HEADER.size, socket.MSG_WAITALL)
                if len(header) < _HEADER.size:
                    return
                code, flags, size = _HEADER.unpack(header)
                payload = ours.recv(size, socket.MSG_WAITALL) if size else b""
                self.answering.wait()
                success = code != _BACKEND_IOTLB_MSG or self._answer_iotlb(payload)
                if flags & 8 and self.protocol_features & PROTOCOL_REPLY_ACK:
                    ours.sendall(_HEADER.pack(code, 5, 8) + struct.pack("<Q", int(not success)))
            except (OSError, PeerGone, ProtocolError):
                return

    def _answer_iotlb(self, payload: bytes) -> bool:
        iova, _, _, permissions, kind = _IOTLB.unpack(payload)
        if kind == ACCESS_FAIL:
            self.failures.append(iova)
            return True
        self.misses.append(iova)
        if kind != MISS or not permissions or self.iova_memory.frame(iova) is None:
            return False
        self.update(iova)
        return True

    def close(self) -> None:
        """Hang up."""
        self.answering.set()
        if self._backend_requests is not None:
            self._backend_requests[0].shutdown(socket.SHUT_RDWR)
        if self._answers is not None:
            self._socket.shutdown(socket.SHUT_RDWR)
            self._answers.join()
        super().close()
