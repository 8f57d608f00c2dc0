# SPDX-License-Identifier: Apache-2.0
"""MSI-X table, eventfds of vectors, doorbells."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from fake_dataplane import FakeRig

from vdpa_net.errors import AccessError, DmaError


@pytest.fixture
def rig() -> Iterator[FakeRig]:
    made = FakeRig()
    yield made
    made.close()


@pytest.fixture
def fds() -> Iterator[list[int]]:
    made = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(4)]
    yield made
    for fd in made:
        os.close(fd)


def signals(fd: int) -> int:
    try:
        return os.eventfd_read(fd)
    except BlockingIOError:
        return 0


def same_file(first: int | None, second: int) -> bool:
    return first is not None and os.fstat(first).st_ino == os.fstat(second).st_ino


def test_table_size_is_one_vector_for_config_and_one_per_queue(rig: FakeRig) -> None:
    assert rig.device.num_vectors == 4
    pointer = rig.device.region_read(7, 0x34, 1)[0]
    while rig.device.region_read(7, pointer, 1)[0] != 0x11:
        pointer = rig.device.region_read(7, pointer + 1, 1)[0]
    control = int.from_bytes(rig.device.region_read(7, pointer + 2, 2), "little")
    assert control == 3, "table size is encoded as N - 1"
    table, pba = (int.from_bytes(rig.device.region_read(7, pointer + at, 4), "little") for at in (4, 8))
    assert (table & 7, pba & 7) == (1, 1)
    assert pba & ~7 == 0x800
    rig.device.region_write(7, pointer + 2, b"\xff\xff")
    assert int.from_bytes(rig.device.region_read(7, pointer + 2, 2), "little") == 0xC003


def test_table_is_storage_and_masked_after_reset(rig: FakeRig) -> None:
    assert rig.device.region_read(1, 0x1C, 4) == b"\1\0\0\0"
    rig.device.region_write(1, 0x10, bytes.fromhex("0000e0fe00000000"))
    rig.device.region_write(1, 0x18, b"\x41\0\0\0")
    rig.device.region_write(1, 0x1C, b"\0\0\0\0")
    assert rig.device.region_read(1, 0x10, 16) == bytes.fromhex("0000e0fe000000004100000000000000")
    rig.device.reset()
    assert rig.device.region_read(1, 0x10, 16) == bytes(12) + b"\1\0\0\0"
    assert rig.kinds() == []


def test_write_to_the_pending_bits_is_recorded(rig: FakeRig) -> None:
    rig.device.region_write(1, 0x800, b"\1\0\0\0")
    assert rig.device.region_read(1, 0x800, 8) == bytes(8)
    assert rig.kinds() == ["no_register"]


@pytest.mark.parametrize("bound_first", [True, False])
def test_queue_interrupt_goes_to_the_eventfd_of_its_vector(
    rig: FakeRig, fds: list[int], bound_first: bool
) -> None:
    if bound_first:
        rig.device.set_irqs(0, fds)
    rig.set_common("queue_select", 1)
    rig.set_common("queue_msix_vector", 2)
    if not bound_first:
        assert rig.plane.call_fds.get(1) is None
        rig.device.set_irqs(0, fds)
    assert same_file(rig.plane.call_fds[1], fds[2])
    assert rig.plane.call_fds.get(0) is None
    rig.device.set_irqs(2, [None])
    assert rig.plane.call_fds[1] is None


def test_vector_rebound_to_another_eventfd_moves_the_interrupt(rig: FakeRig, fds: list[int]) -> None:
    rig.set_common("queue_msix_vector", 1)
    rig.device.set_irqs(1, [fds[0]])
    rig.device.set_irqs(1, [fds[3]])
    assert same_file(rig.plane.call_fds[0], fds[3])
    rig.set_common("queue_msix_vector", 0xFFFF)
    assert rig.plane.call_fds[0] is None


def test_eventfds_survive_a_device_reset_but_not_the_client(rig: FakeRig, fds: list[int]) -> None:
    rig.device.set_irqs(0, fds)
    rig.device.reset()
    rig.set_common("queue_msix_vector", 1)
    assert same_file(rig.plane.call_fds[0], fds[1])
    rig.device.detach_client()
    rig.set_common("queue_msix_vector", 1)
    assert rig.plane.call_fds[0] is None


def test_vector_that_the_table_lacks_reads_back_no_vector(rig: FakeRig) -> None:
    for name in ("config_msix_vector", "queue_msix_vector"):
        rig.set_common(name, 3)
        assert rig.common(name) == 3
        rig.set_common(name, 4)
        assert rig.common(name) == 0xFFFF
    assert rig.kinds() == ["no_such_vector", "no_such_vector"]


def test_triggered_vectors_are_signalled(rig: FakeRig, fds: list[int]) -> None:
    rig.device.set_irqs(0, fds)
    rig.device.trigger_irqs(1, [True, False, True])
    assert [signals(fd) for fd in fds] == [0, 1, 0, 1]
    rig.device.disable_irqs()
    rig.device.trigger_irqs(0, [True] * 4)
    assert [signals(fd) for fd in fds] == [0, 0, 0, 0]


def test_needs_reset_raises_the_configuration_vector(rig: FakeRig, fds: list[int]) -> None:
    rig.device.set_irqs(0, fds)
    rig.set_common("config_msix_vector", 3)
    rig.plane.fail_start = DmaError("not mapped")
    rig.start(queues=(0,))
    rig.set_common("config_msix_vector", 3)
    assert signals(fds[3]) == 0, "the reset at the start of initialisation unmapped the vector"
    rig.set_common("device_status", 0)
    rig.negotiate()
    rig.set_common("config_msix_vector", 3)
    rig.set_up_queue(0)
    rig.set_common("device_status", 15)
    assert signals(fds[3]) == 1


def pending(rig: FakeRig) -> int:
    return int.from_bytes(rig.device.region_read(1, 0x800, 8), "little")


def test_configuration_interrupt_without_an_eventfd_is_pending_and_delivered_later(
    rig: FakeRig, fds: list[int]
) -> None:
    rig.set_common("config_msix_vector", 3)
    rig.device._virtio.needs_reset("test", "a test asks for it")
    assert pending(rig) == 1 << 3
    rig.device.set_irqs(0, fds[:3])
    assert pending(rig) == 1 << 3
    rig.device.set_irqs(3, fds[3:])
    assert pending(rig) == 0
    assert [signals(fd) for fd in fds] == [0, 0, 0, 1]


def test_queue_interrupt_without_an_eventfd_is_pending(rig: FakeRig) -> None:
    rig.set_common("queue_select", 1)
    rig.set_common("queue_msix_vector", 2)
    rig.plane.due.add(1)
    assert pending(rig) == 1 << 2
    assert rig.device.region_read(1, 0x801, 1) == b"\0"


def test_nothing_is_pending_after_a_reset(rig: FakeRig, fds: list[int]) -> None:
    rig.set_common("config_msix_vector", 3)
    rig.device._virtio.needs_reset("test", "a test asks for it")
    rig.set_common("device_status", 0)
    rig.device.set_irqs(0, fds)
    assert [signals(fd) for fd in fds] == [0, 0, 0, 0]


def test_vector_without_an_eventfd_that_is_triggered_is_not_kept(rig: FakeRig, fds: list[int]) -> None:
    rig.device.trigger_irqs(0, [True] * 4)
    assert pending(rig) == 0
    rig.device.set_irqs(0, fds)
    assert [signals(fd) for fd in fds] == [0, 0, 0, 0]


def test_full_pipe_as_eventfd_does_not_hang_the_device(rig: FakeRig) -> None:
    read_end, write_end = os.pipe()
    try:
        os.set_blocking(write_end, False)
        try:
            while True:
                os.write(write_end, bytes(65536))
        except BlockingIOError:
            os.set_blocking(write_end, True)
        rig.device.set_irqs(0, [write_end])
        rig.device.trigger_irqs(0, [True])
    finally:
        os.close(read_end)
        os.close(write_end)


@pytest.mark.parametrize(("start", "count"), [(4, 1), (0, 5), (3, 2), (-1, 1)])
def test_vectors_out_of_range_are_refused(rig: FakeRig, start: int, count: int) -> None:
    with pytest.raises(AccessError, match="there are 4"):
        rig.device.set_irqs(start, [None] * count)
    with pytest.raises(AccessError, match="there are 4"):
        rig.device.trigger_irqs(start, [True] * count)


def test_bad_descriptor_among_vectors_changes_nothing(rig: FakeRig, fds: list[int]) -> None:
    rig.device.set_irqs(0, fds)
    with pytest.raises(AccessError, match="eventfd"):
        rig.device.set_irqs(0, [fds[0], -1])
    rig.device.trigger_irqs(1, [True])
    assert signals(fds[1]) == 1


def test_doorbells_lie_where_the_notify_capability_says(rig: FakeRig) -> None:
    bells = rig.device.doorbells()
    assert [(bell.region, bell.offset, bell.size_bytes, bell.queue) for bell in bells] == [
        (4, 0x3000, 2, 0),
        (4, 0x3004, 2, 1),
        (4, 0x3008, 2, 2),
    ]
    assert [bell.fd for bell in bells[:2]] == [rig.plane.kick_fd(0), rig.plane.kick_fd(1)]


def test_doorbell_write_kicks_its_queue(rig: FakeRig) -> None:
    rig.backend.calls.clear()
    rig.write(0x3004, 2, 1)
    assert rig.backend.calls == [("kick", 1)]
    assert rig.kinds() == []


@pytest.mark.parametrize(
    ("offset", "size", "value", "kind"),
    [
        (0x300C, 2, 3, "no_doorbell"),
        (0x3FFC, 2, 0, "no_doorbell"),
        (0x3006, 2, 1, "no_doorbell"),
        (0x3004, 2, 0, "bad_doorbell_value"),
        (0x3004, 1, 1, "bad_doorbell_value"),
    ],
)
def test_wrong_doorbell_write_is_recorded(
    rig: FakeRig, offset: int, size: int, value: int, kind: str
) -> None:
    rig.write(offset, size, value)
    assert rig.kinds() == [kind]
