# SPDX-License-Identifier: Apache-2.0
"""The vhost-user session, message by message: gates, sizes, descriptors and answers come from one table."""

from __future__ import annotations

import struct

import pytest

from vdpa_net.errors import FramingError, ProtocolError
from vdpa_net.transport.vhost_user import dispatch
from vdpa_net.transport.vhost_user.session import Header, Session
from vdpa_net.wire.vhost_user import (
    BY_NAME,
    F_PROTOCOL_FEATURES,
    MAX_CONFIG_BYTES,
    MAX_PAYLOAD_BYTES,
    MESSAGES,
    OFFERED_PROTOCOL_FEATURES,
    REFUSED,
    Message,
    ProtocolFeature,
    ReplyRule,
)

EVERY = sorted(MESSAGES)
NAMES = [MESSAGES[code].name for code in EVERY]
# From "Front-end message types" and "Protocol features" of the specification, not from the table under test.
GATES = {
    "SET_LOG_BASE": 1,
    "GET_QUEUE_NUM": 0,
    "SEND_RARP": 2,
    "NET_SET_MTU": 4,
    "SET_BACKEND_REQ_FD": 5,
    "GET_CONFIG": 9,
    "SET_CONFIG": 9,
    "RESET_DEVICE": 13,
    "GET_MAX_MEM_SLOTS": 15,
    "ADD_MEM_REG": 15,
    "REM_MEM_REG": 15,
    "SET_STATUS": 16,
    "GET_STATUS": 16,
}
FDS = {"SET_LOG_BASE": 1, "SET_LOG_FD": 1, "SET_BACKEND_REQ_FD": 1, "ADD_MEM_REG": 1}
SIZES = {
    "SET_FEATURES": 8,
    "SET_MEM_TABLE": 8,
    "SET_LOG_BASE": 16,
    "SET_VRING_NUM": 8,
    "SET_VRING_ADDR": 40,
    "SET_VRING_KICK": 8,
    "NET_SET_MTU": 8,
    "ADD_MEM_REG": 40,
    "REM_MEM_REG": 40,
    "GET_CONFIG": 12,
    "RESET_DEVICE": 0,
    "SET_STATUS": 8,
}


def negotiated(protocol_features: int = OFFERED_PROTOCOL_FEATURES) -> Session:
    session = Session()
    session.accept_features((1 << 64) - 1)
    session.accept_protocol_features(protocol_features)
    return session


def payload_of(message: Message) -> bytes:
    """The shortest payload of a message; eventfds come as "none" (bit 8)."""
    if message.exact_fds is not None and message.item is None:
        return struct.pack("<Q", 1 << 8)
    return bytes(message.payload.size)


def fds_of(message: Message) -> tuple[int, ...]:
    return tuple(range(100, 100 + message.fds[0]))


def header(message: Message, size: int, *, need_reply: bool = False) -> Header:
    return Header(message.code, need_reply, size)


def test_every_message_has_a_handler_and_no_handler_lacks_one() -> None:
    assert set(dispatch._HANDLERS) == set(BY_NAME)
    assert not set(MESSAGES) & set(REFUSED)
    assert set(MESSAGES) | set(REFUSED) == set(range(1, 44))


@pytest.mark.parametrize("code", EVERY, ids=NAMES)
def test_a_message_as_it_should_be_is_taken(code: int) -> None:
    message = MESSAGES[code]
    payload = payload_of(message)
    request = negotiated().request(header(message, len(payload)), payload, fds_of(message))
    assert request.message is message


@pytest.mark.parametrize(("name", "bit"), GATES.items())
def test_a_message_whose_protocol_feature_is_missing_is_refused_by_name(name: str, bit: int) -> None:
    message = BY_NAME[name]
    assert message.needs is not None
    assert message.needs.value == bit
    session = negotiated(OFFERED_PROTOCOL_FEATURES & ~(1 << bit))
    with pytest.raises(ProtocolError, match=f"{name}: protocol feature {ProtocolFeature(bit).name}"):
        session.request(header(message, 0), payload_of(message), fds_of(message))


