# SPDX-License-Identifier: Apache-2.0
"""One vhost-user connection without its socket: bytes and descriptors in, checked requests and replies out.

Only syntax is checked here: does the message exist, was its feature negotiated, has the payload its size,
came as many descriptors as belong to it. What a value means is the back end's business.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vdpa_net.errors import FramingError, ProtocolError
from vdpa_net.wire.vhost_user import (
    F_PROTOCOL_FEATURES,
    FLAG_NEED_REPLY,
    FLAG_REPLY,
    HEADER,
    MAX_PAYLOAD_BYTES,
    MESSAGES,
    OFFERED_PROTOCOL_FEATURES,
    REFUSED,
    U64,
    VERSION,
    VERSION_MASK,
    Message,
    ProtocolFeature,
    ReplyRule,
    message_name,
)

_VALUES = (ReplyRule.VALUE, ReplyRule.VALUE_OR_EMPTY)


@dataclass(frozen=True, slots=True)
class Header:
    """A message header that can be followed: `size_bytes` of payload come next."""

    code: int
    need_reply: bool
    size_bytes: int

    @property
    def name(self) -> str:
        """The message's name."""
        return message_name(self.code)


@dataclass(frozen=True, slots=True)
class Request:
    """A message that is syntactically in order. The descriptors belong to the caller."""

    message: Message
    fields: Mapping[str, int]
    items: tuple[Mapping[str, int], ...]
    fds: tuple[int, ...]
    need_reply: bool
    data: bytes = b""

    def describe(self) -> dict[str, object]:
        """The decoded payload, JSON-able."""
        out: dict[str, object] = dict(self.fields)
        if self.message.item is not None:
            out["items"] = [dict(item) for item in self.items]
        if self.data:
            out["data"] = self.data.hex()
        if self.fds:
            out["fds"] = len(self.fds)
        return out


class Session:
    """What was negotiated on one connection."""

    def __init__(self) -> None:
        self.features = 0
        self.protocol_features = 0
        self._protocol_features_used = False

    def negotiated(self, feature: ProtocolFeature) -> bool:
        """Whether SET_PROTOCOL_FEATURES set this bit."""
        return bool(self.protocol_features & feature.mask)

    @staticmethod
    def header(data: bytes) -> Header:
        """Decode a header. Raises FramingError if the stream can't be followed ("Header")."""
        try:
            fields = HEADER.unpack(data)
        except ValueError as error:
            raise FramingError(f"vhost-user header: {error}") from error
        name, flags = message_name(fields["request"]), fields["flags"]
        if flags & VERSION_MASK != VERSION:
            raise FramingError(
                f"{name}: version {flags & VERSION_MASK} in flags {flags:#x}, expected {VERSION}"
            )
        if flags & FLAG_REPLY:
            raise FramingError(f"{name}: the reply flag is set in flags {flags:#x} of a request")
        if fields["size"] > MAX_PAYLOAD_BYTES:
            raise FramingError(f"{name}: payload of {fields['size']} bytes, at most {MAX_PAYLOAD_BYTES}")
        return Header(fields["request"], bool(flags & FLAG_NEED_REPLY), fields["size"])

    def request(self, header: Header, payload: bytes, fds: tuple[int, ...]) -> Request:
        """Check one whole message. Raises ProtocolError naming the message and the value."""
        message = self._known(header)
        self._check_gate(message)
        fields, items, data = _decode(message, payload)
        _check_fds(message, fields, len(fds))
        return Request(message, fields, items, fds, header.need_reply, data)

    def accept_features(self, features: int) -> None:
        """The back end took SET_FEATURES."""
        self.features = features

    def accept_protocol_features(self, features: int) -> None:
        """Take SET_PROTOCOL_FEATURES. Raises ProtocolError for a bit that was not offered."""
        if unknown := features & ~OFFERED_PROTOCOL_FEATURES:
            raise ProtocolError(
                f"SET_PROTOCOL_FEATURES: {features:#x} has the bits {unknown:#x} that were not offered; "
                f"offered are {OFFERED_PROTOCOL_FEATURES:#x}"
            )
        self.protocol_features = features
        self._protocol_features_used = True

    def answer(self, request: Request, values: Mapping[str, int | bytes]) -> bytes:
        """The reply with a value of its own: its fields, and the bytes of `data` behind them."""
        fields = {name: value for name, value in values.items() if not isinstance(value, bytes)}
        data = values.get("data", b"")
        assert isinstance(data, bytes)
        return _frame(request.message.code, request.message.reply_payload.pack(**fields) + data)

    @staticmethod
    def empty_answer(header: Header) -> bytes | None:
        """How a message is refused that asks for a value; None: it has no such answer ("GET_CONFIG")."""
        message = MESSAGES.get(header.code)
        if message is None or message.reply is not ReplyRule.VALUE_OR_EMPTY:
            return None
        return _frame(header.code, b"")

    def wants_ack(self, header: Header) -> bool:
        """Whether success and failure of this message are answered with a u64."""
        message = MESSAGES.get(header.code)
        if message is not None and message.reply in _VALUES:
            return False
        if message is not None and message.reply is ReplyRule.ACK_ALWAYS:
            return message.needs is None or self.negotiated(message.needs) or self._asks_for_ack(header)
        return self._asks_for_ack(header)

    def ack(self, header: Header, *, success: bool) -> bytes:
        """The u64 reply: 0 is success ("VHOST_USER_PROTOCOL_F_REPLY_ACK")."""
        return _frame(header.code, U64.pack(value=0 if success else 1))

    def _asks_for_ack(self, header: Header) -> bool:
        return header.need_reply and self.negotiated(ProtocolFeature.REPLY_ACK)

    @staticmethod
    def _known(header: Header) -> Message:
        message = MESSAGES.get(header.code)
        if message is not None:
            return message
        if header.code in REFUSED:
            raise ProtocolError(f"{header.name}: not supported, its protocol feature is not offered")
        raise ProtocolError(f"message {header.code} does not exist")

    def _check_gate(self, message: Message) -> None:
        if message.needs is not None and not self.negotiated(message.needs):
            raise ProtocolError(
                f"{message.name}: protocol feature {message.needs.name} was not negotiated "
                f"(SET_PROTOCOL_FEATURES gave {self.protocol_features:#x})"
            )
        if message.needs_feature is not None and not self.features >> message.needs_feature & 1:
            raise ProtocolError(
                f"{message.name}: feature bit {message.needs_feature} was not negotiated "
                f"(SET_FEATURES gave {self.features:#x})"
            )
        # QEMU enables rings before its first SET_FEATURES: having used protocol features is enough.
        if message.needs_protocol_features and not (
            self._protocol_features_used or self.features & F_PROTOCOL_FEATURES
        ):
            raise ProtocolError(f"{message.name}: VHOST_USER_F_PROTOCOL_FEATURES was not negotiated")


