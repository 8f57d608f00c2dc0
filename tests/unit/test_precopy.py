# SPDX-License-Identifier: Apache-2.0
"""What counts as written anew while a migration is held in pre-copy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from vdpa_net.lab.migrate.live import LiveFigures
from vdpa_net.lab.migrate.pace import FLAT
from vdpa_net.lab.migrate.precopy import Load, Precopy, PrecopyOptions
from vdpa_net.lab.migrate.topology import HostedGuest
from vdpa_net.lab.nested.level2_ram import Level2Ram
from vdpa_net.lab.ram import GuestRam, Ram
from vdpa_net.lab.traffic.endpoint import TrafficEndpoint
from vdpa_net.migration.checks import PAGE_BYTES

PIECE = 4 * PAGE_BYTES
PACE = replace(FLAT, load_s=0.05, sample_s=0.01)


@pytest.fixture
def ram() -> Iterator[Level2Ram]:
    with GuestRam("host", 8 * PIECE) as host:
        yield Level2Ram(host, Path("x"), PIECE, [7 * PIECE, 5 * PIECE])


def pages_counted(ram: Ram, written: set[int], sent_pages: int | None, *, audits_by_file: bool) -> int:
    """What is counted of a device that writes these pages, by the numbers of its audit, in the hold."""

    def device(method: str, *, within: list[tuple[int, int]] | None = None, anew: bool = False) -> int:
        assert method == "audit_end_interval"
        return 0 if anew else sum(within is None or any(a <= page < b for a, b in within) for page in written)

    def no_account(_command: str) -> dict[str, Any]:
        return {}

    session = SimpleNamespace(events=lambda _start: [])
    source = SimpleNamespace(
        side=SimpleNamespace(is_watched=True, device=device),
        machine=SimpleNamespace(qmp=no_account, session=session),
        ram=ram,
    )
    options = PrecopyOptions(64, one_pass=False, pace=PACE, audits_by_file=audits_by_file)
    endpoint = cast(TrafficEndpoint, None)
    precopy = Precopy(cast(HostedGuest, source), options, endpoint, lambda _what, _share: None, LiveFigures())
    load = Load(sent_pages=sent_pages)
    precopy.wait_for_load(load)
    return load.pages


def test_pages_count_below_the_point_that_the_pass_has_reached(ram: Level2Ram) -> None:
    assert pages_counted(ram, {0, 4, 5, 6}, 5, audits_by_file=False) == 2
    assert pages_counted(ram, {0, 4, 5, 6}, None, audits_by_file=False) == 4


def test_behind_an_iommu_pages_count_where_the_guests_ram_lies_in_its_file(ram: Level2Ram) -> None:
    # The guest's pages 0 and 3 lie at 28 and 31, page 4, the last that was sent, at 20, and page 5 at 21.
    assert pages_counted(ram, {0, 3, 20, 21, 28, 31}, 5, audits_by_file=True) == 3
