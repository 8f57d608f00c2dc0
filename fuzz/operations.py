# SPDX-License-Identifier: Apache-2.0
"""From bytes to operations and back. A list that ends early is a shorter list: every input is a valid one."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

MAX_OPERATIONS = 256


class InputEnd(Exception):
    """There are no more bytes."""


class Input:
    """The bytes that are left."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, format_: str) -> tuple[int, ...]:
        """Little-endian numbers, as struct has them. Raises InputEnd."""
        size = struct.calcsize("<" + format_)
        return struct.unpack("<" + format_, self.blob(size))

    def blob(self, size: int) -> bytes:
        """Exactly this many bytes. Raises InputEnd."""
        end = self._at + size
        if end > len(self._data):
            raise InputEnd
        piece = self._data[self._at : end]
        self._at = end
        return piece


@dataclass(frozen=True)
class Operation:
    """One kind of step: numbers in this struct format; with `blob` the last is the length of bytes behind."""

    name: str
    format: str = ""
    blob: bool = False

    def read(self, source: Input) -> tuple[int | bytes, ...]:
        """Its arguments. Raises InputEnd."""
        numbers = source.take(self.format)
        return (*numbers[:-1], source.blob(numbers[-1])) if self.blob else numbers

    def write(self, arguments: Sequence[int | bytes]) -> bytes:
        """The bytes that `read` takes."""
        if not self.blob:
            return struct.pack("<" + self.format, *arguments)
        *numbers, data = arguments
        assert isinstance(data, bytes)
        return struct.pack("<" + self.format, *numbers, len(data)) + data


class Language:
    """The operations of a target; the first byte of each says which it is."""

    def __init__(self, *operations: Operation) -> None:
        self._operations = operations
        self._codes = {operation.name: code for code, operation in enumerate(operations)}

    def read(self, source: Input) -> Iterator[tuple[str, tuple[int | bytes, ...]]]:
        """Name and arguments of each operation, up to the end of the input."""
        for _ in range(MAX_OPERATIONS):
            try:
                (code,) = source.take("B")
                operation = self._operations[code % len(self._operations)]
                arguments = operation.read(source)
            except InputEnd:
                return
            yield operation.name, arguments

    def write(self, steps: Iterable[tuple[str, Sequence[int | bytes]]]) -> bytes:
        """The input that `read` makes these steps of."""
        pieces = []
        for name, arguments in steps:
            code = self._codes[name]
            pieces += [bytes([code]), self._operations[code].write(arguments)]
        return b"".join(pieces)


def perform(
    language: Language, handlers: Mapping[str, Callable[..., None]], source: Input, check: Callable[[], None]
) -> None:
    """Run the operations of an input, with a check after each one."""
    for name, arguments in language.read(source):
        handlers[name](*arguments)
        check()
