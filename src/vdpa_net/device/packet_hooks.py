# SPDX-License-Identifier: Apache-2.0
"""Packets as hooks see them.

A hook is `hook(packet) -> None | bytes | Packet | DROP`. It runs in the worker thread of the queue pair, with
no lock held: the device may be used from it (but not closed), and the pair waits for it. Bytes that it
returns take the place of the frame, a `Packet` that of frame and header, and with `DROP` the packet goes
nowhere (counter `drops_hook`). A hook that raises is logged, and its packet dropped.

Hooks stand between the guest and the rest of the device: what the guest sent comes to them before the back
end, what the network sent after the receive filter.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final, Literal

from vdpa_net.device.access import DROP, Drop
from vdpa_net.record import Record, replace
from vdpa_net.wire.virtio_net import NET_HEADER

MAX_FRAME_BYTES: Final = 14 + 8 + 65535
"""Ethernet header, two VLAN tags and the longest IP packet."""


class Packet(Record):
    """One packet: the pair it travels on, its virtio-net header (12 bytes; virtio 1.3, 5.1.6), its frame."""

    to_guest: bool
    pair: int
    header: bytes
    frame: bytes


PacketAnswer = None | bytes | Packet | Literal[Drop.DROP]
PacketHook = Callable[[Packet], PacketAnswer]
NativeHook = Callable[[bool, int, bytes], bytes | None]
"""What the data plane calls: (to_guest, pair, header and frame) -> header and frame, None to drop it."""


class PacketHooks:
    """The hooks of a device, asked in the order of their coming; each sees what the one before made.

    `install` is given the function that the data plane shall call for each packet, or None when there is no
    hook (any more): then no Python is on the way of a packet.
    """

    def __init__(self, install: Callable[[NativeHook | None], None]) -> None:
        self._install = install
        self._hooks: tuple[PacketHook, ...] = ()
        self._running: set[int] = set()

    def add(self, hook: PacketHook) -> Callable[[], None]:
        """Add a hook; the returned function takes it away again, and waits until it is not being asked."""
        self._change((*self._hooks, hook))
        return lambda: self._change(tuple(other for other in self._hooks if other is not hook))

    def clear(self) -> None:
        """Take all hooks away; on return none is being asked."""
        self._change(())

    def asks_this_thread(self) -> bool:
        """Whether the caller is a hook."""
        return threading.get_ident() in self._running

    def _change(self, hooks: tuple[PacketHook, ...]) -> None:
        self._hooks = hooks
        self._install(self._ask if hooks else None)

    def _ask(self, to_guest: bool, pair: int, raw: bytes) -> bytes | None:
        """What passes of the packet; None: nothing."""
        packet = Packet(to_guest, pair, raw[: NET_HEADER.size], raw[NET_HEADER.size :])
        self._running.add(threading.get_ident())
        try:
            for hook in self._hooks:
                answer = hook(packet)
                if answer is DROP:
                    return None
                packet = _replaced(packet, answer)
        except Exception:
            # Imported here: it takes a good part of the start, and most devices have no hooks.
            import logging  # noqa: PLC0415

            logging.getLogger(__name__).exception("a packet hook failed; its packet is dropped")
            return None
        finally:
            self._running.discard(threading.get_ident())
        return packet.header + packet.frame


def _replaced(packet: Packet, answer: bytes | Packet | None) -> Packet:
    if answer is None:
        return packet
    changed = answer if isinstance(answer, Packet) else replace(packet, frame=answer)
    if not isinstance(changed.frame, bytes) or not 1 <= len(changed.frame) <= MAX_FRAME_BYTES:
        raise ValueError(f"a packet hook returned {answer!r}: expected 1 to {MAX_FRAME_BYTES} bytes")
    if len(changed.header) != NET_HEADER.size:
        raise ValueError(f"a packet hook returned a header of {len(changed.header)} bytes; expected 12")
    return changed
