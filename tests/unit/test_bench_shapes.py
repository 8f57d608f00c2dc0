# SPDX-License-Identifier: Apache-2.0
"""Tables of the bench's cases on a tap, and what it says where a peer is missing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from vdpa_net.bench import native
from vdpa_net.bench.case import SUBJECT, Case
from vdpa_net.bench.contestants import Dpdk
from vdpa_net.bench.families import TITLES
from vdpa_net.bench.native import DEVICE_CPU, FRONT_END_CPU, Peers
from vdpa_net.bench.shapes import BOTH, DIRECTIONS, GSO_BYTES, RX, SMALL, TX, Shape, shapes
from vdpa_net.bench.tap_limits import (
    READ,
    READ_COMPANY,
    READ_RING,
    READ_WRITE,
    WRITE,
    WRITE_COMPANY,
    WRITE_RING,
    Bare,
)
from vdpa_net.bench.taps import DPDK, DPDK_LONG, LOGGING_OFF, ONE_PAIR, OnTap, Taps
from vdpa_net.bench.testpmd import Testpmd
from vdpa_net.bench.virtio_user import user_shapes
from vdpa_net.bench.waiting import Waits
from vdpa_net.errors import LabError, MissingTool
from vdpa_net.lab.image import Image


class Told(Peers):
    """Native ends that only remember what they were asked for."""

    def __init__(self) -> None:
        self.seconds = 0.1
        self.waits = Waits()
        self.asked: list[tuple[str, dict[str, object]]] = []
        self.companies = 0
        self.cpus: list[int] = []

    def sample(self, command: str, cpu: int = FRONT_END_CPU, /, **options: object) -> dict[str, object]:
        self.asked.append((command, options))
        self.cpus.append(cpu)
        return {"frames_per_s": 2e6}

    @contextmanager
    def company(self) -> Iterator[None]:
        self.companies += 1
        yield
        self.companies -= 1


class Somebody:
    """A contestant that is always there."""

    pid = 1 << 22
    """No process has it."""

    is_lossy = False

    def turn(self) -> Somebody:
        return self

    def __enter__(self) -> Path:
        return Path("a.sock")

    def __exit__(self, *_: object) -> None:
        pass


@pytest.fixture
def taps() -> Taps:
    told = Told()
    contestants = [OnTap(Somebody(), f"tap{number}") for number in range(4)]  # type: ignore[arg-type]
    return Taps(told, Bare(told), *contestants)


def cases(taps: Taps, *, quick: bool = False) -> dict[str, Case]:
    return {case.key: case for case in taps.cases(quick=quick)}


@pytest.mark.parametrize("quick", [True, False])
def test_every_case_has_a_key_of_its_own_and_a_known_family(quick: bool) -> None:
    made = [*shapes(quick=quick), *user_shapes(quick=quick)]
    assert {shape.family for shape in made} <= TITLES.keys()
    for table in (shapes(quick=quick), user_shapes(quick=quick)):
        counted = Counter(shape.key for shape in table)
        assert max(counted.values()) == 1


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_each_direction_has_all_sizes_both_rings_two_pairs_and_logging(direction: str) -> None:
    made = [shape for shape in shapes(quick=False) if shape.direction == direction]
    assert {shape.size_bytes for shape in made if shape.family == "tap"} == {64, 512, 1500, GSO_BYTES}
    assert rings(made) == {
        (False, 1, False),
        (True, 1, False),
        (False, 2, False),
        (True, 2, False),
        (False, 1, True),
        (True, 1, True),
    }


def test_a_quick_run_has_each_kind_of_ring_and_each_direction() -> None:
    made = list(shapes(quick=True))
    assert rings(made) == {(False, 1, False), (True, 1, False), (False, 2, False), (False, 1, True)}
    for direction, sizes in ((TX, {64, 1500, GSO_BYTES}), (RX, {64, 1500, GSO_BYTES}), (BOTH, {64})):
        plain = [shape for shape in made if shape.family == "tap" and shape.direction == direction]
        assert {shape.size_bytes for shape in plain} == sizes
    user = list(user_shapes(quick=True))
    assert {shape.direction for shape in user} == set(DIRECTIONS)
    assert {(shape.packed, shape.pairs) for shape in user} == {(False, 1), (True, 1), (False, 2)}


def rings(made: list[Shape]) -> set[tuple[bool, int, bool]]:
    return {(shape.packed, shape.pairs, shape.logging) for shape in made}


def test_a_full_run_has_every_case_of_a_quick_one() -> None:
    assert set(shapes(quick=True)) < set(shapes(quick=False))
    assert set(user_shapes(quick=True)) < set(user_shapes(quick=False))


def test_a_shape_is_told_by_key_and_title() -> None:
    shape = Shape(RX, 64, packed=True, pairs=2, logging=True)
    assert (shape.key, shape.title) == (
        "variant-rx-64-packed-pairs-log",
        "receive, 64 B, packed, 2 queue pairs, logging",
    )
    assert Shape(TX, GSO_BYTES).key == "tap-tx-gso"


def test_segments_are_told_in_gigabits_of_what_was_sent() -> None:
    assert Shape(TX, GSO_BYTES).value(0.1) == pytest.approx(52)
    assert Shape(TX, GSO_BYTES).value(1.0, 1500) == pytest.approx(12)
    assert Shape(TX, 64).value(1.0) == 1.0


def test_each_case_has_dpdk_and_the_limit_of_its_direction(taps: Taps) -> None:
    made = cases(taps)
    for direction, limit in ((TX, WRITE), (RX, READ), (BOTH, READ_WRITE)):
        assert {SUBJECT, limit, DPDK} <= set(made[f"tap-{direction}-64"].contestants)
        assert {SUBJECT, limit, DPDK_LONG} <= set(made[f"tap-{direction}-gso"].contestants)
    # A ring's worth of buffers is shown beside the loop that the goal is about.
    for direction, loop in ((TX, WRITE_RING), (RX, READ_RING)):
        for size in ("64", "512", "1500", "gso"):
            assert loop in made[f"tap-{direction}-{size}"].contestants
            assert loop not in made[f"variant-{direction}-64-packed"].contestants
    assert [goal.versus for goal in made["tap-tx-64"].goals] == [DPDK, WRITE]
    # The smallest frames also beside loops that have a processor that polls, as a device has one.
    assert {key for key, case in made.items() if {WRITE_COMPANY, READ_COMPANY} & set(case.contestants)} == {
        "self-company-write",
        "self-company-read",
        "tap-tx-64",
        "tap-rx-64",
    }
    assert [str(goal) for goal in made["tap-rx-64"].goals] == [f">= 1 of {DPDK}", f">= 0.95 of {READ}"]
    assert {goal.versus for goal in made["variant-rx-64-log"].goals} == {LOGGING_OFF}
    assert {goal.versus for goal in made["variant-tx-64-pairs"].goals} == {ONE_PAIR, DPDK}


def test_contestants_of_a_case_get_the_same_work(taps: Taps) -> None:
    """Ring, direction, frames and size are alike; only who does it differs."""
    told = taps.peers
    assert isinstance(told, Told)
    for case in cases(taps, quick=True).values():
        if case.family == "self":
            continue
        told.asked.clear()
        for name, take in case.contestants.items():
            if name not in (ONE_PAIR, LOGGING_OFF, DPDK_LONG):
                assert take() > 0
        driven = [options for command, options in told.asked if command == "front-end"]
        work = [
            tuple(options.get(name) for name in ("direction", "ring", "bytes", "pairs", "frames", "gentle"))
            for options in driven
        ]
        assert len(set(work)) == 1, case.key
        bare = [options for command, options in told.asked if command != "front-end"]
        assert {options["bytes"] for options in bare} <= {driven[0]["bytes"]}, case.key


def test_a_device_stands_still_while_its_tap_is_filled(taps: Taps) -> None:
    told = taps.peers
    assert isinstance(told, Told)
    cases(taps)["tap-rx-64"].contestants[SUBJECT]()
    _, options = told.asked[-1]
    assert (options["burst"], options["pid"], options["lossy"]) == ("tap0", Somebody.pid, False)
    cases(taps)["tap-tx-64"].contestants[SUBJECT]()
    assert "pid" not in told.asked[-1][1]


def test_missing_native_ends_are_an_error_that_says_how_they_are_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv(native.VARIABLE, raising=False)
    monkeypatch.setattr(native, "__file__", str(tmp_path / "a/b/c/d/native.py"))
    with pytest.raises(
        MissingTool, match=r"`make bench` in a checkout builds it, or set VDPA_NET_BENCH_PEERS"
    ):
        Peers(0.1)


def test_a_machine_with_one_processor_is_told_that_it_takes_two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native.os, "sched_getaffinity", lambda _pid: {0, 5})
    with pytest.raises(LabError, match=r"may not use 1; .*\[0, 5\] now"):
        native.require_processors()


def test_a_missing_testpmd_is_an_error_that_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(MissingTool, match="no testpmd: run `vdpa-net lab build`"):
        Dpdk("peer", "net_null0", Image(tmp_path, "6.12"), tmp_path)


def test_a_missing_driver_of_dpdk_is_named(tmp_path: Path) -> None:
    program = tmp_path / "usr/bin/dpdk-testpmd"
    program.parent.mkdir(parents=True)
    program.touch()
    with pytest.raises(MissingTool, match="no DPDK driver bus_vdev: run `vdpa-net lab build`"):
        Testpmd("peer", Image(tmp_path, "6.12"), tmp_path, drivers=(), lcores="0", eal=(), app=())


def test_a_testpmd_that_ends_at_once_is_an_error_with_its_last_words(tmp_path: Path) -> None:
    for path, text in (
        ("usr/bin/dpdk-testpmd", ""),
        ("lib64/ld-linux-x86-64.so.2", "#!/bin/sh\necho no memory for me\n"),
        ("lib/ld-linux-aarch64.so.1", "#!/bin/sh\necho no memory for me\n"),
        *((f"usr/lib/x/dpdk/pmds-25/librte_{name}.so.25", "") for name in ("bus_vdev", "mempool_ring")),
    ):
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        file.chmod(0o755)
    with pytest.raises(LabError, match=r"(?s)testpmd did not start.*no memory for me"):
        Testpmd("peer", Image(tmp_path, "6.12"), tmp_path, drivers=(), lcores="0", eal=(), app=())


def test_the_bare_loop_runs_where_the_device_does() -> None:
    peers = Told()
    Bare(peers).write(Shape(TX, SMALL))
    assert peers.cpus == [DEVICE_CPU]


def test_a_loop_in_company_has_it_while_it_is_measured() -> None:
    peers = Told()
    during: list[int] = []
    bare = Bare(peers)
    assert bare.in_company(lambda: during.append(peers.companies) or 7.0) == 7.0
    assert (during, peers.companies) == ([1], 0)
