# SPDX-License-Identifier: Apache-2.0
"""docs/violations.md: complete, and true of the real device, kind by kind."""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from spec.direct import CTRL, CTRL_QUEUE, LOG_IOVA, RING_STATE, TX, Rig, rig
from vdpa_net.testing.guest_driver import PACKED, WANTED
from vdpa_net.testing.ring import Segment
from vdpa_net.testing.split_ring import DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE, SplitRing
from vdpa_net.wire import pci, virtio_net, virtio_pci
from vdpa_net.wire.virtio_pci import Status

ROOT = Path(__file__).resolve().parents[2]
ROW = re.compile(r"\| `([^`]+)` \| (.+) \| (yes|no)\b.*\|")
PAGE_REQUESTS = 0x2000
"""Behind the LM block."""

FAR = 1 << 40


def documented() -> dict[str, bool]:
    """Every kind of the documentation, and whether it sets DEVICE_NEEDS_RESET."""
    rows = (ROW.fullmatch(line) for line in (ROOT / "docs/violations.md").read_text().splitlines())
    return {row[1]: row[3] == "yes" for row in rows if row}


# --- the list is complete -----------------------------------------------------------------------------


def kinds_in_python() -> Iterator[str]:
    """What `record` and its kin are called with: a text, or a text with a register's name in it."""
    position = {"record": 1, "_record": 0, "Violation": 1, "Fault": 0}
    for path in (ROOT / "src/vdpa_net").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            arguments = node.args[position[name] :] if name in position else []
            if arguments and (kind := _kind(arguments[0])):
                yield kind


def _kind(node: ast.expr) -> str:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(
            str(part.value) if isinstance(part, ast.Constant) else "<register>" for part in node.values
        )
    return ""


def kinds_in_rust() -> Iterator[str]:
    for path in (ROOT / "rust/dataplane/src").rglob("*.rs"):
        code = path.read_text().partition("#[cfg(test)]")[0]
        yield from re.findall(r'\bkind: "(\w+)"', code)
        yield from re.findall(r'VIOLATIONS_DROPPED: &str = "(\w+)"', code)


def test_documentation_lists_exactly_the_kinds_of_the_code() -> None:
    in_code = {*kinds_in_python(), *kinds_in_rust()}
    assert in_code - set(documented()) == set(), "to be added to docs/violations.md"
    assert set(documented()) - in_code == set(), "gone from the code"


# --- and true -----------------------------------------------------------------------------------------


def split_ring(made: Rig) -> SplitRing:
    ring = made.driver.rings[TX]
    assert isinstance(ring, SplitRing)
    return ring


def offer(made: Rig, *descriptors: tuple[int, int, int, int], head: int = 0, ahead: int = 1) -> None:
    """Make a chain of these descriptors available to the transmit queue, as a broken driver would."""
    ring = split_ring(made)
    for slot, descriptor in enumerate(descriptors):
        ring.poke_desc(slot, *descriptor)
    ring.poke_avail(0, head)
    ring.poke_avail_idx(ahead)
    made.driver.kick(TX)
    made.stop(TX)


def common(name: str, value: int) -> Callable[[Rig], None]:
    return lambda made: made.set_common(name, value)


def lm(offset: int, value: int, size: int = 4) -> Callable[[Rig], None]:
    return lambda made: made.write(offset, value, size)


def status(*values: int) -> Callable[[Rig], None]:
    def act(made: Rig) -> None:
        for value in (0, *values):
            made.set_common("device_status", value)

    return act


def negotiate(features: int) -> Callable[[Rig], None]:
    def act(made: Rig) -> None:
        status(1, 3)(made)
        for half in range(2):
            made.set_common("driver_feature_select", half)
            made.set_common("driver_feature", features >> 32 * half & 0xFFFFFFFF)
        made.set_common("device_status", 11)
        assert made.common("device_status") == 3

    return act


