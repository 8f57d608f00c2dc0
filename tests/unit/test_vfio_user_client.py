# SPDX-License-Identifier: Apache-2.0
"""The vfio-user client against our server, and against servers that misbehave."""

from __future__ import annotations

import array
import errno
import os
import select
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from test_vfio_user_fake import BAR_BYTES, CONFIG_BYTES, FakeFunction, eventfds, memfd, open_fds

from vdpa_net.errors import PeerError, PeerGone, ProtocolError
from vdpa_net.transport.vfio_user.client import VfioUserClient
from vdpa_net.transport.vfio_user.server import VfioUserServer

DEADLINE_S = 20


@pytest.fixture
def function() -> Iterator[FakeFunction]:
    fake = FakeFunction(doorbell_count=3)
    yield fake
    fake.close()


@pytest.fixture
def client(tmp_path: Path, function: FakeFunction) -> Iterator[VfioUserClient]:
    with VfioUserServer(tmp_path / "s", function) as server, VfioUserClient(server.path) as connected:
        yield connected


def signalled(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(0))


def test_handshake_takes_over_the_servers_limits(client: VfioUserClient) -> None:
    assert client.max_msg_fds == 16
    assert client.max_data_xfer_size_bytes == 1 << 20


def test_device_is_a_pci_device_that_can_be_reset(client: VfioUserClient, function: FakeFunction) -> None:
    info = client.device_info()
    assert (info["flags"], info["num_regions"], info["num_irqs"]) == (3, 9, 5)
    client.reset()
    assert function.calls == [("reset",)]


def test_regions_that_exist_have_size_and_flags(client: VfioUserClient) -> None:
    sizes = {index: client.region_info(index)["size"] for index in range(9)}
    assert sizes == {0: 0, 1: 0, 2: 0, 3: 0, 4: BAR_BYTES, 5: 0, 6: 0, 7: CONFIG_BYTES, 8: 0}
    assert client.region_info(4)["flags"] == 3
    assert client.region_info(0)["flags"] == 0


def test_only_msix_and_err_have_interrupts(client: VfioUserClient) -> None:
    assert [client.irq_info(index)["count"] for index in range(5)] == [0, 0, 40, 1, 0]
    assert [client.irq_info(index)["flags"] for index in range(5)] == [0, 0, 3, 1, 0]


def test_dma_maps_reach_the_device_with_file_offset_and_access(
    client: VfioUserClient, function: FakeFunction
) -> None:
    with memfd() as fd:
        client.dma_map(0x1000, 0x1000, fd, 0x800, writable=False)
        client.dma_map(0x4000, 0x2000, None)
        assert function.calls == [
            ("map", 0x1000, 0x1000, 0x800, True, False),
            ("map", 0x4000, 0x2000, 0, True, True),
        ]
        assert function.maps[0x1000][1] == os.fstat(fd).st_ino


def test_map_over_an_existing_one_is_refused_with_eexist(
    client: VfioUserClient, function: FakeFunction
) -> None:
    client.dma_map(0x1000, 0x2000, None)
    for iova, size in [(0x1000, 0x2000), (0, 0x1001), (0x2FFF, 1), (0, 1 << 63)]:
        with pytest.raises(PeerError) as caught:
            client.dma_map(iova, size, None)
        assert caught.value.errno == errno.EEXIST
    assert list(function.maps) == [0x1000]


def test_unmap_of_a_range_removes_the_maps_in_it(client: VfioUserClient, function: FakeFunction) -> None:
    for page in (1, 2, 5, 9):
        client.dma_map(page << 12, 0x1000, None)
    client.dma_unmap(0x5000, 0x1000)
    assert sorted(function.maps) == [0x1000, 0x2000, 0x9000]
    client.dma_unmap(0, 0x8000)
    assert sorted(function.maps) == [0x9000]
    client.dma_unmap(0x20000, 0x1000)
    client.dma_unmap_all()
    assert not function.maps


def test_unmap_that_cuts_a_map_is_refused(client: VfioUserClient, function: FakeFunction) -> None:
    client.dma_map(0x1000, 0x2000, None)
    with pytest.raises(PeerError) as caught:
        client.dma_unmap(0, 0x2000)
    assert caught.value.errno == errno.EINVAL
    assert function.maps


def test_map_that_the_device_refuses_can_be_made_later(
    client: VfioUserClient, function: FakeFunction
) -> None:
    with memfd() as fd:
        original, function.dma_map = function.dma_map, _refuse  # type: ignore[method-assign]
        with pytest.raises(PeerError):
            client.dma_map(0, 0x1000, fd)
        function.dma_map = original  # type: ignore[method-assign]
        client.dma_map(0, 0x1000, fd)
    assert list(function.maps) == [0]


def _refuse(*_args: object, **_named: object) -> None:
    raise OSError(errno.ENOSPC, "no room")


