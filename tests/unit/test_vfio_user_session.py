# SPDX-License-Identifier: Apache-2.0
"""The vfio-user server session: bytes in, requests and replies out, no socket anywhere."""

from __future__ import annotations

import errno
import json
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vdpa_net.errors import FramingError, ProtocolError
from vdpa_net.transport.vfio_user import requests as rq
from vdpa_net.transport.vfio_user.session import ServerSession, encode_version
from vdpa_net.wire import vfio_user as wire
from vdpa_net.wire.vfio_user import Command

NO_REPLY = 0x10


def header(
    command: int, payload: bytes = b"", *, flags: int = 0, size: int | None = None, number: int = 7
) -> bytes:
    return struct.pack("<HHIII", number, command, 16 + len(payload) if size is None else size, flags, 0)


def feed(
    session: ServerSession, command: int, payload: bytes = b"", fds: tuple[int, ...] = (), flags: int = 0
):
    return session.receive(header(command, payload, flags=flags), payload, fds)


def negotiated(**capabilities: object) -> ServerSession:
    session = ServerSession()
    feed(session, Command.VERSION, encode_version(0, 0, capabilities))
    return session


VALID_PAYLOADS = {
    Command.VERSION: struct.pack("<HH", 0, 0),
    Command.DMA_MAP: struct.pack("<IIQQQ", 32, 3, 0, 0x1000, 0x1000),
    Command.DMA_UNMAP: struct.pack("<IIQQ", 24, 0, 0x1000, 0x1000),
    Command.DEVICE_SET_IRQS: struct.pack("<IIIII", 20, 0x21, 2, 0, 0),
    Command.REGION_READ: struct.pack("<QII", 0, 7, 4),
    Command.REGION_WRITE: struct.pack("<QII", 0, 7, 1) + b"x",
    Command.REGION_WRITE_MULTI: struct.pack("<QQII8s", 1, 0x10, 4, 2, b"ab"),
    Command.DEVICE_RESET: b"",
}


def valid_payload(spec: wire.CommandSpec) -> bytes:
    """The smallest request of a command that is correct."""
    by_argsz = struct.pack("<I", spec.request.size) + bytes(max(0, spec.request.size - 4))
    return VALID_PAYLOADS.get(spec.code, by_argsz)


ALL_SPECS = sorted(wire.COMMANDS.values(), key=lambda spec: spec.code)
AFTER_VERSION = [spec for spec in ALL_SPECS if spec.code is not Command.VERSION]


def by_name(spec: wire.CommandSpec) -> str:
    return spec.name


@pytest.mark.parametrize("spec", AFTER_VERSION, ids=by_name)
def test_smallest_request_is_accepted(spec: wire.CommandSpec) -> None:
    request = feed(negotiated(), spec.code, valid_payload(spec))
    assert request.header.command == spec.code
    assert request.header.message_id == 7


@pytest.mark.parametrize("spec", [spec for spec in AFTER_VERSION if spec.min_payload_bytes], ids=by_name)
def test_payload_one_byte_too_short_is_refused(spec: wire.CommandSpec) -> None:
    payload = valid_payload(spec)
    with pytest.raises(ProtocolError) as caught:
        feed(negotiated(), spec.code, payload[:-1])
    assert not isinstance(caught.value, FramingError)
    assert caught.value.errno == errno.EINVAL


@pytest.mark.parametrize("spec", AFTER_VERSION, ids=by_name)
def test_payload_one_byte_too_long_is_refused(spec: wire.CommandSpec) -> None:
    with pytest.raises(ProtocolError) as caught:
        feed(negotiated(), spec.code, valid_payload(spec) + b"\0")
    assert caught.value.errno == errno.EINVAL


@pytest.mark.parametrize("spec", AFTER_VERSION, ids=by_name)
def test_one_descriptor_too_many_is_refused(spec: wire.CommandSpec) -> None:
    with pytest.raises(ProtocolError, match="file descriptors"):
        feed(negotiated(), spec.code, valid_payload(spec), tuple(range(spec.max_fds + 1)))


@pytest.mark.parametrize("spec", [spec for spec in ALL_SPECS if spec.argsz_min_bytes], ids=by_name)
def test_argsz_below_the_fixed_structure_is_refused(spec: wire.CommandSpec) -> None:
    payload = struct.pack("<I", spec.argsz_min_bytes - 1) + valid_payload(spec)[4:]
    with pytest.raises(ProtocolError, match="argsz"):
        feed(negotiated(), spec.code, payload)


