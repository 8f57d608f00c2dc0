# SPDX-License-Identifier: Apache-2.0
"""Families of cases: what is drawn in one picture and told in one table."""

from __future__ import annotations

from collections.abc import Iterable

from vdpa_net.bench.case import CaseResult

TITLES = {
    "self": "The same twice: what a ratio of 1 looks like in this run",
    "limit": "The bare tap",
    "tap": "On a tap",
    "variant": "On a tap: packed rings, queue pairs, logging",
    "user": "On a tap, driven by DPDK's virtio_user",
    "ring": "The ring engine alone",
    "guest": "A Linux guest",
    "control": "The control path",
    "migration": "Migration",
}


def title(family: str) -> str:
    """Its title; a family that this version does not know has its name."""
    return TITLES.get(family, family)


def by_family(results: Iterable[CaseResult]) -> dict[str, list[CaseResult]]:
    """Results by family, families in the order of TITLES."""
    found: dict[str, list[CaseResult]] = {name: [] for name in TITLES}
    for result in results:
        found.setdefault(result.case.family, []).append(result)
    return {name: members for name, members in found.items() if members}