def long_chain(made: Rig) -> None:
    fd = os.memfd_create("sparse")
    os.ftruncate(fd, 1 << 32)
    made.device.dma_map(FAR, 1 << 32, fd, 0, readable=True, writable=True)
    os.close(fd)
    offer(made, (FAR, 0xFFFFFFFF, DESC_F_NEXT, 1), (FAR, 0xFFFF, 0, 0))


def command(*segments: tuple[int, bool]) -> Callable[[Rig], None]:
    def act(made: Rig) -> None:
        at = made.memory.allocate(1 << 17)
        made.driver.rings[CTRL_QUEUE].add([Segment(at, length, writes) for length, writes in segments])
        made.driver.rings[CTRL_QUEUE].publish()
        made.driver.kick(CTRL_QUEUE)

    return act


def rings_outside(made: Rig) -> None:
    made.stop(TX)
    made.set_common("queue_desc", FAR)
    made.set_common("queue_enable", 1)


def log_to(base: int, end: int) -> Callable[[Rig], None]:
    def act(made: Rig) -> None:
        made.map_log()
        made.start_log(base, end)
        made.exchange()

    return act


def log_taken_away(made: Rig) -> None:
    made.start_log(LOG_IOVA, made.map_log())
    made.device.dma_unmap(LOG_IOVA, 4096)
    made.exchange()


def doorbell(offset: int, value: int) -> Callable[[Rig], None]:
    return lambda made: made.device.region_write(4, 0x3000 + offset, value.to_bytes(2, "little"))


def window(made: Rig) -> None:
    at = next(offset for offset, kind in capabilities(made) if kind == virtio_pci.CAP_PCI_CFG)
    for place, value in ((at + 4, 4), (at + 8, 0x3FFF), (at + 12, 4)):
        made.device.region_write(pci.CONFIG_REGION, place, value.to_bytes(4, "little"))
    made.device.region_read(pci.CONFIG_REGION, at + 16, 4)


def capabilities(made: Rig) -> Iterator[tuple[int, int]]:
    at = made.device.region_read(pci.CONFIG_REGION, 0x34, 1)[0]
    while at:
        identity, following, _, kind = made.device.region_read(pci.CONFIG_REGION, at, 4)
        if identity == pci.CAP_ID_VENDOR:
            yield at, kind
        at = following


def restore(value: int) -> Callable[[Rig], None]:
    def act(made: Rig) -> None:
        made.stop(TX)
        made.write(RING_STATE + 4 * TX, value)
        made.set_common("queue_enable", 1)

    return act


def packed_chain_into_nothing(made: Rig) -> None:
    ring = made.driver.rings[TX]
    available = 1 << 7
    made.memory.write(
        ring.desc, (0).to_bytes(8, "little") + (16).to_bytes(4, "little") + bytes(2) + bytes([1, 0])
    )
    made.memory.write(ring.desc + 14, (available | DESC_F_NEXT).to_bytes(2, "little"))
    made.driver.kick(TX)
    made.stop(TX)


def shrink(made: Rig) -> None:
    fd = os.memfd_create("shrinks")
    os.ftruncate(fd, 8192)
    made.device.dma_map(FAR, 8192, fd, 0, readable=True, writable=True)
    os.ftruncate(fd, 0)
    offer(made, (FAR, 64, 0, 0))
    os.close(fd)


