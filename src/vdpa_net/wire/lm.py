# SPDX-License-Identifier: Apache-2.0
"""The live-migration (LM) register block: where its registers are (a profile), how ring state is coded."""

from __future__ import annotations

from functools import cached_property
from typing import Final

from vdpa_net.errors import OptionError
from vdpa_net.record import Record, replace
from vdpa_net.wire.layout import BitField, Register, RegisterMap

PAGE_SHIFT: Final = 12
"""One bit of the log is one page of 4096 bytes."""

LOGGING_CTRL_MASK: Final = 0xF
"""LM_LOGGING_CTRL is 4 bits wide; bits 31:4 must be 0."""

MAX_QUEUES: Final = 1024
PAIRS: Final = "LM_QUEUE_PAIRS"
"""Register of layouts that have one: how many queue pairs the driver has enabled."""
PACKED_WRAP: Final = 1 << 15
"""The wrap counter in a packed ring's index."""

SPLIT_STATE: Final = (BitField("last_avail_idx", 0, 16), BitField("used_idx", 16, 16))
PACKED_STATE: Final = (
    BitField("last_avail_idx", 0, 15),
    BitField("last_avail_wrap_counter", 15, 1),
    BitField("used_idx", 16, 15),
    BitField("used_wrap_counter", 31, 1),
)
"""What LM_RING_STATE of a split ring is made of, and that of a packed ring."""

PACKED_OFFSET_MASK: Final = PACKED_WRAP - 1
PACKED_INITIAL: Final = PACKED_WRAP << 16 | PACKED_WRAP


class Profile(Record):
    """One layout of the LM block and of the PCI function around it. All offsets and strides in bytes.

    `lm_bar` None puts the block right behind the notify region in its BAR, else it begins at offset 0 of that
    BAR. Ring state of queue i is at `ring_state_offset + (i // 2) * pair_stride + (i % 2) * queue_stride`;
    there are `max_queues` of them, the control queue's included. `logging_on` are the values of
    LM_LOGGING_CTRL that mean on; 0 means off. With `range_after_ctrl` a driver may write a log's range behind
    the on, and logging begins with the high half of END. `pairs_register` is where the driver says how many
    queue pairs it uses. With `used_idx_from_ring` a driver may write the avail half of LM_RING_STATE alone.
    `control_queue` says that its driver counts on a control queue behind the pairs. With `page_requests` the
    function has these registers, too (`wire.page_requests`), on the page behind everything in `virtio_bar`.

    Raises OptionError if the parts don't go together.
    """

    __slots__ = ("__dict__",)  # for what is cached

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
    range_after_ctrl: bool = False
    pairs_register: int | None = None
    used_idx_from_ring: bool = False
    control_queue: bool = False
    page_requests: bool = False

    def __post_init__(self) -> None:
        self._check_ids()
        self._check_bars()
        if not self.logging_on or not all(0 < value <= LOGGING_CTRL_MASK for value in self.logging_on):
            raise self._bad("logging_on", self.logging_on, f"values from 1 to {LOGGING_CTRL_MASK}")
        if not 2 <= self.max_queues <= MAX_QUEUES:
            raise self._bad("max_queues", self.max_queues, f"2 to {MAX_QUEUES}")
        try:
            table = self.registers
        except ValueError as error:
            raise OptionError(f"profile {self.name}: {error}") from None
        if bad := [register.name for register in table if register.offset < 0 or register.offset % 4]:
            raise self._bad("offset", bad[0], "offsets that are multiples of 4")

    @property
    def bars(self) -> dict[int, int]:
        """How many BAR registers each BAR takes: the MSI-X BAR is of 32 bits, the others of 64."""
        wide = {self.virtio_bar} | ({self.lm_bar} if self.lm_bar is not None else set())
        return {self.msix_bar: 1} | dict.fromkeys(wide, 2)

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
            Register(
                ring_state_name(queue), self.ring_state(queue), 4, clause="LM_RING_STATE", fields=SPLIT_STATE
            )
            for queue in range(self.max_queues)
        )
        pairs = (
            () if self.pairs_register is None else (Register(PAIRS, self.pairs_register, 4, clause=PAIRS),)
        )
        return RegisterMap("lm", (*_CONTROL, *pairs, *ring_states))

    def _check_ids(self) -> None:
        for name in ("subsystem_vendor_id", "subsystem_id"):
            if not 0 <= getattr(self, name) <= _WORD:
                raise self._bad(name, hex(getattr(self, name)), "16 bits")

    def _check_bars(self) -> None:
        taken = [index for first, count in self.bars.items() for index in range(first, first + count)]
        named = 2 + (self.lm_bar is not None)
        if len(self.bars) < named or len(taken) != len(set(taken)):
            raise self._bad("BARs", sorted(taken), "BARs of their own; a 64-bit BAR takes the next one, too")
        if not all(0 <= index < _BAR_COUNT for index in taken):
            raise self._bad("BARs", sorted(taken), f"0 to {_BAR_COUNT - 1}")

    def _bad(self, what: str, value: object, expected: str) -> OptionError:
        return OptionError(f"profile {self.name}: {what} {value}, expected {expected}")


