# SPDX-License-Identifier: Apache-2.0
"""What is closed once: a base for everything that holds descriptors, threads or processes."""

from __future__ import annotations

from abc import abstractmethod
from types import TracebackType
from typing import Self


class Closing:
    """`with` calls `close` at the end, whatever happened inside."""

    @abstractmethod
    def close(self) -> None:
        """Give back what is held."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Starting(Closing):
    """`with` calls `start` first, and `close` at the end, also where the start fails half-way."""

    @abstractmethod
    def start(self) -> None:
        """Start what is described."""

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self