RUNNING: dict[str, Callable[[Rig], None]] = {
    "avail_idx": lambda made: offer(made, ahead=65),
    "avail_head": lambda made: offer(made, head=64),
    "descriptor_index": lambda made: offer(made, (0, 16, DESC_F_NEXT, 64)),
    "chain_loop": lambda made: offer(made, (0, 16, DESC_F_NEXT, 0)),
    "chain_order": lambda made: offer(made, (0, 16, DESC_F_NEXT | DESC_F_WRITE, 1), (0, 16, 0, 0)),
    "chain_length": long_chain,
    "indirect": lambda made: offer(made, (0, 17, DESC_F_INDIRECT, 0)),
    "dma": lambda made: offer(made, (FAR, 64, 0, 0)),
    "sigbus": shrink,
    "queue_start_failed": rings_outside,
    "control_length": command((1 << 16 | 1, False), (1, True)),
    "control_reply": command((3, False)),
    "control_command": command((2, False), (1, True)),
    "no_register": lambda made: made.device.region_write(4, 0x3C0, bytes(4)),
    "read_only <register>": common("num_queues", 1),
    "bad_width": lambda made: made.device.region_write(4, 0, bytes(3)),
    "<register>_while_enabled": common("queue_size", 32),
    "bad_queue_enable": common("queue_enable", 2),
    "no_such_vector": common("config_msix_vector", 99),
    "driver_feature_after_features_ok": common("driver_feature", 0),
    "features_not_offered": negotiate(1 << virtio_pci.F_VERSION_1 | 1 << 63),
    "features_unmet": negotiate(1 << virtio_pci.F_VERSION_1 | 1 << virtio_net.F_GUEST_TSO4),
    "no_version_1": negotiate(1 << virtio_net.F_CSUM),
    "status_reserved_bits": common("device_status", 0x1F),
    "status_bits_cleared": common("device_status", 7),
    "status_out_of_order": status(2),
    "no_doorbell": doorbell(4 * 9, 9),
    "bad_doorbell_value": doorbell(4 * TX, 0),
    "bad_pci_cfg_window": window,
    "no_such_queue": lm(RING_STATE + 4 * 99, 1),
    "ring_state_while_running": lm(RING_STATE + 4 * TX, 1),
    "restored_avail_idx": restore(0x0009_0009),
    "used_idx": restore(0xFFFF_0000),
    "bad_logging_ctrl": lm(CTRL, 2),
    "bad_page_request_ctrl": lm(PAGE_REQUESTS, 2),
    "log_start_refused": log_to(LOG_IOVA, LOG_IOVA),
    "log_overflow": log_to(LOG_IOVA, LOG_IOVA + 1),
    "log_unmapped": log_taken_away,
}
"""How a driver that has started the device causes each kind."""

OTHERWISE: dict[str, tuple[dict[str, object], Callable[[Rig], None]]] = {
    "<register>_no_such_queue": (
        {},
        lambda made: (common("queue_select", 99)(made), common("queue_size", 8)(made))[0],
    ),
    "bad_queue_size": ({}, common("queue_size", 3)),
    "queue_reset_not_negotiated": ({}, common("queue_reset", 1)),
    "driver_feature_beyond_63": (
        {},
        lambda made: (common("driver_feature_select", 2)(made), common("driver_feature", 1)(made))[0],
    ),
    "kick_before_driver_ok": ({"vdpa": False}, doorbell(4 * TX, TX)),
    "bad_queue_pairs": ({"profile": "ifcvf"}, lm(0x28, 9)),
}
"""Those that need a device that is not started, with these options."""

WITH_FEATURES: dict[str, tuple[int, Callable[[Rig], None]]] = {
    "chain_flags": (PACKED, packed_chain_into_nothing),
    "ring_state_beyond": (PACKED, restore(0x8040_8040)),
    "bad_queue_reset": (1 << virtio_pci.F_RING_RESET, common("queue_reset", 2)),
}
"""Those that need features that the driver does without otherwise."""

