# SPDX-License-Identifier: Apache-2.0
"""Faults that a device has on purpose, so that a verdict can be shown to fail for the right reason.

Each is a small immutable object with a seed: the same object under the same load does the same again. What it
does is a counted call inside of the part that it is about (docs/faults.md); `NetDevice.install_fault` puts it
there, and `NetDevice.fault_counts` says how often it fired.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import ClassVar, Self

from vdpa_net.errors import OptionError
from vdpa_net.record import Record

LATE_MS_MAX = 60_000
"""The longest time for which `late-ring-state` can make a register late."""

LOG_PAGE_BYTES = 4096
"""The page of the log that `log-end` counts: its bits stand for 128 MiB of guest memory."""

_DUPLICATE_WINDOW = 64
_RING_STATE = re.compile(r"vq(\d{1,4}):([+-]\d{1,9})", re.ASCII)
_QUEUE = re.compile(r"vq(\d{1,4})", re.ASCII)
_QUEUE_AND_COUNT = re.compile(r"vq(\d{1,4})(?::(\d{1,9}))?", re.ASCII)
_LOG_PAGES = re.compile(r"-(\d{1,9})pages?", re.ASCII)
_MILLISECONDS = re.compile(r"\d{1,9}", re.ASCII)


class Side(Enum):
    """The device of a migration at which a fault shows: where it has to be installed."""

    SOURCE = "source"
    DESTINATION = "destination"


class Fault(Record, kw_only=True):
    """One fault. `name` and `syntax` are those of the command line."""

    name: ClassVar[str]
    syntax: ClassVar[str]
    side: ClassVar[Side] = Side.SOURCE

    seed: int = 0

    @classmethod
    def parse(cls, value: str, seed: int) -> Self:
        """The fault from what stands behind `name=` (empty: nothing). Raises OptionError."""
        if value:
            raise OptionError(f"{cls.name} takes no value, got {value!r}")
        return cls(seed=seed)

    @property
    def value(self) -> str:
        """What stands behind `name=` on the command line; empty where nothing does."""
        return ""

    @property
    def at_queue(self) -> int | None:
        """The queue that it is about; None: none in particular."""
        return None

    def __str__(self) -> str:
        return f"{self.name}={self.value}" if self.value else self.name


class PlaneFault(Fault):
    """A fault of the data plane."""

    @property
    def parameter(self) -> float:
        """What `DataPlane.install_fault` takes as `value`; 0 where there is nothing to choose."""
        return 0


class DropDirtyMark(PlaneFault):
    """Never marks this share (0 to 1) of the pages in the dirty log; the seed decides which ones.

    A guest's own writes may save such a page all the same: Linux' virtio_net puts its shared info into the
    page of each packet it receives. The dirty audit sees the missing marks either way.
    """

    name = "drop-dirty-mark"
    syntax = "drop-dirty-mark=RATE"
    rate: float

    def __post_init__(self) -> None:
        if not 0.0 < self.rate <= 1.0:
            raise OptionError(f"{self.name} takes a share above 0 and up to 1, got {self.rate}")

    @classmethod
    def parse(cls, value: str, seed: int) -> Self:
        try:
            rate = float(value)
        except ValueError:
            raise OptionError(f"{cls.name} takes a share like 0.2, got {value!r}") from None
        return cls(rate, seed=seed)

    @property
    def value(self) -> str:
        return f"{self.rate:g}"

    @property
    def parameter(self) -> float:
        return self.rate


class SkipUsedRingMark(PlaneFault):
    """Marks buffers, but nothing that the device writes to the rings themselves: used elements and indices,
    descriptor flags, events. Where packet data lies in the same page, that page is marked all the same."""

    name = "skip-used-ring-mark"
    syntax = "skip-used-ring-mark"


class LogBitOrder(PlaneFault):
    """Sets the bits of the dirty log most significant bit first in each byte."""

    name = "log-bit-order"
    syntax = "log-bit-order"


class LogEnd(PlaneFault):
    """Takes the dirty log to be this many pages (of 4096 bytes of log) shorter than it is, and drops the
    marks behind that end without a word."""

    name = "log-end"
    syntax = "log-end=-Npage"
    pages: int

    def __post_init__(self) -> None:
        if self.pages < 1:
            raise OptionError(f"{self.name} takes at least 1 page off, got {self.pages}")

    @classmethod
    def parse(cls, value: str, seed: int) -> Self:
        match = _LOG_PAGES.fullmatch(value)
        if match is None:
            raise OptionError(f"{cls.name} takes a number of pages to take off like -1page, got {value!r}")
        return cls(int(match[1]), seed=seed)

    @property
    def value(self) -> str:
        return f"-{self.pages}page{'s' if self.pages > 1 else ''}"

    @property
    def parameter(self) -> float:
        return self.pages * LOG_PAGE_BYTES


class DuplicateUsed(PlaneFault):
    """Writes one used element of this queue twice, so that used_idx runs one ahead of last_avail_idx. It is
    one of the first 64 elements after the start of logging; the seed decides which."""

    name = "duplicate-used"
    syntax = "duplicate-used[=vqN]"
    queue: int = 1

    @classmethod
    def parse(cls, value: str, seed: int) -> Self:
        if not value:
            return cls(seed=seed)
        match = _QUEUE.fullmatch(value)
        if match is None:
            raise OptionError(f"{cls.name} takes nothing or vqN, got {value!r}")
        return cls(int(match[1]), seed=seed)

    @property
    def value(self) -> str:
        return "" if self.queue == 1 else f"vq{self.queue}"

    @property
    def at_queue(self) -> int | None:
        return self.queue

    @property
    def parameter(self) -> float:
        # Which element is written twice, counted from 1.
        return _chosen(self.seed, _DUPLICATE_WINDOW)


class _LostSignal(PlaneFault):
    """Signals of this queue that are lost after a restored start, and how many."""

    side = Side.DESTINATION
    queue: int
    count: int = 1

    def __post_init__(self) -> None:
        if self.count < 1:
            raise OptionError(f"{self.name} takes a count above 0, got {self.count}")

    @classmethod
    def parse(cls, value: str, seed: int) -> Self:
        if not value:
            return cls(seed=seed)  # type: ignore[call-arg]  # the subclasses have a queue by default
        match = _QUEUE_AND_COUNT.fullmatch(value)
        if match is None:
            raise OptionError(f"{cls.name} takes nothing, vqN or vqN:COUNT, got {value!r}")
        return cls(queue=int(match[1]), count=int(match[2] or 1), seed=seed)

    @property
    def value(self) -> str:
        if self == type(self).parse("", self.seed):
            return ""
        return f"vq{self.queue}" + (f":{self.count}" if self.count > 1 else "")

    @property
    def at_queue(self) -> int | None:
        return self.queue

    @property
    def parameter(self) -> float:
        return self.count


class LostKick(_LostSignal):
    """After a restored start the queue is not scanned, and the first `count` kicks are lost: nobody looks at
    the ring before a later one comes. With EVENT_IDX none does, because the driver waits for an answer."""

    name = "lost-kick"
    syntax = "lost-kick[=vqN[:COUNT]]"
    queue: int = 1


class LostIrq(_LostSignal):
    """After a restored start the interrupt that the start owes and the next `count` that are due are lost."""

    name = "lost-irq"
    syntax = "lost-irq[=vqN[:COUNT]]"
    queue: int = 0


class RingState(Fault):
    """LM_RING_STATE of this queue reads last_avail_idx + `delta` after a stop."""

    name = "ring-state"
    syntax = "ring-state=vqN:+K"
    queue: int
    delta: int

    def __post_init__(self) -> None:
        if not self.delta % 0x10000:
            raise OptionError(f"{self.name} takes a delta that changes a 16-bit index, got {self.delta:+d}")

    @classmethod
    def parse(cls, value: str, seed: int) -> Self:
        match = _RING_STATE.fullmatch(value)
        if match is None:
            raise OptionError(f"{cls.name} takes vqN:+K or vqN:-K, got {value!r}")
        return cls(int(match[1]), int(match[2]), seed=seed)

    @property
    def value(self) -> str:
        return f"vq{self.queue}:{self.delta:+d}"

    @property
    def at_queue(self) -> int | None:
        return self.queue


class LateRingState(Fault):
    """queue_enable reads 0 before the ring state is final: for `ms` milliseconds after a stop, LM_RING_STATE
    of every queue reads as it was some entries before (1 to 8; the seed decides). DPDK's ifc driver met
    hardware like that (its commit 518a27ef6b)."""

    name = "late-ring-state"
    syntax = "late-ring-state=MS"
    ms: int

    def __post_init__(self) -> None:
        if not 1 <= self.ms <= LATE_MS_MAX:
            raise OptionError(f"{self.name} takes 1 to {LATE_MS_MAX} milliseconds, got {self.ms}")

    @classmethod
    def parse(cls, value: str, seed: int) -> Self:
        if not _MILLISECONDS.fullmatch(value):
            raise OptionError(f"{cls.name} takes a whole number of milliseconds, got {value!r}")
        return cls(int(value), seed=seed)

    @property
    def value(self) -> str:
        return str(self.ms)

    @property
    def entries(self) -> int:
        """How many entries the register lags behind."""
        return _chosen(self.seed, 8)


class NoAnnounce(Fault):
    """The device never announces a station, neither after a restored start nor when asked to (SEND_RARP)."""

    name = "no-announce"
    syntax = "no-announce"
    side = Side.DESTINATION


def _chosen(seed: int, among: int) -> int:
    """A number from 1 to `among` that the seed decides."""
    # Not at the top: a device without faults has to listen soon after the start.
    from random import Random  # noqa: PLC0415

    return Random(seed).randint(1, among)


FAULTS: tuple[type[Fault], ...] = (
    DropDirtyMark,
    SkipUsedRingMark,
    LogBitOrder,
    LogEnd,
    RingState,
    LateRingState,
    DuplicateUsed,
    LostKick,
    LostIrq,
    NoAnnounce,
)
"""Every fault that there is."""

SYNTAX = ", ".join(fault.syntax for fault in FAULTS)
"""Their command-line forms, for people."""

_BY_NAME = {fault.name: fault for fault in FAULTS}


def parse_fault(text: str, *, seed: int = 0) -> Fault:
    """A fault from its command-line form, `drop-dirty-mark=0.2` for one. Raises OptionError."""
    name, equals, value = text.partition("=")
    kind = _BY_NAME.get(name)
    if kind is None:
        raise OptionError(f"no fault {name!r}: there is {SYNTAX}")
    if equals and not value:
        raise OptionError(f"{text}: a value is missing; expected {kind.syntax}")
    return kind.parse(value, seed)