@pytest.mark.parametrize("spec", AFTER_VERSION, ids=by_name)
def test_command_before_version_is_refused(spec: wire.CommandSpec) -> None:
    with pytest.raises(ProtocolError, match="before VERSION"):
        feed(ServerSession(), spec.code, valid_payload(spec))


@pytest.mark.parametrize("command", [0, 11, 12, 14, 16, 17, 18, 19, 0xFFFF])
def test_unsupported_command_is_answered_with_enotsup(command: int) -> None:
    with pytest.raises(ProtocolError) as caught:
        feed(negotiated(), command)
    assert caught.value.errno == errno.ENOTSUP
    assert wire.command_name(command) in str(caught.value)


@pytest.mark.parametrize("command", [Command.DEVICE_FEATURE, Command.MIG_DATA_READ, Command.MIG_DATA_WRITE])
def test_migration_commands_are_refused_with_the_way_that_there_is(command: Command) -> None:
    with pytest.raises(ProtocolError, match="LM registers"):
        feed(negotiated(), command)


def test_every_command_of_the_specification_is_served_or_refused_by_name() -> None:
    assert {*wire.COMMANDS, *wire.REFUSED} == set(Command)


def test_second_version_is_refused() -> None:
    with pytest.raises(ProtocolError, match="second VERSION"):
        feed(negotiated(), Command.VERSION, encode_version(0, 0, {}))


@pytest.mark.parametrize("size", [0, 15, wire.MAX_MESSAGE_BYTES + 1, 0xFFFFFFFF])
def test_impossible_message_size_is_a_framing_error(size: int) -> None:
    with pytest.raises(FramingError, match=str(size)):
        ServerSession().payload_size(header(Command.VERSION, size=size))


@pytest.mark.parametrize("kind", [2, 3, 15])
def test_unknown_message_type_is_a_framing_error(kind: int) -> None:
    with pytest.raises(FramingError, match=f"type {kind}"):
        ServerSession().payload_size(header(Command.VERSION, flags=kind))


def test_reply_instead_of_a_command_is_a_framing_error() -> None:
    with pytest.raises(FramingError, match="never sent"):
        feed(negotiated(), Command.DEVICE_RESET, flags=wire.TYPE_REPLY)


def test_header_of_wrong_length_is_a_framing_error() -> None:
    with pytest.raises(FramingError, match="15"):
        ServerSession().payload_size(bytes(15))


def test_payload_that_does_not_match_its_header_is_a_framing_error() -> None:
    with pytest.raises(FramingError, match="payload of 3"):
        ServerSession().receive(header(Command.VERSION, size=20), b"abc")


@pytest.mark.parametrize(
    "data",
    [
        b"{}",
        b"{\0",
        b"[]\0",
        b'"x"\0',
        b'{"capabilities": 1}\0',
        b"\xff\xfe\0",
        b"[" * 4000 + b"\0",
        b'{"capabilities": {"max_msg_fds": "many"}}\0',
        b'{"capabilities": {"max_msg_fds": true}}\0',
        b'{"capabilities": {"max_msg_fds": -1}}\0',
    ],
    ids=lambda data: repr(data[:24]),
)
def test_malformed_version_data_is_refused(data: bytes) -> None:
    session = ServerSession()
    with pytest.raises(ProtocolError):
        feed(session, Command.VERSION, struct.pack("<HH", 0, 0) + data)
    assert not session.negotiated


def test_foreign_major_version_ends_the_session() -> None:
    session = ServerSession()
    with pytest.raises(ProtocolError, match=r"1\.0"):
        feed(session, Command.VERSION, struct.pack("<HH", 1, 0))
    assert session.refused
    assert not session.negotiated


def test_refused_version_may_be_followed_by_a_good_one() -> None:
    session = ServerSession()
    with pytest.raises(ProtocolError):
        feed(session, Command.VERSION, struct.pack("<HH", 0, 0) + b"{}")
    feed(session, Command.VERSION, struct.pack("<HH", 0, 0))
    assert session.negotiated


def test_posted_command_gets_no_reply_and_no_error_reply() -> None:
    session = negotiated()
    request = feed(session, Command.DEVICE_RESET, flags=NO_REPLY)
    assert session.reply(request) is None
    assert session.error_reply(header(Command.DEVICE_RESET, flags=NO_REPLY), errno.EIO) is None