FAILING = "tests/unit/test_failing_back_end.py"
SHOWN_ELSEWHERE = {
    "features_refused": (FAILING, "test_features_that_the_back_end_refuses_are_not_granted"),
    "restored_gap": ("tests/spec/test_in_order.py", "test_restored_state_with_a_gap_is_recorded"),
    "backend_gone": (FAILING, "test_a_tap_that_is_gone_is_recorded_once"),
    "needs_reset": (FAILING, "test_a_network_that_can_not_be_opened_needs_a_reset"),
    "broken": (FAILING, "test_a_control_queue_that_can_not_be_served_is_recorded"),
    "carrier": (FAILING, "test_a_carrier_that_stays_on_is_recorded"),
    "active_pairs": (FAILING, "test_queue_pairs_that_stay_active_are_recorded"),
    "announce_failed": (FAILING, "test_an_announcement_that_can_not_be_sent_is_recorded"),
    "violations_dropped": (
        "rust/dataplane/src/violation.rs",
        "a_full_log_keeps_the_first_and_says_how_many_it_dropped",
    ),
}
"""What takes a failing back end, a ring format or a flood to cause: the test that does."""


def same_kind(kind: str, recorded: str) -> bool:
    return re.fullmatch(re.escape(kind).replace("<register>", r"\w+"), recorded) is not None


def cause(made: Rig, kind: str, act: Callable[[Rig], None]) -> None:
    act(made)
    assert any(same_kind(kind, recorded) for recorded in made.kinds()), made.kinds()
    # A broken control queue tells the monitor's thread, which may not have looked yet.
    made.device._on_signal("plane")
    needs_reset = bool(made.common("device_status") & Status.DEVICE_NEEDS_RESET)
    assert needs_reset == documented()[kind], made.violations.entries
    for entry in made.violations.entries:
        assert entry.where, entry
        assert entry.clause, entry
    made.set_common("device_status", 0)
    assert made.common("device_status") == 0, "the device lives on"


@pytest.mark.parametrize("kind", RUNNING)
def test_what_a_driver_does_wrong_is_recorded_as_documented(kind: str) -> None:
    with rig() as made:
        made.driver.start()
        cause(made, kind, RUNNING[kind])


@pytest.mark.parametrize("kind", OTHERWISE)
def test_what_is_wrong_before_the_start_is_recorded_as_documented(kind: str) -> None:
    options, act = OTHERWISE[kind]
    with rig(**options) as made:
        cause(made, kind, act)


@pytest.mark.parametrize("kind", WITH_FEATURES)
def test_what_is_wrong_with_other_features_is_recorded_as_documented(kind: str) -> None:
    features, act = WITH_FEATURES[kind]
    with rig(features=WANTED | features, enabled_features=frozenset({"packed"})) as made:
        made.driver.start()
        cause(made, kind, act)


def test_every_documented_kind_is_caused_somewhere() -> None:
    assert {*RUNNING, *OTHERWISE, *WITH_FEATURES, *SHOWN_ELSEWHERE} == set(documented())


@pytest.mark.parametrize(("kind", "test"), SHOWN_ELSEWHERE.items(), ids=list(SHOWN_ELSEWHERE))
def test_what_is_shown_elsewhere_is_there_and_names_its_kind(kind: str, test: tuple[str, str]) -> None:
    path, name = test
    body = body_of(ROOT / path, name)
    assert body, f"{path} has no {name}"
    assert kind in body.lower(), f"{name} does not name {kind}"


def body_of(path: Path, name: str) -> str:
    """Source of a test in Python or Rust; empty if there is none."""
    text = path.read_text()
    if path.suffix == ".rs":
        return text.partition(f"fn {name}(")[2].partition("#[test]")[0]
    found = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)]
    return next((ast.get_source_segment(text, node) or "" for node in found if node.name == name), "")


def test_queue_restored_at_an_impossible_index_runs_on_from_its_ring() -> None:
    """Bad migration registers never need a reset: the guest's packets go on."""
    with rig() as made:
        made.driver.start()
        made.exchange(count=3)
        restore(0x0063_0063)(made)
        assert "restored_avail_idx" in made.kinds()
        made.exchange(count=3)
        assert made.stop(TX) == 0x0006_0006
        assert not made.common("device_status") & Status.DEVICE_NEEDS_RESET
