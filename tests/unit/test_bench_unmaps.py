# SPDX-License-Identifier: Apache-2.0
"""Unmaps under load as the bench measures them: what counts as load, and what they are held against."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from vdpa_net.backend.loopback import Loopback
from vdpa_net.bench import unmaps
from vdpa_net.bench.case import SUBJECT
from vdpa_net.device.net_device import NetDevice
from vdpa_net.errors import LabError


class FrontEnd:
    """Moves two million frames a second."""

    def mega_frames(self, _command: str, **_options: object) -> float:
        return 2.0


def told(*lines: dict[str, object]) -> SimpleNamespace:
    """A process with a device that says so."""
    return SimpleNamespace(
        stdin=io.StringIO(), stdout=io.StringIO("".join(json.dumps(line) + "\n" for line in lines))
    )


def sample(*lines: dict[str, object]) -> dict[str, float]:
    return unmaps._sample(told(*lines), Path("a.sock"), FrontEnd())  # type: ignore[arg-type]


def counted(monkeypatch: pytest.MonkeyPatch, *frames: int) -> None:
    """What the kernel counts, look by look."""
    looks: Iterator[int] = iter(frames)
    monkeypatch.setattr(unmaps, "_frames", lambda _tap: next(looks))
    monkeypatch.setattr(unmaps, "_unmaps", lambda _device, _memory, count: [1.0] * (count - 1) + [9.0])


def test_an_unmap_under_load_is_held_against_one_at_rest_and_a_batch() -> None:
    taken = sample({"at_rest_us": 5.0}, {"median_us": 20.0, "max_us": 40.0})
    assert taken == {"median": 20.0, "longest": 40.0, unmaps.AT_REST: 5.0 + 64 / 2.0}


def test_a_sample_without_load_is_an_error() -> None:
    with pytest.raises(LabError, match="3 frames passed"):
        sample({"at_rest_us": 5.0}, {"error": "3 frames passed unmaps0, expected 10000"})


def test_only_unmaps_during_which_frames_pass_are_under_load(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    under_way = unmaps.UNDER_WAY_FRAMES
    # Before the traffic, under way, one part with frames, one without.
    counted(monkeypatch, 3, under_way, under_way, under_way + 5, under_way + 5, under_way + 5)
    taken = unmaps._under_load(None, 0, "tap", 10 * unmaps.PARTS, 0)  # type: ignore[arg-type]
    assert taken == {"median_us": 1.0, "max_us": 9.0}


def test_traffic_that_is_over_too_early_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    counted(monkeypatch, *[unmaps.UNDER_WAY_FRAMES] * 3)
    taken = unmaps._under_load(None, 0, "tap", 10 * unmaps.PARTS, 0)  # type: ignore[arg-type]
    assert taken == {"error": "the traffic through tap was over before memory was unmapped"}


def test_every_page_that_was_mapped_is_unmapped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unmaps, "PAUSE_SECONDS", (0, 0))
    memory = os.memfd_create("test")
    os.truncate(memory, unmaps.PAGE_BYTES)
    backend = Loopback()
    try:
        with NetDevice(backend, mac=unmaps.MAC) as device:
            assert len(unmaps._unmaps(device, memory, 7)) == 7
            assert device.dma_unmap_all() == 0
    finally:
        backend.close()
        os.close(memory)


def test_the_median_has_a_bound_and_the_longest_is_told() -> None:
    shared = unmaps.Shared(lambda: {"median": 1.0, "longest": 2.0, unmaps.AT_REST: 4.0})
    case = unmaps._case(shared, "median", "median", (unmaps.Goal(unmaps.AT_REST, at_most=1.0),))
    assert (case.key, case.is_paced) == ("control-unmap-median", False)
    assert {name: take() for name, take in case.contestants.items()} == {SUBJECT: 1.0, unmaps.AT_REST: 4.0}