def test_error_reply_is_a_header_with_the_errno() -> None:
    outgoing = ServerSession().error_reply(header(Command.DMA_MAP, number=0x1234), errno.EEXIST)
    assert outgoing is not None
    assert struct.unpack("<HHIII", outgoing.data) == (0x1234, Command.DMA_MAP, 16, 0x21, errno.EEXIST)


def test_reply_echoes_id_and_command_and_carries_the_payload() -> None:
    session = negotiated()
    outgoing = session.reply(feed(session, Command.DEVICE_RESET), b"abc", (5,))
    assert outgoing is not None
    assert outgoing.data == struct.pack("<HHIII", 7, Command.DEVICE_RESET, 19, 1, 0) + b"abc"
    assert outgoing.fds == (5,)


def test_client_that_does_not_say_takes_one_descriptor() -> None:
    assert negotiated().client_max_msg_fds == 1
    assert negotiated(max_msg_fds=4).client_max_msg_fds == 4
    assert negotiated(max_msg_fds=10**30).client_max_msg_fds == wire.MAX_MSG_FDS


def qemu_proposal() -> bytes:
    """As QEMU's client spaces and fills it."""
    capabilities = {
        "migration": {"max_bitmap_size": 268435456, "pgsize": 4096},
        "max_dma_maps": 65535,
        "max_msg_fds": 16,
        "write_multiple": True,
        "pgsizes": 4096,
        "max_data_xfer_size": 1048576,
    }
    return struct.pack("<HH", 0, 0) + json.dumps({"capabilities": capabilities}).encode() + b"\0"


def test_version_reply_is_not_longer_than_qemus_request() -> None:
    session = ServerSession()
    request = feed(session, Command.VERSION, qemu_proposal())
    assert isinstance(request.body, rq.Version)
    reply = session.version_reply(request.body)
    assert len(reply) <= len(qemu_proposal())
    assert reply.endswith(b"\0")
    capabilities = json.loads(reply[4:-1])["capabilities"]
    assert capabilities == {
        "max_msg_fds": 16,
        "max_data_xfer_size": 1 << 20,
        "pgsizes": 4096,
        "max_dma_maps": 65535,
        "write_multiple": True,
    }


@pytest.mark.parametrize("flags", [0, 4, 7, 0x80000001])
def test_dma_map_with_impossible_flags_is_refused(flags: int) -> None:
    with pytest.raises(ProtocolError, match="flags"):
        feed(negotiated(), Command.DMA_MAP, struct.pack("<IIQQQ", 32, flags, 0, 0, 4096))


@pytest.mark.parametrize(("address", "size"), [(0, 0), (1 << 63, 1 << 63 | 1), ((1 << 64) - 1, 2)])
@pytest.mark.parametrize("command", [Command.DMA_MAP, Command.DMA_UNMAP])
def test_empty_or_wrapping_range_is_refused(command: Command, address: int, size: int) -> None:
    start = struct.pack("<IIQ", 32, 1, 0) if command is Command.DMA_MAP else struct.pack("<II", 24, 0)
    with pytest.raises(ProtocolError, match="beyond"):
        feed(negotiated(), command, start + struct.pack("<QQ", address, size))


def test_range_up_to_the_end_of_the_address_space_is_accepted() -> None:
    request = feed(negotiated(), Command.DMA_UNMAP, struct.pack("<IIQQ", 24, 0, 1 << 63, 1 << 63))
    assert request.body == rq.DmaUnmap(1 << 63, 1 << 63, False, struct.pack("<IIQQ", 24, 0, 1 << 63, 1 << 63))


@pytest.mark.parametrize(("flags", "address", "size"), [(1, 0, 0), (2, 4096, 0), (2, 0, 4096), (4, 0, 4096)])
def test_dma_unmap_with_impossible_flags_is_refused(flags: int, address: int, size: int) -> None:
    with pytest.raises(ProtocolError, match="DMA_UNMAP"):
        feed(negotiated(), Command.DMA_UNMAP, struct.pack("<IIQQ", 24, flags, address, size))


@pytest.mark.parametrize("flags", [0, 0x20, 0x01, 0x23, 0x31, 0x61, 0x25])
def test_set_irqs_needs_one_data_and_one_action_bit(flags: int) -> None:
    with pytest.raises(ProtocolError, match="flags"):
        feed(negotiated(), Command.DEVICE_SET_IRQS, struct.pack("<IIIII", 20, flags, 2, 0, 1))