def test_messages_without_a_gate_are_those_of_the_first_specification() -> None:
    ungated = {message.name for message in MESSAGES.values() if message.needs is None}
    assert ungated - set(NAMES[:16]) == {"SET_VRING_ENABLE", "IOTLB_MSG"}


def test_translations_need_access_platform() -> None:
    message = BY_NAME["IOTLB_MSG"]
    session = negotiated()
    session.accept_features(((1 << 64) - 1) & ~(1 << 33))
    with pytest.raises(ProtocolError, match="IOTLB_MSG: feature bit 33 was not negotiated"):
        session.request(header(message, 32), bytes(32), ())


@pytest.mark.parametrize("size", [26, 32])
def test_translations_come_packed_or_as_c_lays_them_out(size: int) -> None:
    message = BY_NAME["IOTLB_MSG"]
    payload = struct.pack("<QQQBB6x", 0x1000, 0x2000, 0x7000, 3, 2)[:size]
    request = negotiated().request(header(message, size), payload, ())
    assert dict(request.fields) | {"padding": 0} == {
        "iova": 0x1000,
        "size": 0x2000,
        "user_address": 0x7000,
        "permissions": 3,
        "type": 2,
        "padding": 0,
    }


@pytest.mark.parametrize("code", EVERY, ids=NAMES)
@pytest.mark.parametrize("change", [-1, 1])
def test_a_payload_of_another_size_is_refused_by_name(code: int, change: int) -> None:
    message = MESSAGES[code]
    least = message.payload.size - (message.optional_bytes if change < 0 else 0)
    payload = (payload_of(message) + b"\0")[: least + change]
    if change < 0 and not message.payload.size:
        return
    with pytest.raises(ProtocolError, match=message.name):
        negotiated().request(header(message, len(payload)), payload, fds_of(message))


@pytest.mark.parametrize(("name", "size"), SIZES.items())
def test_payloads_have_the_sizes_of_the_specification(name: str, size: int) -> None:
    assert BY_NAME[name].payload.size == size


@pytest.mark.parametrize("code", EVERY, ids=NAMES)
def test_a_descriptor_too_many_is_refused_by_name(code: int) -> None:
    message = MESSAGES[code]
    payload = payload_of(message)
    most = 0 if message.exact_fds is not None else message.fds[1]
    with pytest.raises(ProtocolError, match=rf"{message.name}: {most + 1} file descriptors"):
        negotiated().request(header(message, len(payload)), payload, (5,) * (most + 1))


@pytest.mark.parametrize(("name", "count"), FDS.items())
def test_a_descriptor_too_few_is_refused_by_name(name: str, count: int) -> None:
    message = BY_NAME[name]
    with pytest.raises(ProtocolError, match=f"{name}: {count - 1} file descriptors, expected {count}"):
        negotiated().request(header(message, 0), payload_of(message), (5,) * (count - 1))


def test_the_memory_table_carries_a_descriptor_for_each_region() -> None:
    message = BY_NAME["SET_MEM_TABLE"]
    two = struct.pack("<II", 2, 0) + bytes(64)
    assert len(negotiated().request(header(message, len(two)), two, (3, 4)).items) == 2
    with pytest.raises(ProtocolError, match="1 file descriptors, expected 2"):
        negotiated().request(header(message, len(two)), two, (3,))
    nine = struct.pack("<II", 9, 0) + bytes(9 * 32)
    with pytest.raises(ProtocolError, match="num_regions is 9, at most 8"):
        negotiated().request(header(message, len(nine)), nine, (3,) * 9)


@pytest.mark.parametrize("code", EVERY, ids=NAMES)
@pytest.mark.parametrize("need_reply", [False, True])
@pytest.mark.parametrize("reply_ack", [False, True])
def test_answers_follow_the_rule_of_the_message(code: int, need_reply: bool, reply_ack: bool) -> None:
    message = MESSAGES[code]
    offered = OFFERED_PROTOCOL_FEATURES & ~(0 if reply_ack else ProtocolFeature.REPLY_ACK.mask)
    wants = negotiated(offered).wants_ack(header(message, 0, need_reply=need_reply))
    asked = need_reply and reply_ack
    has_value = message.name.startswith("GET_")
    assert wants == (False if has_value else message.reply is ReplyRule.ACK_ALWAYS or asked)
    assert (message.reply is ReplyRule.ACK_ALWAYS) == (message.name in ("SET_LOG_BASE", "IOTLB_MSG"))


