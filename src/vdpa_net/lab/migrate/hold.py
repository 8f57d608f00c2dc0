# SPDX-License-Identifier: Apache-2.0
"""What holds a migration from outside of QEMU."""

from __future__ import annotations

from typing import Protocol


class Wire(Protocol):
    """A way between two QEMUs that carries a migration as far as it is told (`lab.nested.wire`)."""

    def hold_after(self, size_bytes: int) -> None:
        """Carry so much in all, then wait."""

    def wait_held(self, timeout_s: float) -> bool:
        """Whether it holds, at the latest after so long."""

    def go_on(self) -> None:
        """Hold no more."""