def test_vectors_are_bound_in_chunks_that_the_server_takes(
    client: VfioUserClient, function: FakeFunction
) -> None:
    with eventfds(18) as fds:
        client.set_irqs(1, [*fds, None, None, fds[0]])
        assert function.calls == [
            ("set_irqs", 1, [True] * 16),
            ("set_irqs", 17, [True] * 2),
            ("set_irqs", 19, [False] * 2),
            ("set_irqs", 21, [True]),
        ]
        client.trigger_irqs(17, [True, False])
        assert [signalled(fd) for fd in fds] == [False] * 16 + [True, False]


def test_vectors_are_unbound_by_none_and_by_disable(client: VfioUserClient, function: FakeFunction) -> None:
    with eventfds(2) as fds:
        client.set_irqs(0, list(fds))
        client.set_irqs(0, [None])
        assert list(function.vectors) == [1]
        client.disable_irqs()
        assert not function.vectors


def test_error_interrupt_takes_an_eventfd(client: VfioUserClient, function: FakeFunction) -> None:
    before = open_fds()
    with eventfds(1) as fds:
        client.set_irqs(0, list(fds), index=3)
        client.disable_irqs(index=3)
        client.disable_irqs(index=0)
    assert function.calls == []
    assert open_fds() == before


def test_long_access_is_split_at_the_transfer_size(client: VfioUserClient, function: FakeFunction) -> None:
    client.max_data_xfer_size_bytes = 1000
    data = bytes(range(256)) * 10
    client.region_write(4, 0x100, data)
    assert [len(call[3]) for call in function.calls] == [1000, 1000, 560]  # type: ignore[arg-type]
    assert client.region_read(4, 0x100, len(data)) == data


def test_doorbells_come_as_eventfds_of_the_device(client: VfioUserClient, function: FakeFunction) -> None:
    bells = client.region_io_fds(4)
    try:
        assert [(bell.offset, bell.size_bytes) for bell in bells] == [(0x3000, 2), (0x3004, 2), (0x3008, 2)]
        os.eventfd_write(bells[1].fd, 1)
        assert [signalled(bell.fd) for bell in function.bells] == [False, True, False]
    finally:
        for bell in bells:
            os.close(bell.fd)
    assert client.region_io_fds(7) == []


def test_no_more_doorbells_than_the_client_takes_descriptors(tmp_path: Path) -> None:
    function = FakeFunction(doorbell_count=20)
    with VfioUserServer(tmp_path / "s", function) as server, VfioUserClient(server.path) as client:
        bells = client.region_io_fds(4)
        assert [bell.offset for bell in bells] == [0x3000 + 4 * queue for queue in range(16)]
        for bell in bells:
            os.close(bell.fd)
    function.close()


