# SPDX-License-Identifier: Apache-2.0
"""The live-migration (LM) register block: where its registers are (a profile), how ring state is coded."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Final

from vdpa_net.errors import OptionError
from vdpa_net.wire.layout import Register, RegisterMap

PAGE_SHIFT: Final = 12
"""One bit of the log is one page of 4096 bytes."""


@dataclass(frozen=True)
class Profile:
    """One layout of the LM block and of the PCI function around it. All offsets and strides in bytes.

    Ring state of queue i is at `ring_state_offset + (i // 2) * pair_stride + (i % 2) * queue_stride`, for
    `max_queues` queues. `logging_on` are the values of LM_LOGGING_CTRL that mean on; 0 means off. `lm_bar`
    None puts the block right behind the notify region in its BAR, else it begins at offset 0 of that BAR.
    """

    name: str
    subsystem_vendor_id: int
    subsystem_id: int
    virtio_bar: int
    msix_bar: int
    lm_bar: int | None
    max_queues: int
    ring_state_offset: int = 0x20
    pair_stride: int = 8
    queue_stride: int = 4
    logging_on: tuple[int, ...] = (1,)

    def ring_state(self, queue: int) -> int:
        """Offset of LM_RING_STATE of a queue. Raises OptionError for a queue the layout has no room for."""
        if not 0 <= queue < self.max_queues:
            raise OptionError(
                f"profile {self.name} has ring state of queues 0 to {self.max_queues - 1}, got {queue}"
            )
        return self.ring_state_offset + queue // 2 * self.pair_stride + queue % 2 * self.queue_stride

    @cached_property
    def registers(self) -> RegisterMap:
        """The whole block as a register table."""
        ring_states = (
            Register(ring_state_name(queue), self.ring_state(queue), 4, clause="LM_RING_STATE")
            for queue in range(self.max_queues)
        )
        return RegisterMap("lm", (*_CONTROL, *ring_states))


_CONTROL = (
    Register("LM_LOGGING_CTRL", 0x00, 4, clause="LM_LOGGING_CTRL"),
    Register("LM_BASE_ADDR_LOW", 0x10, 4, clause="LM_BASE_ADDR"),
    Register("LM_BASE_ADDR_HIGH", 0x14, 4, clause="LM_BASE_ADDR"),
    Register("LM_END_ADDR_LOW", 0x18, 4, clause="LM_END_ADDR"),
    Register("LM_END_ADDR_HIGH", 0x1C, 4, clause="LM_END_ADDR"),
)


def ring_state_name(queue: int) -> str:
    """Name of a queue's ring state register in `Profile.registers`."""
    return f"LM_RING_STATE[{queue}]"


VDPA: Final = Profile(
    name="vdpa",
    subsystem_vendor_id=0x1AF4,
    subsystem_id=0x1100,
    virtio_bar=4,
    msix_bar=1,
    lm_bar=None,
    max_queues=1024,
)
"""The layout of the vdpa-net document: 1024 ring states of 4 bytes from 0x20 on."""

PROFILES: Final = {profile.name: profile for profile in (VDPA,)}


def profile_by_name(name: str) -> Profile:
    """A built-in profile. Raises OptionError, which lists them."""
    try:
        return PROFILES[name]
    except KeyError:
        raise OptionError(f"no profile {name!r}: there is {', '.join(sorted(PROFILES))}") from None


def pack_ring_state(last_avail_idx: int, used_idx: int) -> int:
    """LM_RING_STATE of a split ring: last_avail_idx in bits 15:0, used_idx in bits 31:16."""
    return (used_idx & 0xFFFF) << 16 | (last_avail_idx & 0xFFFF)


def unpack_ring_state(value: int) -> tuple[int, int]:
    """(last_avail_idx, used_idx) of a split ring's LM_RING_STATE."""
    return value & 0xFFFF, value >> 16 & 0xFFFF
