# SPDX-License-Identifier: Apache-2.0
"""One ring as a vhost-user front end describes it, message by message."""

from __future__ import annotations

import os
from dataclasses import dataclass

from vdpa_net.errors import ProtocolError
from vdpa_net.wire.vhost_user import VringAddresses


@dataclass
class Vring:
    """A ring. File descriptors are our own.

    `base` is where it starts or stopped, as SET_VRING_BASE has it: last_avail_idx of a split ring, both
    indices of a packed one as LM_RING_STATE has them. None: where a ring starts that was never in use.

    It is started while it has a kick, and stopped by GET_VRING_BASE ("Ring states").
    """

    index: int
    num: int = 0
    addresses: VringAddresses | None = None
    base: int | None = None
    kick: int | None = None
    call: int | None = None
    err: int | None = None
    enabled: bool = False

    @property
    def is_transmit(self) -> bool:
        """Whether it carries packets from the guest (virtio 1.3, 5.1.2)."""
        return self.index % 2 == 1

    @property
    def is_started(self) -> bool:
        """Described, and with a kick."""
        return self.num > 0 and self.addresses is not None and self.kick is not None

    def check_same_addresses(self, wanted: VringAddresses) -> None:
        """A running ring keeps its place. Raises ProtocolError."""
        assert self.addresses is not None
        for name in ("descriptor", "used", "available"):
            if getattr(self.addresses, name) != getattr(wanted, name):
                raise ProtocolError(
                    f"SET_VRING_ADDR: {name} of ring {self.index} changes from "
                    f"{getattr(self.addresses, name):#x} to {getattr(wanted, name):#x} while the ring runs"
                )

    def forget_description(self) -> None:
        """What a device reset takes away; the eventfds for calls and errors stay."""
        self.num, self.addresses, self.base, self.enabled = 0, None, None, False
        close_fd(self.kick)
        self.kick = None

    def close(self) -> None:
        """Give all descriptors back."""
        for fd in (self.kick, self.call, self.err):
            close_fd(fd)
        self.kick = self.call = self.err = None


def keep_eventfd(fd: int) -> int:
    """A descriptor of our own to signal. Raises OSError.

    It never blocks: a front end may have filled its counter, and we would wait with the back end's lock held.
    """
    kept = os.dup(fd)
    try:
        os.set_blocking(kept, False)
    except OSError:
        os.close(kept)
        raise
    return kept


def close_fd(fd: int | None) -> None:
    """Close a descriptor, if it is one."""
    if fd is not None:
        os.close(fd)
