# SPDX-License-Identifier: Apache-2.0
"""The exceptions of the package.

    VdpaNetError
    ├── OptionError          a command line or an option string says something impossible
    ├── ProtocolError        a peer sent a message that its specification does not allow
    │   └── FramingError     ... and the stream can't be trusted any more: close the connection
    ├── PeerError            a peer answered a request of ours with an error
    │   └── PeerGone         ... or went away
    ├── AccessError          a register or memory access outside of what exists
    ├── DmaError             a DMA map, unmap or access that the DMA space refuses
    ├── StateError           an operation in a state that does not allow it
    ├── BackendError         a packet back end can't be opened or used
    └── LabError             the lab can't build, boot or run something
        └── MissingTool      ... because the machine lacks a tool; says how to get it

Every error carries what was got and what was expected in its message; `errno` is what a transport
answers its peer with.
"""

from __future__ import annotations

import errno as _errno


class VdpaNetError(Exception):
    """Root of the tree. `errno` is the number that a transport reports to its peer."""

    errno: int = _errno.EINVAL

    def __init__(self, message: str, *, errno: int | None = None) -> None:
        super().__init__(message)
        if errno is not None:
            self.errno = errno


class OptionError(VdpaNetError):
    """A command line or option string says something impossible; the message names the option."""


class ProtocolError(VdpaNetError):
    """A peer sent a message that the specification does not allow; the message names value and clause."""


class FramingError(ProtocolError):
    """The byte stream can't be followed any more; the connection has to be closed."""


class PeerError(VdpaNetError):
    """A peer answered a request with an error."""


class PeerGone(PeerError):
    """The peer closed the connection."""

    errno = _errno.ECONNRESET


class AccessError(VdpaNetError):
    """A register or memory access outside of what exists."""


class DmaError(VdpaNetError):
    """A DMA map, unmap or access that the DMA space refuses.

    `errno`: EEXIST (overlaps an existing map), ENOENT (no such map), ENOSPC (limit of maps), EINVAL
    (alignment, wrap-around, size 0), EFAULT (address not mapped, or not with the needed permission),
    or the errno of the failed mmap.
    """


class StateError(VdpaNetError):
    """An operation in a state that does not allow it."""

    errno = _errno.EBUSY


class BackendError(VdpaNetError):
    """A packet back end can't be opened or used."""

    errno = _errno.ENODEV


class LabError(VdpaNetError):
    """The lab can't build, boot or run something; the message says where the evidence lies."""


class MissingTool(LabError):
    """The machine lacks a tool; the message says how to get it."""