def test_a_refusal_is_a_u64_that_is_not_zero() -> None:
    session = negotiated()
    message = header(BY_NAME["SET_VRING_NUM"], 8, need_reply=True)
    assert session.ack(message, success=True) == struct.pack("<IIIQ", 8, 5, 8, 0)
    assert session.ack(message, success=False) == struct.pack("<IIIQ", 8, 5, 8, 1)
    assert session.empty_answer(message) is None


def test_a_refused_get_config_is_answered_without_a_payload() -> None:
    answer = Session.empty_answer(header(BY_NAME["GET_CONFIG"], 12))
    assert answer == struct.pack("<III", 24, 5, 0)


def test_configuration_comes_with_as_many_bytes_as_it_says() -> None:
    message = BY_NAME["SET_CONFIG"]
    payload = struct.pack("<III", 6, 2, 1) + b"\1\0"
    request = negotiated().request(header(message, len(payload)), payload, ())
    assert (request.fields["offset"], request.data) == (6, b"\1\0")
    with pytest.raises(ProtocolError, match="SET_CONFIG: payload of 14 bytes, expected 15"):
        bad = struct.pack("<III", 6, 3, 1) + b"\1\0"
        negotiated().request(header(message, len(bad)), bad, ())
    with pytest.raises(ProtocolError, match=f"size is 257, at most {MAX_CONFIG_BYTES}"):
        bad = struct.pack("<III", 0, 257, 1) + bytes(257)
        negotiated().request(header(message, len(bad)), bad, ())


@pytest.mark.parametrize("code", sorted(REFUSED))
def test_messages_that_are_not_supported_are_refused_by_name(code: int) -> None:
    with pytest.raises(ProtocolError, match=f"{REFUSED[code]}: not supported"):
        negotiated().request(Header(code, False, 0), b"", ())


@pytest.mark.parametrize("code", [0, 44, 1 << 31])
def test_a_message_that_does_not_exist_is_refused_by_its_number(code: int) -> None:
    with pytest.raises(ProtocolError, match=f"message {code} does not exist"):
        negotiated().request(Header(code, False, 0), b"", ())


@pytest.mark.parametrize(
    ("flags", "size", "what"),
    [
        (0, 0, "version 0"),
        (2, 0, "version 2"),
        (5, 0, "reply flag"),
        (1, MAX_PAYLOAD_BYTES + 1, "payload of"),
    ],
)
def test_a_header_that_can_not_be_followed_ends_the_stream(flags: int, size: int, what: str) -> None:
    with pytest.raises(FramingError, match=what):
        Session.header(struct.pack("<III", 1, flags, size))


def test_rings_are_enabled_only_after_protocol_features() -> None:
    message = BY_NAME["SET_VRING_ENABLE"]
    session = Session()
    with pytest.raises(ProtocolError, match="VHOST_USER_F_PROTOCOL_FEATURES was not negotiated"):
        session.request(header(message, 8), bytes(8), ())
    session.accept_features(F_PROTOCOL_FEATURES)
    session.request(header(message, 8), bytes(8), ())


def test_protocol_features_that_were_not_offered_are_refused() -> None:
    with pytest.raises(ProtocolError, match="0x1000"):
        Session().accept_protocol_features(OFFERED_PROTOCOL_FEATURES | 1 << 12)


def test_what_is_offered_is_what_this_back_end_serves() -> None:
    offered = {feature.name for feature in ProtocolFeature if OFFERED_PROTOCOL_FEATURES & feature.mask}
    assert offered == {
        "MQ",
        "LOG_SHMFD",
        "RARP",
        "REPLY_ACK",
        "MTU",
        "BACKEND_REQ",
        "CONFIG",
        "BACKEND_SEND_FD",
        "RESET_DEVICE",
        "CONFIGURE_MEM_SLOTS",
        "STATUS",
    }
