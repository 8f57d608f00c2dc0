# SPDX-License-Identifier: Apache-2.0
"""How the samples of guests are taken in turns, and what their cases make of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import pytest

from vdpa_net.bench import guests
from vdpa_net.bench.guests import QEMU, VFIO_USER, VHOST_SOCKET, interface_counters, there_and_back
from vdpa_net.bench.rounds import run_case
from vdpa_net.errors import LabError


def test_a_round_goes_there_and_back_and_counts_the_mean() -> None:
    order: list[str] = []

    def take(name: str) -> dict[str, float]:
        order.append(name)
        # The pace gets worse by 1 with each sample, whoever takes it.
        return {"pace": float(len(order))}

    shared = there_and_back({name: partial(take, name) for name in "abc"})
    assert [shared.figure((name, "pace"))() for name in "abc"] == [3.5, 3.5, 3.5]
    assert order == ["a", "b", "c", "c", "b", "a"]


class Figures:
    """Stands for guests: what each has by figure, and what was asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, ...]] = []

    def _take(self, kind: str, contestant: Any, *words: str) -> dict[str, float]:
        self.asked.append((kind, contestant.name, *words))
        factor = {QEMU: 1.0, VFIO_USER: 2.0, VHOST_SOCKET: 3.0}[contestant.name]
        own = {
            "tcp": {guests.GBIT: 10.0},
            "udp": {guests.PACKETS: 20.0, guests.CPU: 30.0},
            "ping": {guests.PING: 40.0},
        }[kind]
        return {figure: factor * value * (1 + ("--reverse" in words)) for figure, value in own.items()}

    def __getattr__(self, kind: str) -> Callable[..., dict[str, float]]:
        return partial(self._take, kind)


def test_each_figure_of_a_round_is_measured_once_for_all_cases() -> None:
    up = {name: SimpleNamespace(name=name) for name in (VHOST_SOCKET, QEMU, VFIO_USER)}
    figures = Figures()
    results = {
        case.key: run_case(case, 2) for case in guests.cases(cast("Any", figures), cast("Any", up), None)
    }
    assert len(results) == 14
    for key, result in results.items():
        assert result.ratio(QEMU).median == (3.0 if key.startswith("guest-vhost") else 2.0)
    assert results["guest-vhost-tcp-out"].series[QEMU].samples == [20.0, 20.0]
    assert results["guest-vfio-user-tcp-in"].series[QEMU].samples == [10.0, 10.0]
    assert results["guest-vfio-user-cpu-out"].series[QEMU].samples == [60.0, 60.0]
    # Two rounds of five measurements, there and back, of three guests.
    assert len(figures.asked) == 2 * 5 * 2 * 3
    names = [asked[1] for asked in figures.asked]
    assert all(QEMU in names[place : place + 2] for place in range(0, len(names), 3))


def test_counters_of_an_interface_are_those_of_its_directions() -> None:
    assert set(interface_counters("lo")) == {"rx_bytes", "rx_packets", "tx_bytes", "tx_packets"}
    with pytest.raises(LabError, match="nosuch"):
        interface_counters("nosuch")