def test_requests_of_several_threads_do_not_mix(client: VfioUserClient) -> None:
    failures: list[int] = []

    def work(slot: int) -> None:
        for value in range(100):
            client.region_write(4, slot * 8, struct.pack("<Q", value))
            if struct.unpack("<Q", client.region_read(4, slot * 8, 8))[0] != value:
                failures.append(slot)

    threads = [threading.Thread(target=work, args=(slot,)) for slot in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
    assert not failures


def test_client_without_a_server_says_which_socket(tmp_path: Path) -> None:
    with pytest.raises(PeerGone, match="nobody") as caught:
        VfioUserClient(tmp_path / "nobody")
    assert caught.value.errno == errno.ENOENT


def test_connection_leaves_no_descriptors(tmp_path: Path, function: FakeFunction) -> None:
    with VfioUserServer(tmp_path / "s", function) as server:
        before = open_fds()
        for _ in range(10):
            with VfioUserClient(server.path) as client:
                for bell in client.region_io_fds(4):
                    os.close(bell.fd)
            client.close()
            assert function.detached.acquire(timeout=DEADLINE_S)
        assert {entry for entry in open_fds() if "socket" not in entry} == {
            entry for entry in before if "socket" not in entry
        }


Script = Callable[[socket.socket], None]


@pytest.fixture
def scripted(tmp_path: Path) -> Iterator[Callable[[Script], Path]]:
    """Run a function as the server of one connection, after a good handshake."""
    threads: list[threading.Thread] = []
    listeners: list[socket.socket] = []

    def start(script: Script) -> Path:
        path = tmp_path / "scripted"
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(str(path))
        listener.listen()
        listeners.append(listener)

        def serve() -> None:
            with listener.accept()[0] as sock:
                sock.settimeout(DEADLINE_S)
                sock.recv(4096)
                answer(sock, 1, 1, struct.pack("<HH", 0, 0) + b'{"capabilities":{"max_msg_fds":3}}\0')
                sock.recv(4096)
                script(sock)

        threads.append(threading.Thread(target=serve))
        threads[-1].start()
        return path

    yield start
    for thread in threads:
        thread.join(DEADLINE_S)
    for listener in listeners:
        listener.close()


def answer(sock: socket.socket, number: int, command: int, payload: bytes, fds: tuple[int, ...] = ()) -> None:
    data = struct.pack("<HHIII", number, command, 16 + len(payload), 1, 0) + payload
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    sock.sendmsg([data], rights)


@pytest.mark.parametrize(
    "reply",
    [
        struct.pack("<HHIII", 9, 4, 16, 1, 0),
        struct.pack("<HHIII", 2, 5, 16, 1, 0),
        struct.pack("<HHIII", 2, 4, 16, 0, 0),
        struct.pack("<HHIII", 2, 4, 15, 1, 0),
        struct.pack("<HHIII", 2, 4, 0xFFFFFFFF, 1, 0),
        struct.pack("<HHIII", 2, 4, 20, 1, 0) + bytes(4),
    ],
    ids=["other id", "other command", "not a reply", "too small", "too large", "short payload"],
)
def test_senseless_reply_is_a_protocol_error(scripted: Callable[[Script], Path], reply: bytes) -> None:
    path = scripted(lambda sock: sock.sendall(reply))
    with VfioUserClient(path) as client, pytest.raises(ProtocolError):
        client.device_info()


@pytest.mark.parametrize("sent", [b"", b"\2\0\4\0"], ids=["at once", "in the middle of a reply"])
def test_server_that_disconnects_is_gone(scripted: Callable[[Script], Path], sent: bytes) -> None:
    path = scripted(lambda sock: sock.sendall(sent))
    with VfioUserClient(path) as client:
        with pytest.raises(PeerGone):
            client.device_info()
        with pytest.raises(PeerGone):
            client.reset()
        assert client.closed


def test_server_that_does_not_answer_is_gone_after_the_timeout(scripted: Callable[[Script], Path]) -> None:
    over = threading.Event()
    path = scripted(lambda _sock: over.wait(DEADLINE_S) and None)
    with VfioUserClient(path, timeout_s=DEADLINE_S) as client:
        # The handshake is the server's, and takes as long as it takes.
        client._sock.set_timeout(0.05)
        with pytest.raises(PeerGone) as caught:
            client.device_info()
        over.set()
        assert caught.value.errno == errno.ETIMEDOUT


def test_error_without_errno_is_eio(scripted: Callable[[Script], Path]) -> None:
    path = scripted(lambda sock: sock.sendall(struct.pack("<HHIII", 2, 4, 16, 0x21, 0)))
    with VfioUserClient(path) as client, pytest.raises(PeerError, match="DEVICE_GET_INFO") as caught:
        client.device_info()
    assert caught.value.errno == errno.EIO


def doorbell(offset: int, fd_index: int, *, kind: int = 0, flags: int = 0, datamatch: int = 0) -> bytes:
    return struct.pack("<QQIIIIQ", offset, 2, fd_index, kind, flags, 0, datamatch)


def test_doorbells_that_share_a_descriptor_are_told_apart_by_datamatch(
    scripted: Callable[[Script], Path],
) -> None:
    entries = doorbell(0, 0, flags=1, datamatch=3) + doorbell(0, 0, kind=1) + doorbell(4, 0)
    with eventfds(1) as fds:
        reply = struct.pack("<IIII", 16 + len(entries), 0, 4, 3) + entries
        path = scripted(lambda sock: answer(sock, 2, 6, reply, tuple(fds)))
        with VfioUserClient(path) as client:
            bells = client.region_io_fds(4)
            assert [(bell.offset, bell.datamatch) for bell in bells] == [(0, 3), (4, None)]
            assert bells[0].fd != bells[1].fd
            for bell in bells:
                os.close(bell.fd)


def test_doorbell_without_its_descriptor_is_a_protocol_error(scripted: Callable[[Script], Path]) -> None:
    entries = doorbell(0, 0) + doorbell(4, 1)
    with eventfds(1) as fds:
        reply = struct.pack("<IIII", 16 + len(entries), 0, 4, 2) + entries
        path = scripted(lambda sock: answer(sock, 2, 6, reply, tuple(fds)))
        before = open_fds()
        with VfioUserClient(path) as client, pytest.raises(ProtocolError, match="descriptor 1 of 1"):
            client.region_io_fds(4)
        assert {e for e in open_fds() if "eventfd" in e} <= set(before)


def test_doorbell_array_is_asked_for_again_when_it_needs_more_room(
    scripted: Callable[[Script], Path],
) -> None:
    asked: list[int] = []

    def script(sock: socket.socket) -> None:
        answer(sock, 2, 6, struct.pack("<IIII", 400, 0, 4, 0))
        asked.append(struct.unpack("<I", sock.recv(4096)[16:20])[0])
        answer(sock, 3, 6, struct.pack("<IIII", 16, 0, 4, 0))

    with VfioUserClient(scripted(script)) as client:
        assert client.region_io_fds(4) == []
    assert asked == [400]
