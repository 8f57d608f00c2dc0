# SPDX-License-Identifier: Apache-2.0
"""The data plane that a device runs on: the extension module's, or a test's."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from vdpa_net.device.plane import closable_plane
from vdpa_net.record import Record

if TYPE_CHECKING:
    from vdpa_net import _native


class Engine(Record):
    """Makers of the data plane's objects; tests give their own."""

    space: Callable[[], _native.DmaSpace]
    plane: Callable[[_native.DmaSpace, _native.Backend, int, bool], _native.DataPlane]


def native_engine() -> Engine:
    """The data plane of the package's extension module."""
    # Not at the top: importing the device must not need the extension.
    from vdpa_net import _native  # noqa: PLC0415

    return Engine(_native.DmaSpace, closable_plane)