@pytest.mark.parametrize(
    ("flags", "count", "data", "fds"),
    [
        (0x21, 1, b"\1", ()),
        (0x22, 2, b"\1", ()),
        (0x22, 1, b"\1\1", ()),
        (0x24, 1, b"\1", ()),
        (0x24, 2, b"", (1,)),
        (0x24, 1, b"", (1, 2)),
        (0x21, 1, b"", (1,)),
        (0x22, 1, b"\1", (1,)),
        (0x22, 0xFFFFFFFF, b"", ()),
    ],
)
def test_set_irqs_whose_data_and_count_disagree_is_refused(
    flags: int, count: int, data: bytes, fds: tuple[int, ...]
) -> None:
    with pytest.raises(ProtocolError, match="DEVICE_SET_IRQS"):
        feed(negotiated(), Command.DEVICE_SET_IRQS, struct.pack("<IIIII", 20, flags, 2, 0, count) + data, fds)


def test_region_read_of_more_than_the_transfer_size_is_refused() -> None:
    for count in (0, (1 << 20) + 1, 0xFFFFFFFF):
        with pytest.raises(ProtocolError, match=str(count)):
            feed(negotiated(), Command.REGION_READ, struct.pack("<QII", 0, 7, count))


def test_largest_region_write_is_accepted_and_the_next_is_a_framing_error() -> None:
    session = negotiated()
    payload = struct.pack("<QII", 0, 4, 1 << 20) + bytes(1 << 20)
    request = feed(session, Command.REGION_WRITE, payload)
    assert isinstance(request.body, rq.RegionWrite)
    assert len(request.body.data) == 1 << 20
    with pytest.raises(FramingError):
        session.payload_size(header(Command.REGION_WRITE, payload + b"\0"))


@pytest.mark.parametrize("count", [0, 9, 0xFFFFFFFF])
def test_write_multi_with_an_impossible_write_is_refused(count: int) -> None:
    with pytest.raises(ProtocolError, match=str(count)):
        feed(negotiated(), Command.REGION_WRITE_MULTI, struct.pack("<QQII8s", 1, 0, 4, count, b""))


@pytest.mark.parametrize("wr_cnt", [0, 2, (1 << 64) - 1])
def test_write_multi_whose_count_is_not_that_of_its_writes_is_refused(wr_cnt: int) -> None:
    with pytest.raises(ProtocolError, match=str(wr_cnt)):
        feed(negotiated(), Command.REGION_WRITE_MULTI, struct.pack("<QQII8s", wr_cnt, 0, 4, 1, b""))


def test_write_multi_is_decoded_in_order_and_cut_to_each_count() -> None:
    writes = struct.pack("<QII8s", 0x3000, 4, 2, b"\1\0") + struct.pack("<QII8s", 0x14, 4, 8, b"abcdefgh")
    request = feed(negotiated(), Command.REGION_WRITE_MULTI, struct.pack("<Q", 2) + writes)
    expected = (rq.RegionWrite(4, 0x3000, b"\1\0"), rq.RegionWrite(4, 0x14, b"abcdefgh"))
    assert request.body == rq.RegionWriteMulti(expected)


@given(
    raw=st.binary(min_size=16, max_size=16),
    payload=st.binary(max_size=80),
    fds=st.lists(st.integers(0, 9), max_size=3),
    command=st.none() | st.integers(0, 20),
    fitting=st.booleans(),
    after_version=st.booleans(),
)
def test_random_bytes_raise_nothing_but_protocol_errors(
    raw: bytes, payload: bytes, fds: list[int], command: int | None, *, fitting: bool, after_version: bool
) -> None:
    if command is not None:
        raw = raw[:2] + struct.pack("<H", command) + raw[4:8] + struct.pack("<I", raw[8] & 0x10) + raw[12:]
    if fitting:
        raw = raw[:4] + struct.pack("<I", 16 + len(payload)) + raw[8:]
    session = negotiated() if after_version else ServerSession()
    try:
        request = session.receive(raw, payload, fds)
        session.reply(request)
    except FramingError:
        return
    except ProtocolError as error:
        assert error.errno > 0
        session.error_reply(raw, error.errno)


@given(data=st.binary(max_size=64) | st.text(max_size=64).map(lambda text: text.encode() + b"\0"))
def test_random_version_data_raises_nothing_but_protocol_errors(data: bytes) -> None:
    session = ServerSession()
    try:
        feed(session, Command.VERSION, struct.pack("<HH", 0, 0) + data)
    except ProtocolError:
        assert not session.negotiated
