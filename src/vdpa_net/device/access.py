# SPDX-License-Identifier: Apache-2.0
"""Register accesses as hooks see them: which registers an access covers, with which values.

A hook is `hook(access) -> None | int | bytes | DROP`. It runs in the thread that accesses, with the device's
lock held, so it must not wait; the device may be used from it. On a write it is asked before the device acts,
on a read after. What it returns takes the place of the data (an int: little-endian, of the same width), and
`DROP` lets a write go nowhere. What it raises is the answer to the access.

Doorbells that a client signals by their eventfd are no accesses: no hook sees them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import Enum
from functools import cached_property
from typing import Final, Literal

from vdpa_net.errors import AccessError
from vdpa_net.record import Record
from vdpa_net.wire.layout import Register


class Drop(Enum):
    """The type of DROP."""

    DROP = "drop"


DROP: Final = Drop.DROP
"""Returned by a hook: this write does not happen."""


class Place(Record):
    """A register where an access finds it: `offset` in bytes from its first byte, or negative."""

    block: str
    register: Register
    offset: int


class RegisterValue(Record):
    """What an access says of one register.

    `whole` is False if it covers a part of it; `value` then is that part, in its place.
    """

    block: str
    register: Register
    value: int
    whole: bool

    @property
    def name(self) -> str:
        """`common_cfg.device_status`, `config.msix.message_control`, `lm.LM_RING_STATE[0]`."""
        return f"{self.block}.{self.register.name}"


class Access(Record):
    """One access of a driver or VMM: `data` is what is written, or what was read."""

    __slots__ = ("__dict__",)  # for what is cached

    region: int
    offset: int
    data: bytes
    write: bool
    places: tuple[Place, ...]

    @property
    def value(self) -> int:
        """The data as a little-endian number."""
        return int.from_bytes(self.data, "little")

    @cached_property
    def registers(self) -> tuple[RegisterValue, ...]:
        """The registers that the access covers, in the order of their offsets."""
        return tuple(self._value_of(place) for place in self.places)

    @property
    def name(self) -> str:
        """Name of the register, if the access covers exactly one; else empty."""
        return self.registers[0].name if len(self.places) == 1 else ""

    def _value_of(self, place: Place) -> RegisterValue:
        width = place.register.width
        shift = 8 * place.offset
        shifted = self.value >> shift if shift >= 0 else self.value << -shift
        whole = place.offset >= 0 and place.offset + width <= len(self.data)
        return RegisterValue(place.block, place.register, shifted & ((1 << 8 * width) - 1), whole)


Answer = None | int | bytes | Literal[Drop.DROP]
AccessHook = Callable[[Access], Answer]
Locate = Callable[[int, int, int], Iterator[Place]]
"""(region, offset, count) -> the registers there."""


class AccessHooks:
    """The hooks of a device, asked in the order of their coming; each sees what the one before made."""

    def __init__(self, locate: Locate) -> None:
        self._locate = locate
        self._hooks: tuple[AccessHook, ...] = ()
        self._told: tuple[Callable[[bool], None], ...] = ()

    def on_change(self, tell: Callable[[bool], None]) -> Callable[[], None]:
        """Tell now, and from now on, whether there are hooks; the returned function ends it."""
        self._told = (*self._told, tell)
        tell(bool(self))
        return lambda: self._forget(tell)

    def add(self, hook: AccessHook) -> Callable[[], None]:
        """Add a hook; the returned function takes it away again."""
        self._change((*self._hooks, hook))
        return lambda: self._remove(hook)

    def __bool__(self) -> bool:
        return bool(self._hooks)

    def filter(self, region: int, offset: int, data: bytes, *, write: bool) -> bytes | None:
        """The data as the hooks want it; None: a write that is dropped.

        Raises AccessError for an answer that is none, and what a hook raises.
        """
        places = tuple(self._locate(region, offset, len(data)))
        for hook in self._hooks:
            answer = hook(Access(region, offset, data, write, places))
            if answer is DROP and write:
                return None
            data = _replaced(data, answer)
        return data

    def _remove(self, hook: AccessHook) -> None:
        self._change(tuple(other for other in self._hooks if other is not hook))

    def _change(self, hooks: tuple[AccessHook, ...]) -> None:
        self._hooks = hooks
        for tell in self._told:
            tell(bool(hooks))

    def _forget(self, tell: Callable[[bool], None]) -> None:
        self._told = tuple(other for other in self._told if other is not tell)


def _replaced(data: bytes, answer: Answer) -> bytes:
    if answer is None:
        return data
    if isinstance(answer, int):
        try:
            return answer.to_bytes(len(data), "little")
        except OverflowError as error:
            raise AccessError(f"a register hook returned {answer:#x} for {len(data)} bytes") from error
    if not isinstance(answer, bytes) or len(answer) != len(data):
        raise AccessError(f"a register hook returned {answer!r}: expected {len(data)} bytes, an int or None")
    return answer
