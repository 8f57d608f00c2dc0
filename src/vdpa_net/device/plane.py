# SPDX-License-Identifier: Apache-2.0
"""A data plane that gives back all it holds when it is closed, however many still know it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from vdpa_net.errors import StateError

if TYPE_CHECKING:
    from vdpa_net import _native


def closable_plane(
    space: _native.DmaSpace, backend: _native.Backend, queue_pairs: int, control_queue: bool
) -> _native.DataPlane:
    """A data plane of the extension module. After `close` it tells what a report asks for, and nothing else.

    The parts of a device know each other, so that a device that is not used any more stays until the garbage
    collector comes by; its descriptors, 5 for each queue pair, must not. So nobody keeps a method of it.
    """
    from vdpa_net import _native  # noqa: PLC0415

    plane = _native.DataPlane(space, backend, queue_pairs, control_queue)
    return cast("_native.DataPlane", _Closable(plane, 2 * queue_pairs + control_queue))


class _Closable:
    def __init__(self, plane: _native.DataPlane, queues: int) -> None:
        self._plane: _native.DataPlane | _Closed = plane
        self._queues = queues

    def __getattr__(self, name: str) -> Any:
        return getattr(self._plane, name)

    def close(self) -> None:
        plane = self._plane
        plane.close()
        if not isinstance(plane, _Closed):
            self._plane = _Closed(plane, self._queues)


class _Closed:
    """What is left to tell. Setting something, as a client may that leaves late, changes nothing."""

    def __init__(self, plane: _native.DataPlane, queues: int) -> None:
        self._counters = [plane.queue_counters(queue) for queue in range(queues)]
        self._faults = plane.fault_counts()
        self._violations = plane.take_violations()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("set_"):
            return _change_nothing
        raise StateError(f"{name}: the data plane is closed")

    def queue_counters(self, index: int) -> dict[str, int]:
        return self._counters[index]

    def fault_counts(self) -> dict[tuple[str, int], int]:
        return self._faults

    def is_running(self, index: int) -> bool:  # noqa: ARG002
        return False

    def take_violations(self) -> list[_native.Violation]:
        taken, self._violations = self._violations, []
        return taken

    def take_broken_queues(self) -> list[int]:
        return []

    def close(self) -> None:
        return


def _change_nothing(*_arguments: object) -> None:
    """What a setter of a closed data plane does."""