_Items = tuple[dict[str, int], ...]


def _decode(message: Message, payload: bytes) -> tuple[dict[str, int], _Items, bytes]:
    """Fields, items and bytes of a payload, whose length has to be exactly theirs."""
    fixed = message.payload.size
    if fixed - message.optional_bytes <= len(payload) < fixed:
        payload = payload.ljust(fixed, b"\0")
    try:
        fields = message.payload.unpack(payload)
    except ValueError as error:
        raise ProtocolError(f"{message.name}: {error}") from error
    count = _bounded(message, fields, message.count_field, message.max_items)
    data_bytes = _bounded(message, fields, message.bytes_field, message.max_bytes)
    item_size = message.item.size if message.item is not None else 0
    expected = fixed + count * item_size + data_bytes
    if len(payload) != expected:
        raise ProtocolError(f"{message.name}: payload of {len(payload)} bytes, expected {expected}")
    if message.item is None:
        return fields, (), payload[fixed:]
    return fields, tuple(message.item.unpack(payload, at) for at in range(fixed, expected, item_size)), b""


def _bounded(message: Message, fields: Mapping[str, int], name: str, limit: int) -> int:
    """The value of a field that counts what follows; 0 where there is no such field."""
    count = fields[name] if name else 0
    if count > limit:
        raise ProtocolError(f"{message.name}: {name} is {count}, at most {limit}")
    return count


def _check_fds(message: Message, fields: Mapping[str, int], got: int) -> None:
    least, most = message.fds
    if message.exact_fds is not None:
        least = most = message.exact_fds(fields)
    if not least <= got <= most:
        expected = str(least) if least == most else f"{least} to {most}"
        raise ProtocolError(f"{message.name}: {got} file descriptors, expected {expected}")


def _frame(code: int, payload: bytes) -> bytes:
    return HEADER.pack(request=code, flags=VERSION | FLAG_REPLY, size=len(payload)) + payload
