# SPDX-License-Identifier: Apache-2.0
"""Faults that the device has on purpose, so that a verdict can be shown to fail for the right reason."""

from __future__ import annotations

import re
from dataclasses import dataclass

from vdpa_net.errors import OptionError

_RING_STATE = re.compile(r"vq(\d+):([+-]\d+)", re.ASCII)


@dataclass(frozen=True, slots=True)
class DropDirtyMark:
    """Never marks this share (0 to 1) of the pages in the dirty log; the seed decides which ones.

    A guest's own writes may save such a page all the same: Linux' virtio_net puts its shared info into the
    page of each packet it receives. The dirty audit sees the missing marks either way.
    """

    rate: float
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0.0 < self.rate <= 1.0:
            raise OptionError(f"drop-dirty-mark takes a share above 0 and up to 1, got {self.rate}")

    def __str__(self) -> str:
        return f"drop-dirty-mark={self.rate:g}"


@dataclass(frozen=True, slots=True)
class RingState:
    """LM_RING_STATE of this queue reads last_avail_idx + `delta` after a stop."""

    queue: int
    delta: int

    def __post_init__(self) -> None:
        if not self.delta % 0x10000:
            raise OptionError(f"ring-state takes a delta that changes a 16-bit index, got {self.delta:+d}")

    def __str__(self) -> str:
        return f"ring-state=vq{self.queue}:{self.delta:+d}"


Fault = DropDirtyMark | RingState


def parse_fault(text: str, *, seed: int = 0) -> Fault:
    """A fault from its command-line form: `drop-dirty-mark=0.2`, `ring-state=vq1:+3`. Raises OptionError."""
    name, _, value = text.partition("=")
    if name == "drop-dirty-mark":
        return DropDirtyMark(_share(value), seed)
    if name == "ring-state":
        match = _RING_STATE.fullmatch(value)
        if match is None:
            raise OptionError(f"ring-state takes vqN:+K or vqN:-K, got {value!r}")
        return RingState(int(match[1]), int(match[2]))
    raise OptionError(f"no fault {name!r}: there is drop-dirty-mark=RATE and ring-state=vqN:+K")


def _share(value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise OptionError(f"drop-dirty-mark takes a share like 0.2, got {value!r}") from None
