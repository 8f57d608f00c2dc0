# SPDX-License-Identifier: Apache-2.0
"""Whether the queues of a migration's source are busy when the migration is released."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from types import SimpleNamespace
from typing import Any, cast

from vdpa_net.lab.migrate.pace import Pace
from vdpa_net.lab.migrate.queue_watch import QueueWatch
from vdpa_net.lab.migrate.topology import HostedGuest

WINDOW_S = 0.05


def watch(indices: Callable[[], tuple[int, int]]) -> QueueWatch:
    """On a device whose two queues stand at these used indices, look by look."""

    def device(method: str) -> dict[str, Any]:
        assert method == "inspect"
        return {"features": [], "queues": [{"used_idx": index} for index in indices()]}

    source = SimpleNamespace(side=SimpleNamespace(device=device))
    return QueueWatch(cast("HostedGuest", source), 1, Pace(sample_s=0.001))


def test_release_waits_for_a_window_in_which_every_queue_moves() -> None:
    looks = 0

    def indices() -> tuple[int, int]:
        nonlocal looks
        looks += 1
        # The transmit queue stands still for longer than the first window.
        return looks, looks if looks > 100 else 0

    assert watch(indices).note_while_busy(WINDOW_S, 30, expects_packed=False)
    assert looks > 100


def test_queue_that_stands_still_is_told() -> None:
    numbers = count()
    still = watch(lambda: (next(numbers), 7))
    assert not still.note_while_busy(WINDOW_S, 3 * WINDOW_S, expects_packed=False)
