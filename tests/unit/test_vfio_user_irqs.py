# SPDX-License-Identifier: Apache-2.0
"""DEVICE_SET_IRQS: every kind of data with every action, over the wire, and what the vectors do."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_dataplane import FakeRig
from test_vfio_user_fake import eventfds
from test_vfio_user_server import message, raw_client, receive, send_with_fds

from vdpa_net.errors import AccessError
from vdpa_net.transport.vfio_user.server import VfioUserServer
from vdpa_net.wire.vfio_user import Command, IrqIndex

NONE, BOOL, EVENTFD = 0x1, 0x2, 0x4
MASK, UNMASK, TRIGGER = 0x8, 0x10, 0x20
MSIX, ERR = IrqIndex.MSIX, IrqIndex.ERR


class Client:
    """Sends DEVICE_SET_IRQS to a device on the fake data plane."""

    def __init__(self, path: Path) -> None:
        self.rig = FakeRig()
        self.server = VfioUserServer(path, self.rig.device)
        self.sock = raw_client(self.server)

    def set_irqs(
        self,
        flags: int,
        *,
        start: int = 0,
        count: int = 1,
        data: bytes = b"",
        fds: list[int] | None = None,
        index: int = MSIX,
    ) -> int:
        """The errno of the reply."""
        payload = struct.pack("<IIIII", 20 + len(data), flags, index, start, count) + data
        send_with_fds(self.sock, message(Command.DEVICE_SET_IRQS, payload), fds or [])
        return receive(self.sock)[1]

    def close(self) -> None:
        self.sock.close()
        self.server.close()
        self.rig.close()


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    made = Client(tmp_path / "dev.sock")
    yield made
    made.close()


def signals(fd: int) -> int:
    try:
        return os.eventfd_read(fd)
    except BlockingIOError:
        return 0


def test_msix_is_announced_as_maskable(client: Client) -> None:
    client.sock.sendall(message(Command.DEVICE_GET_IRQ_INFO, struct.pack("<IIII", 16, 0, MSIX, 0)))
    _, _, reply = receive(client.sock)
    assert struct.unpack("<IIII", reply) == (16, 0b11, MSIX, 4)


def test_trigger_with_each_kind_of_data(client: Client) -> None:
    with eventfds(2) as fds:
        assert client.set_irqs(EVENTFD | TRIGGER, count=2, fds=fds) == 0
        assert client.set_irqs(NONE | TRIGGER, count=2) == 0
        assert [signals(fd) for fd in fds] == [1, 1]
        assert client.set_irqs(BOOL | TRIGGER, count=2, data=b"\0\x01") == 0
        assert [signals(fd) for fd in fds] == [0, 1]
        assert client.set_irqs(EVENTFD | TRIGGER, start=1) == 0
        assert client.set_irqs(NONE | TRIGGER, count=2) == 0
        assert [signals(fd) for fd in fds] == [1, 0]


def test_masked_vector_is_held_back_and_delivered_once_when_unmasked(client: Client) -> None:
    with eventfds(2) as fds:
        client.set_irqs(EVENTFD | TRIGGER, count=2, fds=fds)
        assert client.set_irqs(BOOL | MASK, count=2, data=b"\x01\0") == 0
        for _ in range(3):
            client.set_irqs(NONE | TRIGGER, count=2)
        assert [signals(fd) for fd in fds] == [0, 3]
        assert client.set_irqs(NONE | UNMASK, count=2) == 0
        assert [signals(fd) for fd in fds] == [1, 0]
        client.set_irqs(NONE | UNMASK, count=2)
        assert [signals(fd) for fd in fds] == [0, 0]


def test_queue_with_a_masked_vector_has_no_call_until_it_is_unmasked(client: Client) -> None:
    with eventfds(1) as fds:
        client.set_irqs(EVENTFD | TRIGGER, start=1, fds=fds)
        client.rig.set_common("queue_select", 0)
        client.rig.set_common("queue_msix_vector", 1)
        assert client.rig.plane.call_fds[0] is not None
        client.set_irqs(NONE | MASK, start=1)
        assert client.rig.plane.call_fds[0] is None
        client.set_irqs(NONE | UNMASK, start=1)
        assert client.rig.plane.call_fds[0] is not None


def test_eventfds_of_mask_and_unmask_tell_of_each_change(client: Client) -> None:
    with eventfds(2) as (masked, unmasked):
        assert client.set_irqs(EVENTFD | MASK, fds=[masked]) == 0
        assert client.set_irqs(EVENTFD | UNMASK, fds=[unmasked]) == 0
        client.set_irqs(NONE | MASK)
        client.set_irqs(NONE | MASK)
        assert (signals(masked), signals(unmasked)) == (1, 0)
        client.set_irqs(NONE | UNMASK)
        assert (signals(masked), signals(unmasked)) == (0, 1)
        assert client.set_irqs(EVENTFD | MASK) == 0
        client.set_irqs(NONE | MASK)
        assert (signals(masked), signals(unmasked)) == (0, 0)


def test_disabling_all_vectors_unmasks_them(client: Client) -> None:
    with eventfds(1) as fds:
        client.set_irqs(NONE | MASK)
        assert client.set_irqs(NONE | TRIGGER, count=0) == 0
        client.set_irqs(EVENTFD | TRIGGER, fds=fds)
        client.set_irqs(NONE | TRIGGER)
        assert signals(fds[0]) == 1


def test_masks_go_with_their_client_but_not_with_a_reset(client: Client) -> None:
    with eventfds(1) as fds:
        client.set_irqs(EVENTFD | TRIGGER, fds=fds)
        client.set_irqs(NONE | MASK)
        client.rig.device.reset()
        client.set_irqs(NONE | TRIGGER)
        assert signals(fds[0]) == 0
        client.rig.device.detach_client()
        client.set_irqs(EVENTFD | TRIGGER, fds=fds)
        client.set_irqs(NONE | TRIGGER)
        assert signals(fds[0]) == 1


@pytest.mark.parametrize("action", [MASK, UNMASK, TRIGGER])
@pytest.mark.parametrize("data", [NONE, BOOL, EVENTFD])
def test_vectors_that_are_not_there_are_refused(client: Client, data: int, action: int) -> None:
    bools = b"\x01" * 2 if data == BOOL else b""
    with eventfds(2) as fds:
        given = fds if data == EVENTFD else []
        assert client.set_irqs(data | action, start=3, count=2, data=bools, fds=given) == errno.EINVAL


@pytest.mark.parametrize("action", [MASK, UNMASK])
def test_masking_no_vector_at_all_is_refused(client: Client, action: int) -> None:
    assert client.set_irqs(NONE | action, count=0) == errno.EINVAL


@pytest.mark.parametrize("flags", [NONE | MASK, BOOL | UNMASK, NONE | TRIGGER, EVENTFD | MASK])
def test_error_interrupt_takes_an_eventfd_to_trigger_and_nothing_else(client: Client, flags: int) -> None:
    data = b"\x01" if flags & BOOL else b""
    assert client.set_irqs(flags, index=ERR, data=data) == errno.ENOTSUP
    with eventfds(1) as fds:
        assert client.set_irqs(EVENTFD | TRIGGER, index=ERR, fds=fds) == 0


def test_masking_from_python_checks_its_vectors(client: Client) -> None:
    with pytest.raises(AccessError, match="there are 4"):
        client.rig.device.mask_irqs(4, [True], masked=True)
    with pytest.raises(AccessError, match="there are 4"):
        client.rig.device.notify_mask(0, [None] * 5, masked=False)


def test_bound_eventfds_are_closed_with_the_client(client: Client, no_fd_leak: None) -> None:
    with eventfds(3) as fds:
        for flags in (EVENTFD | TRIGGER, EVENTFD | MASK, EVENTFD | UNMASK):
            client.set_irqs(flags, count=3, fds=fds)
        client.rig.device.detach_client()