_WORD = 0xFFFF
_BAR_COUNT = 6
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
    page_requests=True,
)
"""The layout of the vdpa-net document: 1024 ring states of 4 bytes from 0x20 on."""

IFCVF: Final = Profile(
    name="ifcvf",
    subsystem_vendor_id=0x8086,
    subsystem_id=0x001A,
    virtio_bar=0,
    msix_bar=2,
    lm_bar=4,
    max_queues=2 * 32 + 1,
    pair_stride=0x40,
    logging_on=(1, 3),
    range_after_ctrl=True,
    pairs_register=0x28,
    control_queue=True,
)
"""The layout of Intel's IFC function as DPDK's vdpa/ifc drives it: 32 pairs and a control queue.

That driver offers (num_queues - 1) / 2 pairs, so the control queue has to be there. It writes 1 to
LM_LOGGING_CTRL for a virtual function, 3 for a physical one.
"""

IFCVF_LINUX: Final = replace(
    IFCVF,
    name="ifcvf-linux",
    pair_stride=8,
    pairs_register=None,
    used_idx_from_ring=True,
    control_queue=False,
)
"""The same function as Linux' ifcvf drives it: ring states 4 bytes apart, avail halves written alone."""

PROFILES: Final = {profile.name: profile for profile in (VDPA, IFCVF, IFCVF_LINUX)}


def profile_by_name(name: str) -> Profile:
    """A built-in profile. Raises OptionError, which lists them."""
    try:
        return PROFILES[name]
    except KeyError:
        raise OptionError(f"no profile {name!r}: there are {', '.join(PROFILES)}") from None


def profile_by_subsystem(vendor_id: int, device_id: int) -> Profile:
    """The built-in profile that a function's subsystem id tells: the first one that has it.

    Raises OptionError for ids of none.
    """
    for profile in PROFILES.values():
        if (profile.subsystem_vendor_id, profile.subsystem_id) == (vendor_id, device_id):
            return profile
    known = ", ".join(
        f"{p.subsystem_vendor_id:04x}:{p.subsystem_id:04x} ({p.name})" for p in PROFILES.values()
    )
    raise OptionError(
        f"no profile for subsystem {vendor_id:04x}:{device_id:04x}, known are {known}: name one"
    )


def pack_ring_state(last_avail_idx: int, used_idx: int) -> int:
    """LM_RING_STATE: last_avail_idx in bits 15:0, used_idx in bits 31:16.

    For a packed ring each half is in the vhost encoding: descriptor offset in bits 14:0, wrap counter in
    bit 15.
    """
    return (used_idx & 0xFFFF) << 16 | (last_avail_idx & 0xFFFF)


def unpack_ring_state(value: int) -> tuple[int, int]:
    """(last_avail_idx, used_idx) of an LM_RING_STATE."""
    return value & 0xFFFF, value >> 16 & 0xFFFF


def initial_ring_state(*, packed: bool) -> int:
    """LM_RING_STATE of a ring that was never in use (packed: both wrap counters are 1; virtio 1.3, 2.8.1)."""
    return PACKED_INITIAL if packed else 0


def is_within_packed_ring(value: int, size: int) -> bool:
    """Whether both descriptor offsets of a packed ring's LM_RING_STATE lie in a ring of `size`."""
    return all(index & PACKED_OFFSET_MASK < size for index in unpack_ring_state(value))
